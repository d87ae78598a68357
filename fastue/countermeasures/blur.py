"""Gaussian blur: kernel of 3 pixels, sigma 1.0, on the training side only.

The literature's blur is kernel 3 with sigma 0.1 (Liu et al. 2023; APBench), whose weights beside
the centre are 1.9e-22: no blur at all. It can be had as blur-0.1 and changes no pixel, so published
columns of that name are a second `none`. Other sigmas: 0.1 to 10.
"""

import functools
import math

from torch import Tensor
from torch.nn import functional as F

from fastue.countermeasures.base import Countermeasure, by_blocks, number

SIGMA = 1.0


def blur(images: Tensor, labels: Tensor | None, seed: int, *, sigma: float) -> Tensor:
    """images uint8 [N,C,H,W] -> each channel blurred, mirrored at the edges, rounded."""
    side = math.exp(-0.5 / sigma**2)
    centre, side = 1 / (1 + 2 * side), side / (1 + 2 * side)

    def blurred(part: Tensor) -> Tensor:
        x = F.pad(part.float(), (1, 1, 1, 1), mode="reflect")
        x = side * (x[..., :-2] + x[..., 2:]) + centre * x[..., 1:-1]
        return side * (x[..., :-2, :] + x[..., 2:, :]) + centre * x[..., 1:-1, :]

    return by_blocks(images, blurred)


@functools.cache
def at(sigma: float) -> Countermeasure:
    name = "blur" if sigma == SIGMA else f"blur-{sigma:g}"
    return Countermeasure(name, pictures=functools.partial(blur, sigma=sigma))


def variant(strength: str) -> Countermeasure:
    return at(number(strength, 0.1, 10.0))


COUNTERMEASURE = at(SIGMA)
