"""UEraser (Qin et al. 2023): strong augmentations, and of several draws the one that errs most.

Each draw: plasma brightness, plasma contrast and a shuffle of the channels, each in half of the
pictures, and TrivialAugment. The loss of a picture is its largest of five draws in the first 30 %
of the epochs (60 of 200), and that of one draw afterwards. `ueraser-lite` has one draw throughout,
`ueraser-max` five. All draws go through the network as one batch.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fastue.core.errors import UsageError
from fastue.countermeasures import trivialaugment
from fastue.countermeasures.base import Countermeasure
from fastue.models.training import train_step
from fastue.victims.train import train_victim

DRAWS, HARD_SHARE = 5, 0.3
ROUGHNESS, INTENSITY = (0.3, 0.7), (0.5, 1.0)


def plasma(x: Tensor) -> Tensor:
    """Cloudy noise in [0, 1] for pictures x [B,C,H,W]: float32 [B,1,H,W], reaching 0 and 1 in each.

    Random grids of 2, 3, 5, 9 … points a side up to the picture's, drawn smoothly and added, each
    weaker than the one before by a roughness of the picture's own.
    """
    b, _, h, w = x.shape
    roughness, amplitude = _uniform(x, *ROUGHNESS), 1.0
    clouds, points = torch.zeros(b, 1, h, w, device=x.device), 2
    while points <= max(h, w) + 1:
        grid = torch.rand(b, 1, points, points, device=x.device)
        clouds += amplitude * F.interpolate(grid, (h, w), mode="bilinear", align_corners=True)
        amplitude, points = amplitude * roughness, 2 * points - 1
    low, high = clouds.amin((2, 3), keepdim=True), clouds.amax((2, 3), keepdim=True)
    return (clouds - low) / (high - low).clamp_min(1e-6)


def _uniform(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """A number a picture, [B,1,1,1]."""
    return torch.rand(len(x), 1, 1, 1, device=x.device) * (high - low) + low


def augmented(x: Tensor) -> Tensor:
    """Model input x [B,C,H,W] -> one draw of each picture."""
    brighter = (x + (2 * plasma(x) - 1) * _uniform(x, *INTENSITY)).clamp(0, 1)
    x = torch.where(_uniform(x) < 0.5, brighter, x)
    contrast = ((x - 0.5) * 4 * plasma(x) + 0.5).clamp(0, 1)
    x = torch.where(_uniform(x) < 0.5, contrast, x)
    order = torch.rand(x.shape[:2], device=x.device).argsort(1)[:, :, None, None]
    x = torch.where(_uniform(x) < 0.5, x.gather(1, order.expand_as(x)), x)
    return trivialaugment.each(trivialaugment.transform(), x)


def worst(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over pictures of the largest loss of their draws: logits [K*B, classes], draw by draw,
    y int64 [B]."""
    losses = F.cross_entropy(logits, y.repeat(len(logits) // len(y)), reduction="none")
    return losses.view(-1, len(y)).amax(0).mean()


def step(model, optimizer, x: Tensor, y: Tensor, *, draws: int = DRAWS, **options) -> Tensor:
    x = torch.cat([augmented(x) for _ in range(draws)])
    x = x.contiguous(memory_format=torch.channels_last)
    return train_step(model, optimizer, x, y, loss=worst, **options)


def train(train, test, config, *, seed, step, means, progress) -> dict[str, list[float]]:
    """`step` with five draws, then with one."""
    finished = 0

    def counted(done: int, total: int, info: dict) -> None:
        nonlocal finished
        finished = done
        progress(done, total, info)

    def staged(*arguments, **options) -> Tensor:
        hard = finished < HARD_SHARE * config.epochs
        return step(*arguments, draws=DRAWS if hard else 1, **options)

    return train_victim(train, test, config, seed=seed, step=staged, progress=counted)


COUNTERMEASURE = Countermeasure("ueraser", step=step, train=train, cost=3.0)
VARIANTS = {
    "lite": Countermeasure("ueraser-lite", step=partial(step, draws=1), cost=1.4),
    "max": Countermeasure("ueraser-max", step=partial(step, draws=DRAWS), cost=6.5),
}


def variant(strength: str) -> Countermeasure:
    """`lite` or `max`. Raises UsageError for another."""
    if strength not in VARIANTS:
        raise UsageError(f"{strength}: ueraser comes as {' and '.join(VARIANTS)}")
    return VARIANTS[strength]
