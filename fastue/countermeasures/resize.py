"""Resize round trip: each picture is halved and enlarged again, on the training side only.

Bilinear, with antialiasing on the way down, as an adversary's data loader would do it; what is
finer than the small picture is gone. resize-0.25 makes it a quarter as wide and high; 0.1 to 0.9 can
be had.
"""

import functools

from torch import Tensor
from torch.nn import functional as F

from fastue.countermeasures.base import Countermeasure, by_blocks, number

FACTOR = 0.5


def round_trip(images: Tensor, labels: Tensor | None, seed: int, *, factor: float) -> Tensor:
    """images uint8 [N,C,H,W] -> made smaller by `factor` and as large as they were."""
    size = tuple(images.shape[2:])
    small = tuple(max(1, round(side * factor)) for side in size)
    return by_blocks(images, lambda part: _resized(_resized(part, small).round(), size))


def _resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """[N,C,H,W] -> float32 [N,C,*size]: the uint8 form of it exists on the CPU only."""
    return F.interpolate(images.float(), size, mode="bilinear", antialias=True)


@functools.cache
def at(factor: float) -> Countermeasure:
    name = "resize" if factor == FACTOR else f"resize-{factor:g}"
    return Countermeasure(name, pictures=functools.partial(round_trip, factor=factor))


def variant(strength: str) -> Countermeasure:
    return at(number(strength, 0.1, 0.9))


COUNTERMEASURE = at(FACTOR)
