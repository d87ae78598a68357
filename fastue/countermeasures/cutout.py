"""Cutout (DeVries and Taylor 2017): one hole of half a side in every picture, new in every batch.

Its centre is anywhere in the picture, so at the edge a part of the hole falls outside, as published.
"""

import torch
from torch import Tensor

from fastue.countermeasures.base import Countermeasure
from fastue.models.training import train_step


def cutout(x: Tensor) -> Tensor:
    """x [B,C,H,W] -> a copy with a hole of zeros, H/2 x W/2, in each picture."""
    b, _, h, w = x.shape
    rows, columns = _inside(b, h, x.device), _inside(b, w, x.device)
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def _inside(b: int, size: int, device: torch.device) -> Tensor:
    """Which rows (or columns) the hole takes, bool [b, size]."""
    start = torch.randint(size, (b, 1), device=device) - size // 4
    place = torch.arange(size, device=device)
    return (place >= start) & (place < start + size // 2)


def step(model, optimizer, x: Tensor, y: Tensor, **options) -> Tensor:
    return train_step(model, optimizer, cutout(x), y, **options)


COUNTERMEASURE = Countermeasure("cutout", step=step)
