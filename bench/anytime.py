"""What looking at every draw costs: `python -m bench.anytime`. Simulated, the same on any machine.

Counts of 2,000 pictures by four laws; points are percent of the pictures. First the anytime bound
less that of a declared N = 1000 on the same draws, jointly over seven eta and two q, then with
other weights of the e-process's prior, then after how many draws yes-or-no questions are decided.
"""

import math

import numpy as np

from fastue.certificates import anytime, bounds

TOTAL, N, ALPHA, TRIALS = 2000, 1000, 0.01, 100
QS, ETAS = (0.5, 0.9), (0.04, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)  # of sigma
GAPS = (-4, -2, -1, 1, 2, 4)  # points


def beta_binomial(mean: float, sd: float, shape: int | tuple, random) -> np.ndarray:
    """Counts of accuracies of that mean and standard deviation, as fractions."""
    weight = mean * (1 - mean) / sd**2 - 1
    return random.binomial(TOTAL, random.beta(mean * weight, (1 - mean) * weight, shape))


def two_bumps(shape: int | tuple, random) -> np.ndarray:
    """A lower one, and a higher one of every fifth draw."""
    high = random.random(shape) < 0.2
    return random.binomial(TOTAL, np.where(high, 0.45, 0.33))


LAWS = {
    "binomial, 40 %": lambda shape, random: random.binomial(TOTAL, 0.4, shape),
    "beta-binomial, 40 %, sd 2": lambda shape, random: beta_binomial(0.4, 0.02, shape, random),
    "beta-binomial, 60 %, sd 5": lambda shape, random: beta_binomial(0.6, 0.05, shape, random),
    "two bumps, 33 and 45 %": two_bumps,
}


def prices(law, trials: int = TRIALS, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Mean price at each (q, eta), NaN where either side abstains, and the median fixed bound."""
    random, levels = np.random.default_rng(0), bounds.grid_levels(QS, ETAS, 1.0)
    price, fixed = [], []
    for _ in range(trials):
        counts = law(n, random)
        watched = anytime.AnytimeBounds(levels, TOTAL, ALPHA)
        watched.update(counts)
        declared = bounds.certify(counts, TOTAL, q=QS, eta=ETAS, sigma=1.0, alpha=ALPHA)
        fixed.append([np.nan if c.abstains else c.correct for c in declared])
        price.append([np.nan if b is None else b for b in watched.bounds])
    difference = np.array(price, float) - np.array(fixed, float)
    return 100 * difference.mean(0) / TOTAL, 100 * np.median(fixed, 0) / TOTAL


def price_table() -> None:
    for name, law in LAWS.items():
        price, fixed = prices(law)
        print(f"\n{name}: price in points at N = {N} (the fixed bound, percent)")
        print("eta/sigma " + " ".join(f"{eta:>13g}" for eta in ETAS))
        for row, q in enumerate(QS):
            part = slice(row * len(ETAS), (row + 1) * len(ETAS))
            cells = zip(price[part], fixed[part], strict=True)
            text = [f"{p:5.2f} ({f:5.2f})" if p == p else f"{'-':>13}" for p, f in cells]
            print(f"q = {q:<5g} " + " ".join(text))


def prior_table() -> None:
    print("\nprior's weight: mean price in points of the second law at 3,000 and at 300 draws, and")
    print("draws needed at q = 0.9")
    weight = bounds.PRIOR_DRAWS
    for bounds.PRIOR_DRAWS in (3, 10, 30, 100):
        anytime.allowed_failures.cache_clear()
        law = LAWS["beta-binomial, 40 %, sd 2"]
        means = [np.nanmean(prices(law, 20, n)[0]) for n in (3000, 300)]
        needed = bounds.needed_draws(QS, ETAS, 1.0, ALPHA)[len(ETAS) :]
        print(f"{bounds.PRIOR_DRAWS:5d}  {means[0]:.3f} {means[1]:.3f}  {[int(n) for n in needed]}")
    bounds.PRIOR_DRAWS = weight
    anytime.allowed_failures.cache_clear()


def question_table() -> None:
    print("\nq = 0.9, beta-binomial, 40 %, sd 2: draws until decided, median (of them right)")
    print("tau - quantile, points " + " ".join(f"{gap:>13g}" for gap in GAPS))
    random = np.random.default_rng(1)
    sample = np.sort(LAWS["beta-binomial, 40 %, sd 2"](10**6, random))
    for eta in (0.04, 0.4, 0.8):
        level = float(bounds.shifted_level(0.9, eta, 1.0))
        quantile = int(sample[math.ceil(level * len(sample)) - 1])
        cells = [_decided(level, quantile + round(gap * TOTAL / 100), gap) for gap in GAPS]
        print(f"eta = {eta:<4g} sigma       " + " ".join(f"{cell:>13}" for cell in cells))


def _decided(level: float, tau: int, gap: float) -> str:
    random, draws, right = np.random.default_rng(2), [], 0
    for _ in range(TRIALS):
        decision = anytime.Decision(level, tau, ALPHA)
        while decision.answer is None and decision.draws < 20_000:
            decision.update(LAWS["beta-binomial, 40 %, sd 2"](200, random))
        draws.append(decision.draws if decision.answer else math.inf)
        right += decision.answer == ("yes" if gap > 0 else "no")
    return f"{np.median(draws):g} ({100 * right / TRIALS:g} %)"


if __name__ == "__main__":
    price_table()
    prior_table()
    question_table()
