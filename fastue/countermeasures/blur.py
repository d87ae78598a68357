"""Gaussian blur: kernel of 3 pixels, sigma 1.0, on the training side only.

The literature's blur is kernel 3 with sigma 0.1 (Liu et al. 2023; APBench), whose weights beside
the centre are 1.9e-22: no blur at all. It can be had as blur-0.1 and changes no pixel, so published
columns of that name are a second `none`. Other sigmas: 0.1 to 10.
"""

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fastue.countermeasures.base import Countermeasure, number

SIGMA = 1.0
_BLOCK = 1024  # float32 of a whole data set would be four times its size


def blur(images: Tensor, labels: Tensor | None, seed: int, *, sigma: float) -> Tensor:
    """images uint8 [N,C,H,W] -> each channel blurred, mirrored at the edges, rounded."""
    side = math.exp(-0.5 / sigma**2)
    centre, side = 1 / (1 + 2 * side), side / (1 + 2 * side)
    out = torch.empty_like(images)
    for start in range(0, len(images), _BLOCK):
        part = slice(start, start + _BLOCK)
        x = F.pad(images[part].float(), (1, 1, 1, 1), mode="reflect")
        x = side * (x[..., :-2] + x[..., 2:]) + centre * x[..., 1:-1]
        x = side * (x[..., :-2, :] + x[..., 2:, :]) + centre * x[..., 1:-1, :]
        out[part] = x.round().clamp(0, 255)
    return out


@functools.cache
def at(sigma: float) -> Countermeasure:
    name = "blur" if sigma == SIGMA else f"blur-{sigma:g}"
    return Countermeasure(name, pictures=functools.partial(blur, sigma=sigma))


def variant(strength: str) -> Countermeasure:
    return at(number(strength, 0.1, 10.0))


COUNTERMEASURE = at(SIGMA)
