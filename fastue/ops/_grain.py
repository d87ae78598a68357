"""Coarse noise in plain PyTorch: a value of the bank is shown on a block of grain x grain pixels.

csrc/common/view.h is the twin. Where grain does not divide the picture, the last blocks of a line
and of a column are smaller.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import pad


def size(side: int, grain: int) -> int:
    """Blocks along a side of `side` pixels."""
    return -(-side // grain)


def bank_shape(shape: Sequence[int], grain: int) -> tuple[int, int, int]:
    """(C, h, w) of noise for pictures of `shape` (C, H, W)."""
    c, h, w = shape
    return c, size(h, grain), size(w, grain)


def spread(noise: torch.Tensor, grain: int, height: int, width: int) -> torch.Tensor:
    """noise [N, C, ceil(H/grain), ceil(W/grain)] at the size of the pictures, [N, C, H, W]."""
    if grain == 1:
        return noise
    rows = torch.arange(height, device=noise.device) // grain
    columns = torch.arange(width, device=noise.device) // grain
    return noise.index_select(2, rows).index_select(3, columns)


def block_sum(t: torch.Tensor, grain: int) -> torch.Tensor:
    """Of t [N, C, H, W] over each block. Summed line by line in t's dtype: the bits are part of the
    definition."""
    if grain == 1:
        return t
    padded = _padded(t, grain)
    total = torch.zeros_like(padded[..., ::grain, ::grain])
    for down in range(grain):
        for right in range(grain):
            total += padded[..., down::grain, right::grain]
    return total


def block_most(t: torch.Tensor, grain: int) -> torch.Tensor:
    """The largest value of t [N, C, H, W], nowhere below 0, in each block."""
    if grain == 1:
        return t
    padded = _padded(t, grain)
    offsets = [(down, right) for down in range(grain) for right in range(grain)]
    parts = [padded[..., down::grain, right::grain] for down, right in offsets]
    return torch.stack(parts).amax(0)


def block_pixels(like: torch.Tensor, grain: int) -> torch.Tensor:
    """How many pixels each block has, [ceil(H/grain), ceil(W/grain)] in the dtype of
    like [N, C, H, W]."""
    h, w = like.shape[2:]
    ones = torch.ones((1, 1, h, w), dtype=like.dtype, device=like.device)
    return block_sum(ones, grain)[0, 0]


def _padded(t: torch.Tensor, grain: int) -> torch.Tensor:
    h, w = t.shape[2:]
    return pad(t, (0, -w % grain, 0, -h % grain))
