"""Do the certificates hold as often as they say?

Simulations with a known truth, fixed seeds, 4 standard deviations.

Where a law is scalar it is the projection u.theta of Gaussian noise on the direction u that the
accuracy depends on.
"""

import math

import numpy as np
import pytest
from scipy.special import ndtr, ndtri
from scipy.stats import binom, chi2, ncx2

from fastue.certificates.anytime import Decision
from fastue.certificates.bounds import (
    certify,
    generalisation,
    joint_miss,
    log_e_value,
    order_index,
    quantile_lower,
    shifted_level,
)

TOTAL = 10**12  # pictures, where accuracy is to be as good as continuous
ALPHA = 0.01
SMALL_OR_SLOW = [2000, pytest.param(40_000, marks=pytest.mark.slow)]


def as_counts(accuracy):
    return np.floor(TOTAL * np.asarray(accuracy)).astype(np.int64)


def sd(probability, trials):
    return math.sqrt(probability * (1 - probability) / trials)


def rate(rows, truth, **arguments):
    """Share of the trials (rows of counts) whose certificate is not below the truth."""
    return np.mean(
        [certify(row, TOTAL, alpha=ALPHA, **arguments)[0].correct >= truth for row in rows]
    )


def nominal(n, q, eta, sigma=0.25, below=0):
    """Coverage of order statistic k* - below for a continuous law."""
    level = shifted_level(q, eta, sigma)
    return binom.cdf(order_index(n, level, ALPHA) - 1 - below, n, level)


def chunks(trials, size=500):
    return [min(size, trials - start) for start in range(0, trials, size)]


@pytest.mark.parametrize("trials", SMALL_OR_SLOW)
@pytest.mark.parametrize(
    "n, q, eta, sigma",
    [(100, 0.9, 0.1, 0.25), (1000, 0.9, 0.2, 0.25), (1000, 0.7, 0.3, 0.25), (500, 0.5, 0.5, 0.5)],
)
def test_linear_worst_case_is_met_exactly(n, q, eta, sigma, trials):
    """A = g(u.theta), g increasing; the worst shift is eta u. Coverage equals the nominal one."""
    random = np.random.default_rng(n)
    truth = as_counts(ndtr(eta + sigma * ndtri(q)))
    expected = nominal(n, q, eta, sigma)
    rates = []
    for size in chunks(trials):
        rows = as_counts(ndtr(sigma * random.standard_normal((size, n))))
        rates.append(rate(rows, truth, q=q, eta=eta, sigma=sigma))
    assert abs(np.mean(rates) - expected) <= 4 * sd(expected, trials)  # from both sides
    assert expected >= 1 - ALPHA


def test_one_index_lower_is_caught():
    """The power of the test above: k* - 1 fails it in 400 trials, and the promised confidence."""
    n, q, eta, sigma, trials = 100, 0.9, 0.1, 0.25, 400
    accuracy = ndtr(sigma * np.random.default_rng(5).standard_normal((trials, n)))
    k = certify(as_counts(accuracy[0]), TOTAL, q=q, eta=eta, sigma=sigma)[0].k
    lower = np.mean(np.sort(accuracy, axis=1)[:, k - 2] >= ndtr(eta + sigma * ndtri(q)))
    expected, wrong = nominal(n, q, eta), nominal(n, q, eta, below=1)
    assert (round(expected, 4), round(wrong, 4)) == (0.9913, 0.9490)
    assert abs(lower - wrong) <= 4 * sd(wrong, trials)
    assert lower < expected - 4 * sd(expected, trials) and lower < 1 - ALPHA - 4 * sd(ALPHA, trials)


@pytest.mark.parametrize(
    "m, margin, n, q, eta, bound, true, trials",
    [
        (50, 0.05, 200, 0.9, 0.1, 35, 34, 400),
        (20, 0.0, 500, 0.5, 0.3, 13, 12, 400),
        pytest.param(1000, 0.02, 1000, 0.9, 0.2, 565, 562, 400, marks=pytest.mark.slow),
    ],
)
def test_linear_classifier_with_ties(m, margin, n, q, eta, bound, true, trials):
    """Two classes, m orthonormal pictures of equal margin, which noise moves independently."""
    random, sigma = np.random.default_rng(m), 0.25
    assert binom.ppf(q, m, ndtr((margin + eta / math.sqrt(m)) / sigma)) == true
    assert binom.ppf(shifted_level(q, eta, sigma), m, ndtr(margin / sigma)) == bound
    certificates = np.empty(trials)
    for trial in range(trials):
        counts = (margin + sigma * random.standard_normal((n, m), dtype=np.float32) > 0).sum(1)
        (certificate,) = certify(counts, m, q=q, eta=eta, sigma=sigma, alpha=ALPHA)
        certificates[trial] = certificate.correct
    expected = nominal(n, q, eta)
    assert np.mean(certificates >= bound) >= 1 - ALPHA - 4 * sd(ALPHA, trials)
    assert np.mean(certificates >= true) >= expected - 4 * sd(expected, trials)
    assert np.median(certificates) <= bound + 0.1 * m  # and it says something


def test_radial_function_is_covered_with_room():
    """A grows with |theta - theta^|^2: all shifts are the same, none is the worst case."""
    random, d, q, eta, sigma = np.random.default_rng(6), 100, 0.5, 0.5, 0.25
    truth = as_counts(chi2.cdf(ncx2.ppf(q, d, (eta / sigma) ** 2), d))
    assert rate(as_counts(random.random((500, 400))), truth, q=q, eta=eta, sigma=sigma) == 1.0


@pytest.mark.parametrize("trials", SMALL_OR_SLOW)
def test_step_function_is_covered(trials):
    """A = a1 beyond a threshold, else a0; at the worst shift a1 has just above 1 - q of the
    mass.
    """
    random, n, q, eta, sigma = np.random.default_rng(7), 200, 0.9, 0.1, 0.25
    threshold = eta + sigma * ndtri(q) - 1e-6
    rows = np.where(sigma * random.standard_normal((trials, n)) >= threshold, 700, 300)
    bounds = np.array([certify(row, 1000, q=q, eta=eta, sigma=sigma)[0].correct for row in rows])
    assert set(bounds) == {300, 700}
    expected = nominal(n, q, eta)
    assert abs(np.mean(bounds == 700) - expected) <= 4 * sd(expected, trials)


def test_constant_function_is_certified_as_it_is():
    for eta in (0.0, 0.1, 0.3):
        assert certify([123] * 1000, 1000, q=0.9, eta=eta, sigma=0.25)[0].correct == 123
    assert certify([123] * 1000, 1000, q=0.9, eta=0.4, sigma=0.25)[0].abstains


@pytest.mark.parametrize("trials", SMALL_OR_SLOW)
@pytest.mark.parametrize("n, q", [(100, 0.9), (50, 0.5)])
def test_lower_bound_of_a_quantile_is_met_exactly(n, q, trials):
    """What an attack reached may be held against the certificate; one index higher may not."""
    random, alpha = np.random.default_rng(15), 0.05
    rows = np.sort(as_counts(random.random((trials, n))), axis=1)
    j = max(j for j in range(1, n + 1) if binom.cdf(j - 1, n, q) <= alpha)
    assert all(quantile_lower(random.permutation(row), q, alpha) == row[j - 1] for row in rows[:50])
    expected = binom.sf(j - 1, n, q)
    assert abs(np.mean(rows[:, j - 1] <= as_counts(q)) - expected) <= 4 * sd(expected, trials)
    assert np.mean(rows[:, j] <= as_counts(q)) < expected - 4 * sd(expected, trials)
    assert quantile_lower([5, 6, 7], 0.5, 0.01) is None
    assert quantile_lower([5, 6, 7], 0.9, 0.01) == 5


@pytest.mark.parametrize("trials", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_certificates_hold_together(trials):
    """Every (q, eta) at once, as often as computed; each by itself at alpha is not enough."""
    random, n, alpha = np.random.default_rng(8), 200, 0.05
    grid = {"q": (0.5, 0.7, 0.9), "eta": (0, 0.05, 0.1, 0.15, 0.2), "sigma": 0.25, "alpha": alpha}
    rows = as_counts(random.random((trials, n)))
    for simultaneous in (True, False):

        def certificates(row, simultaneous=simultaneous):
            every = certify(row, TOTAL, **grid, simultaneous=simultaneous)
            return [c for c in every if not c.abstains]

        first = certificates(rows[0])
        ascending = sorted(first, key=lambda c: c.level)
        expected = 1 - joint_miss(n, [c.level for c in ascending], [c.k for c in ascending])
        truth = as_counts(np.array([c.level for c in first]))
        holding = 0
        for row in rows:
            correct = np.array([c.correct for c in certificates(row)])
            holding += (correct >= truth).all()
        assert abs(holding / trials - expected) <= 4 * sd(expected, trials)
        if simultaneous:  # discrete, so not all of alpha can be spent
            assert 1 - alpha <= expected <= 1 - alpha / 2
        else:
            assert expected < 1 - alpha - 4 * sd(alpha, trials)


def test_tail_that_is_never_drawn_needs_its_budget():
    """A sampler that leaves out the upper 2 %: valid again at the level raised by that mass."""
    n, q, eta, sigma, lost, trials = 1000, 0.9, 0.1, 0.25, 0.02, 2000
    random = np.random.default_rng(9)
    # Of A = Phi(u.eps / sigma), uniform for true noise.
    truth = as_counts(shifted_level(q, eta, sigma))
    rows = as_counts((1 - lost) * random.random((trials, n)))
    arguments = {"q": q, "eta": eta, "sigma": sigma}
    assert rate(rows, truth, **arguments, budget=lost) >= 1 - ALPHA - 4 * sd(ALPHA, trials)
    assert rate(rows, truth, **arguments) < 1 - ALPHA - 20 * sd(ALPHA, trials)


@pytest.mark.parametrize(
    "n, eta, expected", [(100, 0.05, 0.973), (1000, 0.1, 0.956), (1000, 0.25, 0.978)]
)
def test_antithetic_pairs_lose_coverage(n, eta, expected):
    """z and -z for A = |z| are one draw twice. Must fail: the draws have to be independent."""
    random, q, sigma, trials = np.random.default_rng(10), 0.9, 0.25, 2000
    truth = as_counts(shifted_level(q, eta, sigma))
    half = as_counts(random.random((trials, n // 2)))  # the distribution function of |z|, at |z|
    coverage = rate(np.concatenate([half, half], axis=1), truth, q=q, eta=eta, sigma=sigma)
    assert abs(coverage - expected) <= 4 * sd(expected, trials) + 0.0005
    assert coverage < 1 - ALPHA - 4 * sd(ALPHA, trials)


def test_looking_often_loses_coverage_and_the_e_process_does_not():
    """After each 50 of 1000 draws the fixed-n certificate, and the lowest counts: must fail."""
    random, q, eta, sigma, trials = np.random.default_rng(11), 0.9, 0.1, 0.25, 2000
    level = shifted_level(q, eta, sigma)
    accuracy = random.random((trials, 1000))
    looks = range(100, 1001, 50)
    claims = [np.sort(accuracy[:, :n], axis=1)[:, order_index(n, level, ALPHA) - 1] for n in looks]
    assert np.mean(claims[-1] >= level) >= 1 - ALPHA - 4 * sd(ALPHA, trials)
    assert np.mean(np.min(claims, axis=0) >= level) < 1 - ALPHA - 10 * sd(ALPHA, trials)
    successes = np.stack([(accuracy[:, :n] < level).sum(1) for n in looks], axis=1)
    log_e = log_e_value(successes, np.array(looks) - successes, level)
    decided = (log_e >= -math.log(ALPHA)).any(1)
    assert np.mean(decided) <= ALPHA + 4 * sd(ALPHA, trials)


def decision_boundary(level, alpha, looks):
    """Fewest successes among n draws that decide, for n = 1 ... looks; n + 1 where none do."""
    n = np.arange(1, looks + 1)
    low, high = np.zeros_like(n), n + 1
    while (low < high).any():
        middle = (low + high) // 2
        enough = log_e_value(middle, np.maximum(n - middle, 0), level) >= -math.log(alpha)
        enough |= middle > n
        low = np.where(enough, low, np.minimum(middle + 1, high))
        high = np.where(enough, middle, high)
    return low


@pytest.mark.parametrize(
    "trials, looks", [(4000, 600), pytest.param(10_000, 1500, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("eta", [1e-3, 0.1, 0.2])
def test_decision_rarely_decides_wrongly(eta, trials, looks):
    """Success probability exactly at the level, every draw a look, stopped when it suits."""
    random, level = np.random.default_rng(12), shifted_level(0.9, eta, 0.25)
    successes = np.cumsum(random.random((trials, looks)) < level, axis=1, dtype=np.int32)
    crossed = successes >= decision_boundary(level, ALPHA, looks)
    wrong = crossed.any(1).mean()
    assert 0 < wrong <= ALPHA + 4 * sd(ALPHA, trials)
    # At the first crossing, or at the end.
    stop = np.where(crossed.any(1), crossed.argmax(1), looks - 1)
    at_stop = successes[np.arange(trials), stop]
    e = np.exp(log_e_value(at_stop, stop + 1 - at_stop, level))
    assert e.mean() <= 1 + 4 * e.std() / math.sqrt(trials)
    for row in range(0, trials, trials // 20):
        decision = Decision(level, 0, ALPHA)
        succeeds = np.diff(successes[row, :300], prepend=0)
        decided = [decision.update([1 - s]) == "yes" for s in succeeds]
        if decision.answer != "no":  # which came first, and is for good
            assert decided == np.logical_or.accumulate(crossed[row, :300]).tolist()


@pytest.mark.parametrize(
    "eta, truth, low, high", [(1e-3, 0.99, 55, 80), (0.1, 0.99, 130, 240), (0.2, 0.999, 250, 300)]
)
def test_decision_decides_early_where_it_is_true(eta, truth, low, high):
    random, level = np.random.default_rng(13), shifted_level(0.9, eta, 0.25)
    successes = np.cumsum(random.random((1000, 1000)) < truth, axis=1)
    crossed = successes >= decision_boundary(level, ALPHA, 1000)
    stop = np.where(crossed.any(1), crossed.argmax(1) + 1, 1001)
    assert low <= np.median(stop) <= high


@pytest.mark.parametrize("trials", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("m, q, eta", [(200, 0.9, 0.1), (1000, 0.5, 0.25)])
def test_population_is_covered_only_with_the_generalisation_term(m, q, eta, trials):
    """Pictures x ~ N(0, 1), right if x < theta: accuracy Phi(theta) on the population."""
    random, n, sigma, delta = np.random.default_rng(14), 400, 0.25, 0.01
    step = generalisation(q, eta, sigma, m, delta)
    shifts = np.linspace(-eta, eta, 9)
    truth = ndtr(shifts + sigma * ndtri(q)).max()  # over v on a grid with both ends
    plain, covered = [], []
    for _ in range(trials):
        pictures = np.sort(random.standard_normal(m))
        counts = np.searchsorted(pictures, sigma * random.standard_normal(n))
        (without,) = certify(counts, m, q=q, eta=eta, sigma=sigma, alpha=ALPHA)
        (with_rho,) = certify(counts, m, q=q, eta=eta, sigma=sigma, alpha=ALPHA, budget=step.rho)
        assert with_rho.level == pytest.approx(step.level)
        plain.append(without.accuracy >= truth)
        covered.append(step.bound(with_rho.correct) >= truth)
    assert np.mean(covered) >= 1 - ALPHA - delta - 4 * sd(ALPHA + delta, trials)
    assert np.mean(plain) < 1 - ALPHA - delta - 4 * sd(ALPHA + delta, trials)
