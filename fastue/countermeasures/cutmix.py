"""CutMix (Yun et al. 2019): a box of another picture of the batch is pasted in; the labels are
mixed by area.

As in the form that papers on unlearnable examples use: twice in a row, each time in half of the
pictures; the box takes a share of the area from Beta(1, 1), less what falls outside.
"""

import torch
from torch import Tensor

from fastue.countermeasures.base import Countermeasure
from fastue.countermeasures.cutout import inside
from fastue.countermeasures.mixup import Parts, blended
from fastue.models.training import train_step

TIMES, PROBABILITY = 2, 0.5


def cutmix(x: Tensor, y: Tensor) -> tuple[Tensor, Parts]:
    """x float [B,C,H,W], y int64 [B] -> pictures with boxes of others, and the labels with their
    shares of each picture, which add up to one."""
    b, _, h, w = x.shape
    source, parts = x, [(y, torch.ones(b, device=x.device))]
    for _ in range(TIMES):
        other = torch.randperm(b, device=x.device)
        side = torch.rand(b, 1, device=x.device).sqrt()  # of the box, in sides of the picture
        box = inside(side, h)[:, :, None] & inside(side, w)[:, None, :]
        box &= (torch.rand(b, device=x.device) < PROBABILITY)[:, None, None]
        x = torch.where(box[:, None], source[other], x)
        pasted = box.float().mean((1, 2))
        parts = [(labels, share * (1 - pasted)) for labels, share in parts]
        parts.append((y[other], pasted))
    return x, parts


def step(model, optimizer, x: Tensor, y: Tensor, **options) -> Tensor:
    x, parts = cutmix(x, y)
    return train_step(model, optimizer, x, y, loss=blended(parts), **options)


COUNTERMEASURE = Countermeasure("cutmix", step=step)
