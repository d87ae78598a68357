"""Resize round trip: each picture is halved and enlarged again, on the training side only.

Bilinear, with antialiasing on the way down, as an adversary's data loader would do it; what is
finer than the small picture is gone. resize-0.25 makes it a quarter as wide and high; 0.1 to 0.9 can
be had.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from fastue.countermeasures.base import Countermeasure, number

FACTOR = 0.5
_BLOCK = 1024  # float32 of a whole data set would be four times its size


def round_trip(images: Tensor, labels: Tensor | None, seed: int, *, factor: float) -> Tensor:
    """images uint8 [N,C,H,W] -> made smaller by `factor` and as large as they were."""
    size = tuple(images.shape[2:])
    small = tuple(max(1, round(side * factor)) for side in size)
    out = torch.empty_like(images)
    for start in range(0, len(images), _BLOCK):
        part = slice(start, start + _BLOCK)
        out[part] = _resized(_resized(images[part], small), size)
    return out


def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """uint8 [N,C,H,W] -> uint8 [N,C,*size]. In float32: the uint8 form exists on the CPU only."""
    x = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return x.round().clamp(0, 255).to(torch.uint8)


@functools.cache
def at(factor: float) -> Countermeasure:
    name = "resize" if factor == FACTOR else f"resize-{factor:g}"
    return Countermeasure(name, pictures=functools.partial(round_trip, factor=factor))


def variant(strength: str) -> Countermeasure:
    return at(number(strength, 0.1, 0.9))


COUNTERMEASURE = at(FACTOR)
