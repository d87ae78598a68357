"""RandAugment (Cubuk et al. 2020): two operations of random kind and strength 9 of 30 a picture,
torchvision's defaults, drawn anew for every picture of every batch."""

from collections.abc import Callable
from functools import cache

from torch import Tensor

from fastue.core.vision import import_torchvision
from fastue.countermeasures.base import Countermeasure
from fastue.countermeasures.trivialaugment import each
from fastue.models.training import train_step


@cache
def transform() -> Callable[[Tensor], Tensor]:
    return import_torchvision("transforms.v2").RandAugment(num_ops=2, magnitude=9)


def step(model, optimizer, x: Tensor, y: Tensor, **options) -> Tensor:
    return train_step(model, optimizer, each(transform(), x), y, **options)


COUNTERMEASURE = Countermeasure("randaugment", step=step, cost=1.3)
