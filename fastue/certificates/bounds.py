"""Statistics of PUE certificates (arXiv 2405.03316): right answers in, certificates out.

theta are the surrogate's parameters, eps ~ N(0, sigma^2 I), A the accuracy on fixed test pictures.
The theorem: if A(theta + eps) <= t with probability qbar = Phi(Phi^-1(q) + eta/sigma) or more, then
A(theta + v + eps) <= t with probability q or more for every |v|_2 <= eta (Neyman-Pearson for two
Gaussians). So an upper confidence bound of the qbar-quantile of A(theta + eps) bounds the
(q, eta)-Learnability. It says nothing of models without the noise eps.

Units: q, level, alpha, delta, budget and rho are probabilities; eta and sigma are lengths in
parameter space (L2 norm, and standard deviation of one parameter); accuracies are fractions.
Everything but the counts has to be chosen before the counts are seen, and the draws have to be
independent (antithetic pairs are not).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaincc, betaln, gammaln, ndtr, ndtri, xlogy

from fastue.core.errors import UsageError

JOINT_DRAWS = 100_000  # `local_level` is exact up to this many draws, a union bound beyond

_OPEN = (lambda x: (x > 0) & (x < 1), "in (0, 1)")
_WHOLE = (lambda x: (x >= 1) & (x == np.floor(x)), "a whole number, at least 1")
_RULES = dict.fromkeys(("q", "level", "alpha", "delta", "share"), _OPEN) | dict.fromkeys(
    ("n", "total"), _WHOLE
)
_RULES["eta"] = (lambda x: (x >= 0) & (x < np.inf), "at least 0")
_RULES["sigma"] = (lambda x: (x > 0) & (x < np.inf), "above 0")
_RULES["budget"] = (lambda x: (x >= 0) & (x <= 1), "in [0, 1]")


def _check(**arguments: object) -> None:
    for name, value in arguments.items():
        holds, rule = _RULES[name]
        if not np.all(holds(np.asarray(value))):
            raise UsageError(f"{name} {value}: must be {rule}")


def shifted_level(
    q: ArrayLike, eta: ArrayLike, sigma: float, budget: float = 0.0
) -> float | np.ndarray:
    """The level at which the draws' quantile has to be bounded: qbar + budget; from 1 on, abstain.

    `budget` is the total variation between the draws' law and the Gaussian: an event of mass qbar +
    budget in the draws keeps qbar under the Gaussian.
    """
    _check(q=q, eta=eta, sigma=sigma, budget=budget)
    return ndtr(ndtri(q) + np.asarray(eta) / sigma) + budget


def tail_budget(parameters: int, radius_bits: int = 40) -> float:
    """Total variation lost in the tail by Box-Muller pairs.

    The radius comes from a uniform of `radius_bits` bits. It stops at a cut that a Gaussian pair
    passes with probability 2^-radius_bits; pairs add up. A tensor that uses half of its last pair
    counts as one larger. Not part of it: the grid of radii and angles below the cut and the float32
    rounding of each draw, which move draws but leave no region out.
    """
    return min(1.0, math.ceil(parameters / 2) * 2.0**-radius_bits)


def order_index(n: int, level: float, alpha: float) -> int | None:
    """The smallest k, from 1: the k-th smallest of n draws is at least their quantile w.p. 1-alpha.

    Of the level-quantile Q it is below only if k or more draws are, which has probability
    P[Bin(n, level) >= k] at most: each draw is below Q with probability `level` or less, ties and
    jumps included. None (abstain) where even k = n is not enough.
    """
    _check(n=n, alpha=alpha)
    if level >= 1:
        return None
    _check(level=level)
    # P[Bin(n, level) >= k] = I_level(k, n-k+1) falls as k grows. Held against alpha, not as its
    # complement against 1-alpha, which rounds.
    low, high = 1, n + 1
    while low < high:
        k = (low + high) // 2
        low, high = (low, k) if betainc(k, n - k + 1, level) <= alpha else (k + 1, high)
    return low if low <= n else None


def joint_miss(n: int, levels: Sequence[float], indices: Sequence[int]) -> float:
    """Probability that for some i indices[i] or more of n uniforms are below levels[i] (ascending).

    So the probability that one of several order statistics is below its quantile, or a bound of it
    where the law has jumps. The uniforms are a Poisson process of rate n given that it has n
    points, and its counts at the levels are sums of independent jumps: each level costs one
    convolution and one cut.
    """
    counts, size = np.arange(n + 1), 1 << (2 * n + 1).bit_length()

    def poisson(mean: float) -> np.ndarray:
        return np.exp(xlogy(counts, mean) - mean - gammaln(counts + 1))

    *jumps, rest = (poisson(mean) for mean in n * np.diff(levels, prepend=0.0, append=1.0))
    below = (counts == 0).astype(float)  # probability of each count below the level, none missed
    for jump, k in zip(jumps, indices, strict=True):
        below = np.fft.irfft(np.fft.rfft(below, size) * np.fft.rfft(jump, size), size)[: n + 1]
        below[k:] = 0
    return float(1 - below @ rest[::-1] / poisson(n)[n])


@lru_cache
def local_level(n: int, levels: tuple[float, ...], alpha: float) -> float:
    """The alpha of each level by itself that makes all their bounds hold together w.p. 1-alpha.

    The largest common one by bisection on the exact `joint_miss`, which never goes below alpha /
    number of levels. Levels that abstain at alpha itself make no claim and cost nothing.
    """
    ascending = sorted({level for level in levels if order_index(n, level, alpha)})
    low, high = alpha / max(1, len(ascending)), alpha
    while n <= JOINT_DRAWS and high > 1.001 * low:
        local = math.sqrt(low * high)
        indices = [order_index(n, level, local) or n + 1 for level in ascending]
        sound = joint_miss(n, ascending, indices) <= alpha - 1e-8  # more than its rounding
        low, high = (local, high) if sound else (low, local)
    return low


@dataclass(frozen=True)
class Certificate:
    """For every |v|_2 <= eta the noisy model at theta + v gets at most `correct` of `total` right.

    With probability q or more over its noise.
    """

    q: float
    eta: float
    level: float  # of the quantile that was bounded: qbar + budget
    alpha_local: float  # error probability of this certificate alone
    k: int | None  # 1-indexed order statistic; None: abstains
    n: int  # declared draws
    correct: int | None
    total: int
    missing: int  # declared draws without a count; each was taken as all correct

    @property
    def abstains(self) -> bool:
        return self.k is None

    @property
    def accuracy(self) -> float | None:
        return None if self.correct is None else self.correct / self.total


def certify(
    correct: ArrayLike,  # [draws] right answers of each noisy model, in any order
    total: int,
    *,
    q: float | Sequence[float],
    eta: float | Sequence[float],
    sigma: float,
    alpha: float = 0.01,
    n: int | None = None,
    budget: float = 0.0,
    simultaneous: bool = True,
) -> list[Certificate]:
    """Certificates for every q and, within it, every eta.

    If `simultaneous`, all hold together at confidence 1-alpha. `n` is the number of draws declared
    beforehand. Those without a count are taken as `total`: larger counts only raise an order
    statistic, whatever the reason they are missing. Raises UsageError (a ValueError) for bad
    arguments.
    """
    counts = np.asarray(correct)
    if counts.ndim != 1:
        raise UsageError(f"correct: one count a draw, not an array of shape {counts.shape}")
    n = len(counts) if n is None else n
    _check(n=n, total=total, alpha=alpha)
    if len(counts) > n:
        raise UsageError(f"correct: {len(counts)} counts, but n = {n} draws were declared")
    if not np.all((counts >= 0) & (counts <= total) & (counts == np.floor(counts))):
        raise UsageError(f"correct: every count must be a whole number in [0, {total}]")
    missing = n - len(counts)
    ordered = np.sort(np.concatenate([counts, np.full(missing, total)]))
    grid = [(float(a), float(b)) for a in np.atleast_1d(q) for b in np.atleast_1d(eta)]
    levels = [float(shifted_level(*point, sigma, budget)) for point in grid]
    local = local_level(n, tuple(levels), alpha) if simultaneous else alpha
    indices = [order_index(n, level, local) for level in levels]
    return [
        Certificate(*point, level, local, k, n, int(ordered[k - 1]) if k else None, total, missing)
        for point, level, k in zip(grid, levels, indices, strict=True)
    ]


def quantile_lower(correct: ArrayLike, q: float, alpha: float) -> int | None:
    """A count that the q-quantile of the draws' law is at least, w.p. 1-alpha; None: too few draws.

    The j-th smallest is above the quantile only if fewer than j draws are at most it, each of which
    has probability q or more: P[Bin(n, q) < j] at most. For attacks: what comes out must not exceed
    the certificate.
    """
    counts = np.sort(np.asarray(correct))
    _check(n=len(counts), q=q, alpha=alpha)
    j = np.arange(1, len(counts) + 1)
    sound = j[betaincc(j, len(counts) - j + 1, q) <= alpha]  # P[Bin(n, q) < j]
    return int(counts[sound[-1] - 1]) if len(sound) else None


class Generalisation(NamedTuple):
    t: float  # accuracy to add to the certificate
    rho: float  # probability to add to its level: `certify(..., budget=budget + rho)`
    level: float


def generalisation(
    q: float,
    eta: float,
    sigma: float,
    total: int,
    delta: float,
    budget: float = 0.0,
    share: float = 0.1,
) -> Generalisation:
    """What makes a certificate one of the accuracy on the population.

    The `total` test pictures are independent draws from it, and theta was made without them.
    Hoeffding for each theta, Fubini and Markov: with probability 1-delta over the pictures, the
    noise eps for which the population's accuracy exceeds theirs by more than t has mass
    rho = exp(-2 total t^2) / delta at most. Then {accuracy on the population <= Q + t}, with Q the
    level-quantile of the draws, keeps mass qbar, and the theorem shifts it. So accuracy + t holds
    at confidence 1-alpha-delta. rho is `share` of the room above qbar + budget, and gives t. One
    (t, rho) holds for all (q, eta) at once, since the event over the pictures depends on neither.
    """
    _check(total=total, delta=delta, share=share)
    level = float(shifted_level(q, eta, sigma, budget))
    rho = share * (1 - level)
    if rho <= 0:
        return Generalisation(math.inf, 0.0, level)
    return Generalisation(math.sqrt(-math.log(rho * delta) / (2 * total)), rho, level + rho)


def log_e_value(successes: ArrayLike, failures: ArrayLike, level: float) -> float | np.ndarray:
    """Log of the likelihood ratio against `level`, averaged over p uniform in (level, 1).

    A supermartingale from 1 wherever the true probability is `level` or less, since then it is one
    for every such p.
    """
    s, f = np.asarray(successes, float), np.asarray(failures, float)
    with np.errstate(divide="ignore"):
        mass = betaln(s + 1, f + 1) + np.log(betaincc(s + 1, f + 1, level))
    # p >= level gives at least 1/(f+1): a lower bound is as valid, and it is finite where the tail
    # above underflows.
    return np.maximum(mass - s * np.log(level) - (f + 1) * np.log1p(-level), -np.log(f + 1))


class SequentialTest:
    """Is the (q, eta)-Learnability at most tau? Draws with accuracy <= tau are successes.

    Look at any time. `level` is that of `shifted_level`, tau is fixed beforehand, a lost draw is a
    failure. If success has probability `level` or less, `decided` ever becomes true with
    probability alpha at most (Ville), whatever the stopping rule.
    """

    def __init__(self, level: float, alpha: float) -> None:
        _check(level=level, alpha=alpha)
        self.level, self.alpha = level, alpha
        self.successes = self.failures = 0
        self.decided = False

    @property
    def log_e(self) -> float:
        return float(log_e_value(self.successes, self.failures, self.level))

    def update(self, successes: int | bool, trials: int = 1) -> bool:
        """Add a draw, or a batch of `trials`; gives `decided`, which stays true."""
        if not 0 <= successes <= trials:
            raise UsageError(f"successes {successes}: must be in [0, trials = {trials}]")
        self.successes += int(successes)
        self.failures += int(trials) - int(successes)
        self.decided = self.decided or self.log_e >= -math.log(self.alpha)
        return self.decided


def largest_eta(n: int, q: float, sigma: float, alpha: float, budget: float = 0.0) -> float:
    """The largest eta that n draws can certify: level^n <= alpha; -inf where not even 0."""
    _check(n=n, q=q, sigma=sigma, alpha=alpha, budget=budget)
    room = budget - math.expm1(math.log(alpha) / n)  # 1 - qbar, at the least
    eta = -sigma * float(ndtri(min(room, 1.0)) + ndtri(q))
    return eta if eta >= 0 else -math.inf


def needed_draws(q: float, eta: float, sigma: float, alpha: float, budget: float = 0.0) -> float:
    """The fewest draws that do not abstain: level^n <= alpha; inf where no number is enough."""
    _check(q=q, eta=eta, sigma=sigma, alpha=alpha, budget=budget)
    room = ndtr(-ndtri(q) - eta / sigma) - budget  # 1 - level, without rounding it away
    if room <= 0:
        return math.inf
    with np.errstate(over="ignore", divide="ignore"):
        return max(1.0, float(np.ceil(math.log(alpha) / np.log1p(-room))))
