"""Bounds that hold at every look, answers for good, and a planner that keeps its word."""

import math
from functools import cache

import numpy as np
import pytest
from scipy.stats import betabinom, binom

from fastue.certificates import bounds
from fastue.certificates.anytime import AnytimeBounds, Decision, allowed_failures
from fastue.certificates.bounds import (
    LOOK,
    certify,
    grid_levels,
    joint_miss,
    largest_eta,
    log_e_value,
    needed_draws,
    order_index,
    shifted_level,
    tail_budget,
)
from fastue.core.errors import UsageError

TOTAL, DRAWS, ALPHA = 2000, 1500, 0.05
LEVELS = grid_levels((0.5, 0.9), (0.04, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2), 1.0)
EDGE = LEVELS[7] - 1e-9  # the lower of two points has just not the mass of that level

# law: (draws of a shape, the quantile at a level)
LAWS = {
    "binomial": (
        lambda shape, random: random.binomial(TOTAL, 0.4, shape),
        lambda level: binom.ppf(level, TOTAL, 0.4),
    ),
    "beta-binomial": (
        lambda shape, random: random.binomial(TOTAL, random.beta(240, 360, shape)),
        lambda level: betabinom.ppf(level, TOTAL, 240, 360),
    ),
    "two points": (
        lambda shape, random: np.where(random.random(shape) < EDGE, 700, 900),
        lambda level: 700 if level <= EDGE else 900,
    ),
}


def slack(trials, alpha=ALPHA):
    return 4 * math.sqrt(alpha * (1 - alpha) / trials)


def ever_wrong(counts, level, truth, allowed):
    """[trials]: is the k-th smallest of some prefix below the truth, k = m - allowed[m]?"""
    failures = np.cumsum(counts >= truth, axis=1)
    return (failures <= allowed[1 : counts.shape[1] + 1]).any(axis=1)


@cache
def brute_allowed(level, alpha, draws):
    allowed = [-1]
    for m in range(1, draws + 1):
        k = np.arange(m + 1)
        enough = log_e_value(k, m - k, level) >= -math.log(alpha)
        allowed.append(m - int(enough.argmax()) if enough.any() else -1)
    return np.array(allowed)


@pytest.mark.parametrize("trials", [400, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("law", LAWS)
def test_all_bounds_hold_at_every_draw_together(law, trials):
    draw, quantile = LAWS[law]
    counts = draw((trials, DRAWS), np.random.default_rng(1))
    truth = np.array([quantile(level) for level in LEVELS])
    wrong = 0
    for row in counts:
        watched = AnytimeBounds(LEVELS, TOTAL, ALPHA)
        watched.update(row)
        # The bounds never rise, so the last ones are below the truth if any ever were.
        wrong += any(b is not None and b < t for b, t in zip(watched.bounds, truth, strict=True))
    assert wrong / trials <= ALPHA + slack(trials)
    assert wrong > 0  # they are not idle


@pytest.mark.parametrize("law", LAWS)
def test_what_is_not_sound_under_watching_is_caught(law):
    draw, quantile = LAWS[law]
    trials, random = 1000, np.random.default_rng(2)
    counts = draw((trials, DRAWS), random)
    too_often = ALPHA + slack(trials)
    levels = LEVELS[7:8] if law == "two points" else LEVELS  # the only one that can fail there

    def rate(allowed_of):
        wrong = [ever_wrong(counts, level, quantile(level), allowed_of(level)) for level in levels]
        return np.any(wrong, axis=0).mean()

    def sound(level):
        return allowed_failures(DRAWS, level, ALPHA / len(levels))

    def fixed(level):
        m = np.arange(1, DRAWS + 1)
        k = [order_index(int(n), level, ALPHA / len(levels)) or n + 1 for n in m]
        return np.append(-1, m - k)

    assert rate(sound) <= ALPHA
    assert rate(fixed) > too_often  # the fixed-N rule, looked at after every draw
    assert rate(lambda level: sound(level) + 1) > too_often  # k one too small
    if len(levels) > 1:
        assert rate(lambda level: allowed_failures(DRAWS, level, ALPHA)) > too_often  # undivided


@pytest.mark.parametrize("level", [0.02, 0.5, 0.93, 0.996])
def test_fewest_successes_are_those_of_brute_force(level):
    for alpha in (0.3, 0.001):
        found = allowed_failures(600, level, alpha)
        assert found.tolist() == brute_allowed(level, alpha, 600).tolist()
        assert set(np.diff(found)) <= {0, 1}  # k grows by at most one a draw
        # More room changes nothing.
        assert allowed_failures(1000, level, alpha)[:601].tolist() == found.tolist()


def test_bounds_are_the_least_of_all_prefixes():
    levels = (0.55, 0.93, 0.97)
    draws = LOOK + 60
    counts = np.random.default_rng(3).binomial(40, 0.4, draws)
    counts[:200] += 3  # they fall late, and at the look
    watched = AnytimeBounds(levels, 43, ALPHA)
    local = ALPHA / 2 / 3
    assert watched.alpha_local == local
    at_look = [order_index(LOOK, v, bounds.local_level(LOOK, levels, ALPHA / 2)) for v in levels]
    least, origin, changes = [None] * 3, [None] * 3, 0
    for m in range(1, draws + 1):
        watched.update(counts[m - 1 : m])
        ordered = np.sort(counts[:m])
        for row, level in enumerate(levels):
            k = m - brute_allowed(level, local, draws)[m]
            k = min(k, at_look[row]) if m == LOOK else k
            if k <= m and (least[row] is None or ordered[k - 1] < least[row]):
                least[row], origin[row] = int(ordered[k - 1]), (m, k)
                changes += 1
        assert (watched.bounds, watched.origins) == (least, origin)
    assert changes > 12 and watched.draws == draws


def test_half_of_alpha_is_spent_at_the_look():
    watched = AnytimeBounds(LEVELS, LOOK, ALPHA)
    watched.update(np.arange(LOOK, 0, -1))  # each prefix lower than those before: the look is last
    kept = [
        (v, b)
        for v, b, origin in zip(LEVELS, watched.bounds, watched.origins, strict=True)
        if origin and origin[0] == LOOK
    ]
    miss = joint_miss(LOOK, *zip(*sorted(kept), strict=True))
    assert len(kept) >= 12 and 0.3 * ALPHA < miss <= ALPHA / 2
    assert miss + len(LEVELS) * watched.alpha_local <= ALPHA


def test_batches_do_not_matter():
    random = np.random.default_rng(4)
    counts = random.binomial(TOTAL, random.beta(240, 360, 2500))
    whole = AnytimeBounds(LEVELS, TOTAL, ALPHA)
    whole.update(counts)
    assert None not in whole.bounds
    for cuts in ([], range(2500), [0, 0, 999, 1000], [1000], random.integers(0, 2500, 20)):
        parts = AnytimeBounds(LEVELS, TOTAL, ALPHA)
        for part in np.split(counts, np.sort(cuts).astype(int)):
            parts.update(part)
        assert (parts.bounds, parts.origins) == (whole.bounds, whole.origins)
        assert parts.draws == 2500


def test_bounds_fall_with_time_and_rise_with_counts_and_gaps():
    random = np.random.default_rng(5)
    for _ in range(20):
        counts = random.binomial(TOTAL, random.beta(240, 360, 1200))
        gaps = np.where(random.random(1200) < 0.02, TOTAL, counts)
        more = np.minimum(counts + random.integers(0, 30, 1200), TOTAL)
        sides = [AnytimeBounds(LEVELS, TOTAL, ALPHA) for _ in range(3)]
        before = np.full(len(LEVELS), math.inf)
        for part in range(12):
            for side, values in zip(sides, (counts, gaps, more), strict=True):
                side.update(values[100 * part : 100 * part + 100])
            now, *higher = (
                np.array([math.inf if b is None else b for b in side.bounds]) for side in sides
            )
            assert (now <= before).all()
            assert all((now <= side).all() for side in higher)
            before = now
        assert any((now < side).any() for side in higher)


def test_levels_that_abstain_or_repeat_cost_nothing():
    counts = np.random.default_rng(6).binomial(TOTAL, 0.4, 500)
    plain = AnytimeBounds([0.9, 0.6], TOTAL, ALPHA)
    rich = AnytimeBounds([0.6, 1.0, 0.9, 1.3, 0.6], TOTAL, ALPHA)
    for side in (plain, rich):
        side.update(counts)
    high, low = plain.bounds
    assert low < high and rich.bounds == [low, None, high, None, low]
    assert rich.origins[1] is None and rich.alpha_local == plain.alpha_local == ALPHA / 4
    nothing = AnytimeBounds([1.0], TOTAL, ALPHA)
    nothing.update(counts)
    assert nothing.bounds == nothing.origins == [None]
    assert AnytimeBounds([0.6], TOTAL, ALPHA).bounds == [None]


def test_decision_says_yes_no_or_nothing_for_good():
    for value, name in ((10, "yes"), (11, "no")):
        decision, looks = Decision(0.9, 10, 0.01), []
        for _ in range(100):
            looks.append(decision.update([value]))
        first = looks.index(name)
        assert looks == [None] * first + [name] * (100 - first)
        s, f, level = (first, 0, 0.9) if name == "yes" else (first, 0, 1 - 0.9)
        assert log_e_value(s, f, level) < math.log(100) <= log_e_value(s + 1, f, level)
        assert decision.draws == first + 1
        assert decision.update([21 - value] * 500) == name and decision.draws == first + 1
    assert Decision(0.9, 10, 0.01).update([]) is None
    batch = Decision(0.9, 10, 0.01)
    assert batch.update([10] * 9 + [11]) is None and batch.draws == 10
    assert batch.update([10] * 400) == "yes" and 10 < batch.draws < 400


@pytest.mark.parametrize("trials", [800, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("level", [0.55, 0.95])
def test_decision_is_rarely_wrong_on_either_side(level, trials):
    """Exactly at the level both answers are wrong; each may come with probability alpha."""
    alpha, random = 0.05, np.random.default_rng(7)
    counts = (random.random((trials, 500)) >= level).astype(int)  # 0 succeeds
    answers = []
    for trial, row in enumerate(counts):
        decision = Decision(level, 0, alpha)
        answers.append(decision.update(row))
        if trial < 50:
            parts = Decision(level, 0, alpha)
            parts.update(row[:77])
            assert parts.update(row[77:]) == decision.answer and parts.draws == decision.draws
    for answer in ("yes", "no"):
        assert 0 < answers.count(answer) / trials <= alpha + slack(trials, alpha)


def random_claim(random):
    return {
        "q": np.round(random.uniform(0.05, 0.97, random.integers(1, 4)), 2),
        "eta": np.round(random.uniform(0, 1.2, random.integers(1, 8)), 2) * 0.07,
        "sigma": 0.07,
        "alpha": float(10 ** random.uniform(-4, -0.5)),
        "budget": float(random.choice([0, 1e-6, 1e-3])),
        "simultaneous": bool(random.random() < 0.7),
    }


def planned_points(seed, rule, most):
    """(claim, number of a point in it, the planner's draws) of 200 random claims."""
    random, claims = np.random.default_rng(seed), 0
    while claims < 200:
        claim = random_claim(random)
        needed = needed_draws(**claim, rule=rule)
        if points := [point for point, n in enumerate(needed) if n <= most]:
            point = int(random.choice(points))
            yield claim, point, int(needed[point])
            claims += 1


def test_the_fixed_rule_never_abstains_where_the_planner_is_followed():
    for claim, point, n in planned_points(8, "fixed", most=1500):
        for draws in (n, n + 1, n + n // 3):
            assert certify([7] * draws, 10, **claim)[point].correct == 7


def test_the_anytime_rule_never_abstains_where_the_planner_is_followed():
    random, last = np.random.default_rng(9), []
    for claim, point, n in planned_points(9, "anytime", most=1024):
        levels = grid_levels(claim["q"], claim["eta"], claim["sigma"], claim["budget"])
        own = levels if claim["simultaneous"] else levels[point : point + 1]
        watched = AnytimeBounds(own, 10, claim["alpha"])
        row = own.index(levels[point])
        watched.update(random.integers(0, 10, n - 1))
        # Nor are the draws too many; the look knows better than the union bound.
        assert n > LOOK or watched.bounds[row] is None
        watched.update([10])
        assert watched.bounds[row] is not None
        last.append(n)
    assert LOOK in last and min(last) < 20


def test_planner_knows_the_budget_and_what_no_number_reaches():
    budget = tail_budget(11_173_962)
    for rule in ("anytime", "fixed"):
        within, beyond = needed_draws(0.9, (3.0, 3.2), 1.0, 0.01, budget, rule=rule)
        assert 1e6 < within < 1e7 and beyond == math.inf
        assert needed_draws(0.9, 3.2, 1.0, 0.01, rule=rule)[0] < math.inf
    # The order is q and, within it, eta; together costs more than alone.
    claim = {"q": (0.5, 0.9), "eta": (0.1, 0.3), "sigma": 0.25, "alpha": 0.01}
    for rule in ("anytime", "fixed"):
        together = needed_draws(**claim, rule=rule)
        alone = needed_draws(**claim, simultaneous=False, rule=rule)
        single = [
            needed_draws(q, e, 0.25, 0.01, rule=rule)[0] for q in (0.5, 0.9) for e in (0.1, 0.3)
        ]
        assert alone == single and all(a < b for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("rule", ["anytime", "fixed"])
def test_largest_eta_is_the_last_that_does_not_abstain(rule):
    for n in (150, 700, LOOK, 20_000):
        for q, budget in ((0.5, 0.0), (0.9, 0.0), (0.9, 1e-3)):
            edge = largest_eta(n, q, 0.25, 0.01, budget, rule)
            claim = {"sigma": 0.25, "alpha": 0.01, "budget": budget, "rule": rule}
            assert needed_draws(q, edge, **claim)[0] <= n
            assert needed_draws(q, edge + 1e-9, **claim)[0] > n
    assert largest_eta(3, 0.9, 0.25, 0.01, rule=rule) == -math.inf


@pytest.mark.parametrize(
    "name, call",
    [
        ("level", lambda: AnytimeBounds([0.5, math.nan], 10, 0.01)),
        ("level", lambda: AnytimeBounds([0.0], 10, 0.01)),
        ("level", lambda: Decision(shifted_level(0.9, 100, 1), 5, 0.01)),
        ("alpha", lambda: AnytimeBounds([0.5], 10, 0)),
        ("alpha", lambda: Decision(0.9, 5, 1.0)),
        ("total", lambda: AnytimeBounds([0.5], 0, 0.01)),
        ("correct", lambda: AnytimeBounds([0.5], 10, 0.01).update([11])),
        ("correct", lambda: AnytimeBounds([0.5], 10, 0.01).update(5)),
        ("correct", lambda: Decision(0.9, 5, 0.01).update([[5]])),
        ("rule", lambda: needed_draws(0.5, 0.1, 0.1, 0.01, rule="often")),
        ("rule", lambda: largest_eta(10, 0.5, 0.1, 0.01, rule="often")),
    ],
)
def test_wrong_arguments_are_named(name, call):
    with pytest.raises(UsageError, match=f"^{name}\\b"):
        call()
