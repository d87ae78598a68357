"""The linear schedule of DDPM, and the numbers of one reverse step between any two of its times."""

import math
from functools import cache

import numpy as np

T = 1000


@cache
def alpha_bars() -> np.ndarray:
    """float64 [1000]: product of 1 - beta up to each time, beta linear from 1e-4 to 0.02."""
    return np.cumprod(1 - np.linspace(1e-4, 0.02, T))


def alpha_bar(t: int) -> float:
    """That of time `t`; 1 for -1, which is the picture itself."""
    return 1.0 if t < 0 else float(alpha_bars()[t])


def beta(t: int) -> float:
    """The variance that time `t` adds."""
    return 1 - alpha_bar(t) / alpha_bar(t - 1)


def times(start: int, steps: int) -> list[int]:
    """`steps` times from start - 1 down to 0, evenly spread; a single one is start - 1."""
    if not 1 <= steps <= start <= T:
        raise ValueError(f"1 <= steps <= start <= {T}, got steps {steps} and start {start}")
    return [round(t) for t in np.linspace(start - 1, 0, steps).tolist()]


def posterior(t: int, to: int) -> tuple[float, float, float]:
    """(c0, cx, sigma) of x_to given x_t and x0, for to < t; to = -1 gives (1, 0, 0)."""
    now, then = alpha_bar(t), alpha_bar(to)
    beta = 1 - now / then
    left = (1 - then) / (1 - now)
    return math.sqrt(then) * beta / (1 - now), math.sqrt(now / then) * left, math.sqrt(beta * left)
