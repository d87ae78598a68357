"""Adversarial training (Madry et al. 2018): on the worst pictures that PGD finds around each.

L-inf 8/255 in 10 steps of a quarter of it, from x + step * N(0, 1), attacked in eval mode, as in
EMN, ISS and APBench. `adversarial-4` has 4/255 (the radius REM is made for), `adversarial-l2` an L2
ball of radius 1.0 with APBench's steps.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue.core.errors import UsageError
from fastue.countermeasures.base import Countermeasure
from fastue.models.training import autocast, train_step

STEPS = 10


def attacked(
    model: nn.Module, x: Tensor, y: Tensor, *, radius: float, l2: bool = False, precision: str
) -> Tensor:
    """Pictures in [0, 1] within `radius` (L-inf, or L2) of x [B,C,H,W] in [0, 1], moved uphill in
    the loss of `model`, which is left in eval mode."""
    model.eval()
    size = radius / 4
    noise = torch.randn_like(x)
    moved = x + size * (_unit(noise) if l2 else noise)
    for _ in range(STEPS):
        moved.requires_grad_()
        with autocast(x.device, precision):
            # A sum, so that a picture's gradient has the size it has alone.
            loss = F.cross_entropy(model(moved), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, moved)
        moved = moved.detach() + size * (_unit(gradient) if l2 else gradient.sign())
        shift = moved - x
        shift = shift.renorm(2, 0, radius) if l2 else shift.clamp(-radius, radius)
        moved = (x + shift).clamp(0, 1)
    return moved


def _unit(x: Tensor) -> Tensor:
    """Each picture divided by its L2 norm."""
    return x / x.flatten(1).norm(dim=1).clamp_min(1e-10)[:, None, None, None]


def step(
    model, optimizer, x: Tensor, y: Tensor, *, radius: float, l2: bool = False, **options
) -> Tensor:
    x = attacked(model, x, y, radius=radius, l2=l2, precision=options["precision"])
    model.train()
    return train_step(model, optimizer, x, y, **options)


def _named(name: str, **ball) -> Countermeasure:
    return Countermeasure(name, step=partial(step, **ball), cost=STEPS + 1.0)


COUNTERMEASURE = _named("adversarial", radius=8 / 255)
VARIANTS = {
    "4": _named("adversarial-4", radius=4 / 255),
    "l2": _named("adversarial-l2", radius=1.0, l2=True),
}


def variant(strength: str) -> Countermeasure:
    """`4` or `l2`. Raises UsageError for another."""
    if strength not in VARIANTS:
        raise UsageError(f"{strength}: adversarial comes as {' and '.join(VARIANTS)}")
    return VARIANTS[strength]
