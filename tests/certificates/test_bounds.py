"""Certificates from counts: published indices, exact arithmetic, and what must change nothing."""

import math
import subprocess
import sys
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import binom, chi2, ncx2, norm

from fastue.certificates import bounds
from fastue.certificates.bounds import (
    certify,
    joint_miss,
    kl_upper,
    largest_eta,
    local_level,
    log_e_value,
    needed_draws,
    order_index,
    shifted_level,
    tail_budget,
)
from fastue.core.errors import UsageError
from fastue.models.flat import FlatParameters

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
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (64 * 9, 10, 65)]
    drawn = len(FlatParameters(torch.nn.ParameterList(parameters)).live)
    assert tail_budget(drawn) == (9 + 1 + 2) * 32 / 2**40  # not those of 651 parameters
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
    g = bounds.generalisation(0.9, 0.1, 0.25, 9728, 0.01)
    assert math.exp(-9728 * g.divergence) / 0.01 == pytest.approx(g.rho)
    assert g.level == pytest.approx(shifted_level(0.9, 0.1, 0.25) + g.rho)
    assert g.rho == pytest.approx(0.1 * (1 - g.level + g.rho))
    # Never above what two shifts (of the exception, then of q plus it) would need.
    twice = shifted_level(0.9 + shifted_level(g.rho, 0.1, 0.25), 0.1, 0.25)
    assert shifted_level(0.9, 0.1, 0.25) < g.level < twice
    assert bounds.generalisation(0.9, 0.1, 0.25, 9728, 0.01, budget=0.02).level > g.level
    assert bounds.generalisation(0.9, 9.0, 0.25, 9728, 0.01).bound(5) == 1
    assert bounds.generalisation(0.9, 0.1, 0.25, 9728, 0.01, budget=0.5).level >= 1


@pytest.mark.parametrize("total, hoeffding, ours", [(1000, 6.73, 4.83), (10_000, 2.13, 1.43)])
def test_generalisation_is_tighter_than_hoeffding(total, hoeffding, ours):
    """A certificate of 12 % at q = 0.5, eta = 1.2 sigma: points to be added."""
    g = bounds.generalisation(0.5, 1.2, 1.0, total, 0.01)
    assert 100 * math.sqrt(g.divergence / 2) == pytest.approx(hoeffding, abs=0.005)
    assert 100 * (g.bound(12 * total // 100) - 0.12) == pytest.approx(ours, abs=0.005)
    for correct in range(0, total + 1, total // 100):
        share = correct / total
        assert share <= g.bound(correct) <= share + math.sqrt(g.divergence / 2) * (1 + 1e-8)


def test_kl_upper_inverts_the_divergence():
    random = np.random.default_rng(7)
    for _ in range(2000):
        share, divergence = float(random.random()), float(10 ** random.uniform(-12, 1))
        share = float(np.round(share, 2)) if random.random() < 0.3 else share

        def kl(p, share=share):  # exact to 50 digits
            a, p = Decimal(share), Decimal(p)
            with localcontext() as context:
                context.prec = 50
                tails = (1 - a) * ((1 - a) / (1 - p)).ln() if a < 1 else 0
                return tails + (a * (a / p).ln() if a else 0)

        p = kl_upper(share, divergence)
        assert share <= p <= 1
        assert p == 1 or kl(p) >= Decimal(divergence)  # not below the inverse
        if p - share > 1e-6 and p < 1 - 1e-9:
            assert kl(p - 1e-8 * (p - share)) < Decimal(divergence) * Decimal("1.00000001")
    for divergence in (1e-9, 0.1, 5):
        assert kl_upper(0.0, divergence) == pytest.approx(-math.expm1(-divergence), rel=1e-8)
        assert kl_upper(1.0, divergence) == 1
    assert kl_upper(0.12, math.inf) == kl_upper(0.0, 100.0) == 1
    assert 0 <= kl_upper(0.3, 0.0) - 0.3 < 1e-15


@pytest.mark.parametrize("level", [0.8, 0.97])
@pytest.mark.parametrize("s, f", [(0, 0), (1, 0), (0, 3), (30, 2), (200, 40), (5, 60)])
def test_e_value_is_the_mixture(s, f, level):
    """Over p in (level, 1) with density ~ p^(w level - 1) (1-p)^(w (1-level) - 1)."""
    a, b = bounds.PRIOR_DRAWS * level, bounds.PRIOR_DRAWS * (1 - level)

    def mass(a, b):  # with u = (1-p)^b the density has no pole
        weight = lambda u: (1 - u ** (1 / b)) ** (a - 1) / b  # noqa: E731
        return quad(weight, 0, (1 - level) ** b, epsabs=0, epsrel=1e-10, limit=500)[0]

    expected = math.log(mass(a + s, b + f) / mass(a, b))
    expected -= s * math.log(level) + f * math.log(1 - level)
    assert log_e_value(s, f, level) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("s, f", [(999_000, 1000), (900_000, 100_000), (901_500, 98_500)])
def test_e_value_of_a_million_draws(s, f):
    """Against a sum over a fine grid of p."""
    a, b = bounds.PRIOR_DRAWS * 0.9, bounds.PRIOR_DRAWS * (1 - 0.9)  # b = 1: no pole
    p = 0.9 + 0.1 * (np.arange(2_000_000) + 0.5) / 2_000_000
    prior = (a - 1) * np.log(p) + (b - 1) * np.log1p(-p)
    ratio = s * np.log(p / 0.9) + f * np.log((1 - p) / (1 - 0.9))
    exact = logsumexp(ratio + prior) - logsumexp(prior)
    assert log_e_value(s, f, 0.9) == pytest.approx(exact, abs=1e-6)
    assert log_e_value(500_000, 500_000, 0.9) == -math.inf  # far below: as good as any


def test_needed_draws_of_the_specification():
    def fixed(*arguments):
        return needed_draws(*arguments, rule="fixed")

    assert fixed(0.9, (0, 0.1, 0.2, 0.3), 0.25, 0.01, 0.0, False) == [44, 98, 245, 702]
    for q, eta, expected in [(0.9, 0.5, 8.9e3), (0.9, 1, 7.2e7), (0.5, 1, 1.5e5)]:
        assert fixed(q, eta, 0.25, 0.01) == [pytest.approx(expected, rel=0.035)]
    # Together with eta = 0.3 the 8,920 draws of eta = 0.5 alone abstain.
    assert fixed(0.9, (0.3, 0.5), 0.25, 0.01)[1] == pytest.approx(10_260, rel=0.001)
    assert fixed(0.9, 6.5, 1, 1e-6)[0] < math.inf
    # The level is 1 in floating point, so `certify` abstains.
    assert fixed(0.9, 8, 1, 1e-6) == fixed(0.9, 100, 1, 0.01) == [math.inf]
    assert fixed(0.9, 1, 0.25, 0.01, 1e-6) == [math.inf]
    assert fixed(1e-20, 0, 1, 0.5) == [1]


def test_largest_eta_of_the_specification():
    etas = [largest_eta(n, 0.9, 1.0, 0.01, rule="fixed") for n in (100, 1000, 10**4, 10**5, 10**6)]
    assert etas == pytest.approx([0.414, 1.323, 2.032, 2.629, 3.153], abs=6e-4)
    for rule in ("fixed", "anytime"):
        assert largest_eta(20, 0.9, 1, 0.01, rule=rule) == -math.inf
        assert largest_eta(10**6, 0.9, 1, 0.01, budget=0.2, rule=rule) == -math.inf


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
    ],
)
def test_wrong_arguments_are_named(name, call):
    with pytest.raises(UsageError, match=f"^{name}\\b"):
        call()


def test_the_package_does_not_load_scipy():
    code = "import sys, fastue.certificates; print('scipy' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout.strip() == "False"
