"""Certificates from counts: published indices, exact arithmetic, and what must change nothing."""

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import binom, chi2, ncx2, norm

from fastue.certificates import bounds
from fastue.certificates.bounds import (
    SequentialTest,
    certify,
    joint_miss,
    largest_eta,
    local_level,
    log_e_value,
    needed_draws,
    order_index,
    shifted_level,
    tail_budget,
)
from fastue.core.errors import UsageError

ETAS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25, *(tenth / 10 for tenth in range(3, 21)))
# What the public code selects for N = 1000, alpha = 0.01, sigma = 0.25 at the first of these; then
# it abstains.
GOLDEN = {
    0.5: (539, 546, 554, 616, 691, 759, 819, 869, 909, 962, 988, 999),
    0.7: (736, 741, 748, 797, 851, 895, 929, 955, 973, 993, 1000),
    0.9: (923, 926, 929, 950, 969, 983, 991, 997, 1000),
    0.95: (967, 968, 970, 981, 990, 996, 999),
    0.99: (998, 998, 998, 1000),
}
COUNTS = np.random.default_rng(0).integers(100, 900, 500)
GRID = {"q": (0.5, 0.7, 0.9), "eta": (0.01, 0.05, 0.1, 0.2), "sigma": 0.25}


@pytest.mark.parametrize("q", GOLDEN)
def test_published_indices(q):
    indices = [order_index(1000, shifted_level(q, eta, 0.25), 0.01) for eta in ETAS]
    assert indices == [*GOLDEN[q], *[None] * (len(ETAS) - len(GOLDEN[q]))]


def test_published_indices_with_the_error_shared_by_26():
    published = {0.001: 932, 0.05: 957, 0.1: 975, 0.2: 995, 0.25: 999, 0.3: None}
    for eta, index in published.items():
        assert order_index(1000, shifted_level(0.9, eta, 0.25), 0.01 / 26) == index


def test_index_is_sound_and_minimal_in_exact_arithmetic():
    random = np.random.default_rng(1)
    for _ in range(150):
        n = int(random.integers(1, 60))
        level, alpha = random.uniform(0.02, 0.999), 10 ** random.uniform(-18, -0.3)
        p, tail, index = Fraction(level), Fraction(0), n + 1
        while index > 1:  # tail = P[Bin(n, level) >= index]
            more = tail + math.comb(n, index - 1) * p ** (index - 1) * (1 - p) ** (n - index + 1)
            if more > Fraction(alpha):
                break
            tail, index = more, index - 1
        assert order_index(n, level, alpha) == (index if index <= n else None), (n, level, alpha)


def test_index_is_the_binomial_quantile_of_scipy():
    for n in (44, 1000, 30000):
        for level in np.linspace(0.05, 0.99, 12):
            k = int(binom.ppf(0.99, n, level)) + 1
            assert order_index(n, level, 0.01) == (k if k <= n else None)


def test_index_grows_with_level_and_confidence():
    table = [
        [order_index(500, level, a) or 501 for level in np.linspace(0.5, 1, 60)]
        for a in (0.1, 0.01, 0.001)
    ]
    assert (np.diff(table, axis=0) >= 0).all() and (np.diff(table, axis=1) >= 0).all()
    assert table[0][0] < table[0][-1] == 501 and table[0][0] < table[2][0]


def test_abstains_exactly_beyond_the_closed_form():
    edge = 0.01 ** (1 / 1000)
    assert edge == pytest.approx(0.995405, abs=1e-6)
    assert order_index(1000, edge - 1e-9, 0.01) == 1000
    assert order_index(1000, edge + 1e-9, 0.01) is None
    assert order_index(1000, 1.0, 0.01) is None and order_index(10**9, 1.2, 0.01) is None
    assert order_index(10, 0.5, 1e-30) is None  # 1 - alpha is 1 in floating point


def test_shifted_level_is_the_theorem():
    assert shifted_level(0.5, 0.25, 0.25) == pytest.approx(norm.cdf(1))
    assert shifted_level(0.9, 0, 0.1) == pytest.approx(0.9)
    assert shifted_level(0.9, 0, 0.1, budget=0.2) > 1
    grid = shifted_level(np.array([[0.5], [0.9]]), np.array([0, 0.1, 0.2]), 0.25, 0.01)
    assert grid.shape == (2, 3)
    assert grid[1, 2] == pytest.approx(norm.cdf(norm.ppf(0.9) + 0.8) + 0.01)


@pytest.mark.parametrize(
    "q, eta, true, bound", [(0.9, 0.2, 119.26, 131.61), (0.5, 0.5, 103.31, 130.23)]
)
def test_radial_function_is_bounded(q, eta, true, bound):
    """A grows with |theta - theta^|^2, d = 100: not the worst case, so the bound is strict."""
    assert ncx2.ppf(q, 100, (eta / 0.25) ** 2) == pytest.approx(true, abs=0.005)
    assert chi2.ppf(shifted_level(q, eta, 0.25), 100) == pytest.approx(bound, abs=0.005)
    for q, s in np.random.default_rng(2).uniform((0.05, 0.01), (0.99, 3), (50, 2)):
        assert ncx2.ppf(q, 7, s**2) <= chi2.ppf(shifted_level(q, s, 1.0), 7)


def test_tail_budget_counts_pairs():
    assert tail_budget(11_173_962) == 5_586_981 / 2**40
    assert tail_budget(3, radius_bits=10) == 2 / 1024
    assert tail_budget(0) == 0 and tail_budget(10**6, 4) == 1
    cut = math.sqrt(-2 * math.log(2.0**-10))  # of a radius sqrt(-2 log u) with u at least 2^-10
    assert chi2.sf(cut**2, 2) == pytest.approx(tail_budget(2, radius_bits=10))


def test_certificate_is_the_order_statistic():
    certificates = certify(COUNTS, 1000, **GRID, simultaneous=False)
    grid = [(q, eta) for q in GRID["q"] for eta in GRID["eta"]]
    assert [(c.q, c.eta) for c in certificates] == grid
    for c in certificates:
        assert c.k == order_index(500, c.level, 0.01) and c.level == shifted_level(c.q, c.eta, 0.25)
        assert not c.abstains
        assert c.correct == sorted(COUNTS)[c.k - 1] and c.accuracy == c.correct / 1000
        assert (c.n, c.total, c.missing, c.alpha_local) == (500, 1000, 0, 0.01)
    (abstains,) = certify(COUNTS, 1000, q=0.9, eta=0.4, sigma=0.25)
    assert abstains.abstains and abstains.k is abstains.correct is abstains.accuracy is None
    (budgeted,) = certify(COUNTS, 1000, q=0.7, eta=0.1, sigma=0.25, budget=0.01)
    index = order_index(500, shifted_level(0.7, 0.1, 0.25) + 0.01, 0.01)
    assert budgeted.k == index > certificates[grid.index((0.7, 0.1))].k


def test_order_and_type_of_the_counts_do_not_matter():
    expected = certify(COUNTS, 1000, **GRID)
    assert certify(np.random.default_rng(3).permutation(COUNTS), 1000, **GRID) == expected
    assert certify(COUNTS.tolist(), 1000, **GRID) == expected
    assert certify(COUNTS.astype(float), 1000, **GRID) == expected
    accuracies = np.sort(COUNTS / 1000)
    assert [c.accuracy for c in expected] == [accuracies[c.k - 1] for c in expected]


def test_larger_counts_never_give_a_smaller_certificate():
    random = np.random.default_rng(4)
    before = certify(COUNTS, 1000, **GRID)
    after = certify(COUNTS + random.integers(0, 40, 500) * (random.random(500) < 0.3), 1000, **GRID)
    assert all(b.correct <= a.correct for b, a in zip(before, after, strict=True))
    assert any(b.correct < a.correct for b, a in zip(before, after, strict=True))


def test_a_missing_draw_counts_as_all_correct():
    whole = certify(COUNTS, 1000, **GRID)
    for missing in (1, 100, 500):
        counts = COUNTS[: 500 - missing]
        short = certify(counts, 1000, **GRID, n=500)
        filled = certify([*counts, *[1000] * missing], 1000, **GRID)
        assert [c.correct for c in short] == [c.correct for c in filled]
        assert {c.missing for c in short} == {missing} and {c.n for c in short} == {500}
        assert all(a.correct >= b.correct for a, b in zip(short, whole, strict=True))
    assert short[0].accuracy == 1.0


def test_certificate_grows_with_q_eta_and_confidence():
    for simultaneous in (False, True):
        table = []
        for alpha in (0.1, 0.001):
            certificates = certify(COUNTS, 1000, **GRID, alpha=alpha, simultaneous=simultaneous)
            table.append([c.correct for c in certificates])
        for axis in range(3):
            growth = np.diff(np.array(table).reshape(2, 3, 4), axis=axis)
            assert (growth >= 0).all() and growth.any()


def test_together_is_at_least_pointwise_and_at_most_bonferroni():
    grid = {"q": (0.5, 0.9), "eta": ETAS, "sigma": 0.25}
    together, alone = (certify(COUNTS, 1000, **grid, simultaneous=s) for s in (True, False))
    claims = len({c.level for c in alone if not c.abstains})
    assert {c.alpha_local for c in together} == {together[0].alpha_local}
    assert 1.5 * 0.01 / claims < together[0].alpha_local < 0.01
    for c, pointwise in zip(together, alone, strict=True):
        assert c.abstains or c.k >= pointwise.k
        assert not pointwise.abstains or c.abstains
    one = {"q": 0.9, "eta": 0.1, "sigma": 0.25}
    assert certify(COUNTS, 1000, **one) == certify(COUNTS, 1000, **one, simultaneous=False)
    # One level twice, and levels that claim nothing, are free.
    repeated = certify(COUNTS, 1000, q=(0.9, 0.9), eta=(0.1, 2.0, 0.1), sigma=0.25)
    assert {c.alpha_local for c in repeated} == {0.01}


def test_joint_probability_is_that_of_the_binomial_chain():
    levels, indices, n = (0.2, 0.5, 0.55, 0.9), (10, 18, 41, 37), 40
    state, before = np.eye(n + 1)[0], 0.0
    for level, k in zip(levels, indices, strict=True):
        move = [
            binom.pmf(np.arange(n + 1) - c, n - c, (level - before) / (1 - before))
            for c in range(n + 1)
        ]
        state, before = state @ np.array(move), level
        state[k:] = 0
    assert 0.05 < 1 - state.sum() < 0.95
    assert joint_miss(n, levels, indices) == pytest.approx(1 - state.sum(), abs=1e-12)
    assert joint_miss(n, (0.7,), (33,)) == pytest.approx(binom.sf(32, n, 0.7), abs=1e-12)
    # No cut, nothing missed: the rounding alone.
    assert abs(joint_miss(20_000, (0.3, 0.9), (20_001, 20_001))) < 1e-9


def test_joint_level_is_valid_and_close_to_the_largest(monkeypatch):
    levels = tuple(np.linspace(0.6, 0.97, 15))
    local = local_level(300, levels, 0.05)

    def miss(alpha):
        return joint_miss(300, levels, [order_index(300, level, alpha) or 301 for level in levels])

    assert miss(local) <= 0.05 < miss(1.01 * local) + 0.002 and local > 1.3 * 0.05 / 15
    local_level.cache_clear()
    monkeypatch.setattr(bounds, "JOINT_DRAWS", 100)
    assert local_level(300, levels, 0.05) == 0.05 / 15
    local_level.cache_clear()


def test_generalisation_gives_up_exactly_rho():
    t, rho, level = bounds.generalisation(0.9, 0.1, 0.25, 9728, 0.01)
    assert math.exp(-2 * 9728 * t**2) / 0.01 == pytest.approx(rho)
    assert level == pytest.approx(shifted_level(0.9, 0.1, 0.25) + rho)
    assert rho == pytest.approx(0.1 * (1 - level + rho))
    assert 0.0154 < t < 0.03  # Hoeffding for one theta alone is 0.0154
    # Never above what two shifts (of the exception, then of q plus it) would need.
    twice = shifted_level(0.9 + shifted_level(rho, 0.1, 0.25), 0.1, 0.25)
    assert shifted_level(0.9, 0.1, 0.25) < level < twice
    assert bounds.generalisation(0.9, 0.1, 0.25, 9728, 0.01, budget=0.02).level > level
    assert bounds.generalisation(0.9, 9.0, 0.25, 9728, 0.01)[0] == math.inf
    assert bounds.generalisation(0.9, 0.1, 0.25, 9728, 0.01, budget=0.5).level >= 1


@pytest.mark.parametrize("s, f", [(0, 0), (1, 0), (0, 3), (30, 2), (200, 40), (5, 60)])
def test_e_value_is_the_mixture(s, f):
    mixture, _ = quad(
        lambda p: (p / 0.8) ** s * ((1 - p) / 0.2) ** f / 0.2, 0.8, 1, epsabs=0, epsrel=1e-10
    )
    assert log_e_value(s, f, 0.8) == pytest.approx(math.log(mixture), abs=1e-8)


@pytest.mark.parametrize(
    "s, f, slack", [(999_000, 1000, 1e-6), (900_000, 100_000, 1e-6), (500_000, 500_000, 0.3)]
)
def test_e_value_of_a_million_draws(s, f, slack):
    """Against e = level/(f+1) sum_j (s+f+2)...(s+f+1+j) / ((f+2)...(f+1+j)) (1-level)^j."""
    j = np.arange(1_000_000)
    terms = np.cumsum(np.log((s + f + 2 + j) / (f + 2 + j) * 0.1))
    exact = math.log(0.9 / (f + 1)) + logsumexp(np.append(0.0, terms))
    assert -slack <= log_e_value(s, f, 0.9) - exact <= 1e-6


def test_sequential_test_counts_and_decides_for_good():
    one, batches = SequentialTest(0.9, 0.01), SequentialTest(0.9, 0.01)
    assert one.log_e == pytest.approx(0) and not one.decided
    looks = [one.update(success) for success in [True] * 80 + [np.bool_(False)] * 80]
    first = looks.index(True)
    assert log_e_value(first, 0, 0.9) < math.log(100) <= log_e_value(first + 1, 0, 0.9)
    assert 44 <= first < 80 and all(looks[first:]) and one.log_e < 0 and one.decided
    batches.update(40, trials=40), batches.update(10, trials=30)
    assert (batches.successes, batches.failures) == (50, 20) and not batches.decided
    assert batches.log_e == log_e_value(50, 20, 0.9)


def test_needed_draws_of_the_specification():
    assert [needed_draws(0.9, eta, 0.25, 0.01) for eta in (0, 0.1, 0.2, 0.3)] == [44, 98, 245, 702]
    for q, eta, expected in [(0.9, 0.5, 8.9e3), (0.9, 1, 7.2e7), (0.9, 2, 5.5e20), (0.5, 1, 1.5e5)]:
        assert needed_draws(q, eta, 0.25, 0.01) == pytest.approx(expected, rel=0.035)
    assert math.isfinite(needed_draws(0.9, 8, 1, 1e-6))
    assert needed_draws(0.9, 100, 1, 0.01) == math.inf
    assert needed_draws(0.9, 1, 0.25, 0.01, budget=1e-6) == math.inf
    assert needed_draws(1e-20, 0, 1, 0.5) == 1


def test_largest_eta_of_the_specification():
    etas = [largest_eta(n, 0.9, 1.0, 0.01) for n in (100, 1000, 10**4, 10**5, 10**6)]
    assert etas == pytest.approx([0.414, 1.323, 2.032, 2.629, 3.153], abs=6e-4)
    assert largest_eta(20, 0.9, 1, 0.01) == -math.inf
    assert largest_eta(10**6, 0.9, 1, 0.01, budget=0.2) == -math.inf


@pytest.mark.parametrize("budget", [0, 1e-3])
def test_planners_agree_with_the_index(budget):
    for q, eta, alpha in [
        (0.9, 0, 0.01),
        (0.9, 0.1, 0.01),
        (0.5, 0.4, 0.001),
        (0.99, 0.05, 0.1),
        (0.02, 0, 0.5),
    ]:
        n = int(needed_draws(q, eta, 0.25, alpha, budget))
        level = shifted_level(q, eta, 0.25, budget)
        assert order_index(n, level, alpha) == n
        assert n == 1 or order_index(n - 1, level, alpha) is None
        edge = largest_eta(n, q, 0.25, alpha, budget)
        assert edge >= eta
        assert order_index(n, shifted_level(q, edge + 1e-7, 0.25, budget), alpha) is None
        assert order_index(n, shifted_level(q, max(0, edge - 1e-7), 0.25, budget), alpha) == n


@pytest.mark.parametrize(
    "name, call",
    [
        ("q", lambda: shifted_level(1.0, 0.1, 0.1)),
        ("q", lambda: certify(COUNTS, 1000, q=(0.5, 0.0), eta=0.1, sigma=0.1)),
        ("q", lambda: needed_draws(math.nan, 0.1, 0.1, 0.01)),
        ("eta", lambda: shifted_level(0.5, -0.1, 0.1)),
        ("eta", lambda: needed_draws(0.5, math.inf, 0.1, 0.01)),
        ("sigma", lambda: shifted_level(0.5, 0.1, 0.0)),
        ("sigma", lambda: largest_eta(10, 0.5, -1, 0.01)),
        ("budget", lambda: shifted_level(0.5, 0.1, 0.1, -0.1)),
        ("alpha", lambda: order_index(10, 0.5, 0.0)),
        ("alpha", lambda: certify(COUNTS, 1000, q=0.5, eta=0.1, sigma=0.1, alpha=1.0)),
        ("alpha", lambda: SequentialTest(0.9, 2)),
        ("level", lambda: SequentialTest(1.0, 0.01)),
        ("level", lambda: order_index(10, math.nan, 0.01)),
        ("n", lambda: order_index(0, 0.5, 0.01)),
        ("n", lambda: order_index(10.5, 0.5, 0.01)),
        ("n", lambda: certify([], 1000, q=0.5, eta=0.1, sigma=0.1)),
        ("total", lambda: certify(COUNTS, 0, q=0.5, eta=0.1, sigma=0.1)),
        ("total", lambda: bounds.generalisation(0.5, 0.1, 0.1, 0, 0.01)),
        ("delta", lambda: bounds.generalisation(0.5, 0.1, 0.1, 100, 1.0)),
        ("share", lambda: bounds.generalisation(0.5, 0.1, 0.1, 100, 0.1, share=0.0)),
        ("correct", lambda: certify(COUNTS, COUNTS.max() - 1, q=0.5, eta=0.1, sigma=0.1)),
        ("correct", lambda: certify(COUNTS - COUNTS.min() - 1, 1000, q=0.5, eta=0.1, sigma=0.1)),
        ("correct", lambda: certify(COUNTS / 1000, 1000, q=0.5, eta=0.1, sigma=0.1)),
        ("correct", lambda: certify([3, math.nan], 1000, q=0.5, eta=0.1, sigma=0.1)),
        ("correct", lambda: certify([[3], [4]], 1000, q=0.5, eta=0.1, sigma=0.1)),
        ("correct", lambda: certify(COUNTS, 1000, q=0.5, eta=0.1, sigma=0.1, n=499)),
        ("successes", lambda: SequentialTest(0.9, 0.01).update(3, trials=2)),
    ],
)
def test_wrong_arguments_are_named(name, call):
    with pytest.raises(UsageError, match=f"^{name}\\b"):
        call()


def test_the_package_does_not_load_scipy():
    code = "import sys, fastue.certificates; print('scipy' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.strip() == "False"
