"""Bit depth reduction (Liu et al. 2023, Image Shortcut Squeezing): two bits a channel are kept.

The six lower bits become 0, on the training side only. bit-depth-4 keeps four; 1 to 7 can be had.
"""

import functools

from torch import Tensor

from fastue.countermeasures.base import Countermeasure, number

BITS = 2


def posterize(images: Tensor, labels: Tensor | None, seed: int, *, bits: int) -> Tensor:
    """images uint8 [N,C,H,W] -> the `bits` upper bits of each pixel."""
    return images & (0x100 - (1 << (8 - bits)))


@functools.cache
def at(bits: int) -> Countermeasure:
    name = "bit-depth" if bits == BITS else f"bit-depth-{bits}"
    return Countermeasure(name, pictures=functools.partial(posterize, bits=bits))


def variant(strength: str) -> Countermeasure:
    return at(number(strength, 1, 7))


COUNTERMEASURE = at(BITS)
