"""Mixup (Zhang et al. 2018): every picture is blended with another one of its batch, in a share
from Beta(1, 1), and so are the labels."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastue.countermeasures.base import Countermeasure
from fastue.models.training import train_step

Parts = Sequence[tuple[Tensor, Tensor]]  # labels int64 [B], and their shares float32 [B]


def mixup(x: Tensor, y: Tensor) -> tuple[Tensor, Parts]:
    """x float [B,C,H,W], y int64 [B] -> blended pictures, and their labels with shares that add up
    to one. The share is that of the batch, as published: uniform, which is Beta(1, 1)."""
    other = torch.randperm(len(x), device=x.device)
    share = torch.rand((), device=x.device)
    shares = share.expand(len(x))
    return torch.lerp(x[other], x, share), [(y, shares), (y[other], 1 - shares)]


def blended(parts: Parts) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy to several labels, each by its share: the loss of a training step."""

    def loss(logits: Tensor, _: Tensor) -> Tensor:
        terms = [s * F.cross_entropy(logits, y, reduction="none") for y, s in parts]
        return torch.stack(terms).sum(0).mean()

    return loss


def step(model, optimizer, x: Tensor, y: Tensor, **options) -> Tensor:
    x, parts = mixup(x, y)
    return train_step(model, optimizer, x, y, loss=blended(parts), **options)


COUNTERMEASURE = Countermeasure("mixup", step=step)
