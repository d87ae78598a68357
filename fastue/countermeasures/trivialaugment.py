"""TrivialAugment (Müller and Hutter 2021): one operation of random kind and strength a picture.

torchvision's wide set of operations, drawn anew for every picture of every batch.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from fastue.core.vision import import_torchvision
from fastue.countermeasures.base import Countermeasure
from fastue.models.training import to_input, train_step


def each(transform: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Model input x [B,C,H,W] through a transform of uint8 pictures [C,H,W], one by one: torchvision
    draws once a call."""
    pictures = x.mul(255).round().to(torch.uint8)
    return to_input(torch.stack([transform(picture) for picture in pictures]))


@cache
def transform() -> Callable[[Tensor], Tensor]:
    return import_torchvision("transforms.v2").TrivialAugmentWide()


def step(model, optimizer, x: Tensor, y: Tensor, **options) -> Tensor:
    return train_step(model, optimizer, each(transform(), x), y, **options)


COUNTERMEASURE = Countermeasure("trivialaugment", step=step, cost=1.2)
