"""Cutout (DeVries and Taylor 2017): one hole of half a side in every picture, new in every batch.

Its centre is anywhere in the picture, so at the edge a part of the hole falls outside, as published.
"""

import torch
from torch import Tensor

from fastue.countermeasures.base import Countermeasure
from fastue.models.training import train_step


def cutout(x: Tensor) -> Tensor:
    """x [B,C,H,W] -> a copy with a hole of zeros, H/2 x W/2, in each picture."""
    _, _, h, w = x.shape
    half = torch.full((len(x), 1), 0.5, device=x.device)
    rows, columns = inside(half, h), inside(half, w)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def inside(side: Tensor, size: int) -> Tensor:
    """Which of `size` rows (or columns) a box takes in each picture, bool [B, size]: it is `side`
    [B, 1] sides of the picture long, and its centre is anywhere."""
    centre = torch.randint(size, side.shape, device=side.device)
    length = (side * size).int()
    start = centre - length // 2
    place = torch.arange(size, device=side.device)
    return (place >= start) & (place < start + length)


def step(model, optimizer, x: Tensor, y: Tensor, **options) -> Tensor:
    return train_step(model, optimizer, cutout(x), y, **options)


COUNTERMEASURE = Countermeasure("cutout", step=step)
