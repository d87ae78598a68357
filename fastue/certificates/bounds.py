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

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, betaincc, betaln, gammaln, ndtr, ndtri, xlogy

from fastue.core.errors import UsageError

JOINT_DRAWS = 100_000  # `local_level` is exact up to this many draws, a union bound beyond
PRIOR_DRAWS = 10  # what the prior of `log_e_value` weighs
LOOK = 1000  # at so many draws half of the anytime rule's alpha is spent
_MOST_DRAWS = 1 << 60  # that a planner thinks of

_OPEN = (lambda x: (x > 0) & (x < 1), "in (0, 1)")
_WHOLE = (lambda x: (x >= 1) & (x == np.floor(x)), "a whole number, at least 1")
_RULES = dict.fromkeys(("q", "level", "alpha", "delta", "share"), _OPEN) | dict.fromkeys(
    ("n", "total"), _WHOLE
)
_RULES["rule"] = (lambda x: (x == "anytime") | (x == "fixed"), '"anytime" or "fixed"')
_RULES["eta"] = (lambda x: (x >= 0) & (x < np.inf), "at least 0")
_RULES["sigma"] = (lambda x: (x > 0) & (x < np.inf), "above 0")
_RULES["budget"] = (lambda x: (x >= 0) & (x <= 1), "in [0, 1]")


def check(**arguments: object) -> None:
    """Raises UsageError that names the argument whose value breaks its rule."""
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
    check(q=q, eta=eta, sigma=sigma, budget=budget)
    return ndtr(ndtri(q) + np.asarray(eta) / sigma) + budget


def tail_budget(drawn: int, radius_bits: int = 40) -> float:
    """Total variation lost in the tail by the Box-Muller pairs of `drawn` values.

    The radius comes from a uniform of `radius_bits` bits. It stops at a cut that a Gaussian pair
    passes with probability 2^-radius_bits; pairs add up. `drawn` counts the padding of
    `FlatParameters` too: a parameter that uses half of a pair needs the whole of it. Not part of
    it: the grid of radii and angles below the cut and the float32 rounding of each draw, which move
    draws but leave no region out.
    """
    return min(1.0, math.ceil(drawn / 2) * 2.0**-radius_bits)


def order_index(n: int, level: float, alpha: float) -> int | None:
    """The smallest k, from 1: the k-th smallest of n draws is at least their quantile w.p. 1-alpha.

    Of the level-quantile Q it is below only if k or more draws are, which has probability
    P[Bin(n, level) >= k] at most: each draw is below Q with probability `level` or less, ties and
    jumps included. None (abstain) where even k = n is not enough.
    """
    check(n=n, alpha=alpha)
    if level >= 1:
        return None
    check(level=level)
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


def checked_counts(correct: ArrayLike, total: int) -> np.ndarray:
    """`correct` as an array [draws]; raises UsageError for what are not counts of `total`."""
    counts = np.asarray(correct)
    check(total=total)
    if counts.ndim != 1:
        raise UsageError(f"correct: one count a draw, not an array of shape {counts.shape}")
    if not np.all((counts >= 0) & (counts <= total) & (counts == np.floor(counts))):
        raise UsageError(f"correct: every count must be a whole number in [0, {total}]")
    return counts


def _grid(q: float | Sequence[float], eta: float | Sequence[float]) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a in np.atleast_1d(q) for b in np.atleast_1d(eta)]


def grid_levels(
    q: float | Sequence[float], eta: float | Sequence[float], sigma: float, budget: float = 0.0
) -> list[float]:
    """`shifted_level` for every q and, within it, every eta."""
    return [float(shifted_level(*point, sigma, budget)) for point in _grid(q, eta)]


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
    counts = checked_counts(correct, total)
    n = len(counts) if n is None else n
    check(n=n, alpha=alpha)
    if len(counts) > n:
        raise UsageError(f"correct: {len(counts)} counts, but n = {n} draws were declared")
    missing = n - len(counts)
    ordered = np.sort(np.concatenate([counts, np.full(missing, total)]))
    grid = _grid(q, eta)
    levels = grid_levels(q, eta, sigma, budget)
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
    check(n=len(counts), q=q, alpha=alpha)
    j = np.arange(1, len(counts) + 1)
    sound = j[betaincc(j, len(counts) - j + 1, q) <= alpha]  # P[Bin(n, q) < j]
    return int(counts[sound[-1] - 1]) if len(sound) else None


@dataclass(frozen=True)
class Generalisation:
    """How counts on `total` pictures speak of the population that these were drawn from."""

    rho: float  # probability to add to the level: `certify(..., budget=budget + rho)`
    level: float  # with rho; from 1 on, abstain
    total: int
    divergence: float  # kl(accuracy on the pictures || on the population) that is not exceeded

    def bound(self, correct: int) -> float:
        """Upper bound of the accuracy on the population where `correct` bounds the counts."""
        return kl_upper(correct / self.total, self.divergence)


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

    The `total` test pictures are independent draws from it, and the classifier of every theta was
    made without them. For each theta, with accuracy a on the pictures and p on the population,
    Chernoff's bound is P[a < p, kl(a || p) > c/total] <= exp(-c), so by Fubini and Markov, with
    probability 1-delta over the pictures, the noise eps for which that happens has mass rho =
    exp(-c) / delta at most. Then {p <= kl_upper(Q, c/total)}, with Q the level-quantile of the
    draws, keeps mass qbar, and the theorem shifts it. So `bound` of a bound of Q holds at
    confidence 1-alpha-delta, by whatever rule that was had. rho is `share` of the room above qbar +
    budget, and gives c. One (c, rho) holds for all (q, eta) at once, since the event over the
    pictures depends on neither.
    """
    check(total=total, delta=delta, share=share)
    level = float(shifted_level(q, eta, sigma, budget))
    rho = share * (1 - level)
    if rho <= 0:
        return Generalisation(0.0, level, total, math.inf)
    return Generalisation(rho, level + rho, total, -math.log(rho * delta) / total)


def kl_upper(share: float, divergence: float) -> float:
    """The largest p in [share, 1] with kl(share || p) <= divergence (nats), rounded upwards.

    kl is that of two coins.
    """
    divergence *= 1 + 1e-9  # more than the rounding of what follows

    def kl(p: float) -> float:
        up = p - share  # the logarithms of 1 +- something small do not cancel
        heads = -share * math.log1p(up / share) if share else 0.0
        return heads - (1 - share) * np.log1p(-up / (1 - share))

    low, high = share, 1.0
    with np.errstate(divide="ignore"):  # infinite where p rounds to 1
        while low < (p := (low + high) / 2) < high:
            low, high = (p, high) if kl(p) <= divergence else (low, p)
    return high


def log_e_value(successes: ArrayLike, failures: ArrayLike, level: float) -> float | np.ndarray:
    """Log of the likelihood ratio against `level`, averaged over a prior of p in (level, 1).

    A supermartingale from 1 wherever the true probability is `level` or less, since then it is one
    for every such p. It grows with successes and falls with failures; -inf where it underflows. The
    prior is Beta(w level, w (1-level)), w = `PRIOR_DRAWS`, cut to (level, 1). Any is sound; a
    heavier one is a little better after many draws and needs more of them where all succeed
    (`python -m bench.anytime`).
    """
    s, f = np.asarray(successes, float), np.asarray(failures, float)
    a, b = PRIOR_DRAWS * level, PRIOR_DRAWS * (1 - level)

    # Of p^(a-1) (1-p)^(b-1) over (level, 1).
    def log_mass(a: ArrayLike, b: ArrayLike) -> np.ndarray:
        return betaln(a, b) + np.log(betaincc(a, b, level))

    with np.errstate(divide="ignore"):
        return log_mass(s + a, f + b) - log_mass(a, b) - s * np.log(level) - f * np.log1p(-level)


def _enough(n: int, level: float, alpha: float, rule: str) -> bool:
    """Do n draws bound the quantile at `level`, whatever their counts?"""
    if level >= 1:
        return False
    if rule == "fixed":
        return betainc(n, 1, level) <= alpha  # as in `order_index`
    looked = n >= LOOK and betainc(LOOK, 1, level) <= alpha / 2  # see `AnytimeBounds`
    return looked or log_e_value(n, 0, level) >= -math.log(alpha / 2)


def largest_eta(
    n: int, q: float, sigma: float, alpha: float, budget: float = 0.0, rule: str = "anytime"
) -> float:
    """The largest eta that n draws can certify; -inf where not even 0.

    `alpha` is that of this certificate alone; `rule` "anytime" or "fixed".
    """
    check(n=n, q=q, sigma=sigma, alpha=alpha, budget=budget, rule=rule)

    def reached(eta: float) -> bool:
        return _enough(n, float(shifted_level(q, eta, sigma, budget)), alpha, rule)

    if not reached(0.0):
        return -math.inf
    low, high = 0.0, sigma * float(9 - ndtri(q))  # Phi(9) is 1
    while low < (eta := (low + high) / 2) < high:
        low, high = (eta, high) if reached(eta) else (low, eta)
    return low


def needed_draws(
    q: float | Sequence[float],
    eta: float | Sequence[float],
    sigma: float,
    alpha: float,
    budget: float = 0.0,
    simultaneous: bool = True,
    rule: str = "anytime",
) -> list[float]:
    """The draws from which on each (q, eta) of a claim does not abstain, in the order of `certify`.

    Whatever the counts, and `inf` where no number is enough. By the fixed rule a few less may do:
    `local_level` is taken for the union bound that it never goes below.
    """
    check(q=q, eta=eta, sigma=sigma, alpha=alpha, budget=budget, rule=rule)
    levels = grid_levels(q, eta, sigma, budget)
    if simultaneous:
        alpha /= max(1, len({level for level in levels if level < 1}))
    return [_fewest_draws(level, alpha, rule) for level in levels]


def _fewest_draws(level: float, alpha: float, rule: str) -> float:
    low, high = 1, _MOST_DRAWS
    if not _enough(high, level, alpha, rule):
        return math.inf
    while low < high:
        n = (low + high) // 2
        low, high = (low, n) if _enough(n, level, alpha, rule) else (n + 1, high)
    return float(low)
