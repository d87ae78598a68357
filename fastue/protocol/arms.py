"""What a victim is trained on.

`clean` (the originals), `protected` (the written files), `random-sample` and `random-class` (random
noise of the same budget: a protection that does no better than these protects nothing).
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fastue.core.errors import UsageError
from fastue.data.dataset import ImageDataset
from fastue.data.keyed import keyed_generator
from fastue.data.writers import protected_pictures

ARMS = ("clean", "protected", "random-sample", "random-class")
CONTROLS = ("random-sample", "random-class")


@dataclass(frozen=True)
class Budget:
    """What a protection may change: every value by `eps` (norm "linf"), or every picture by the l2
    length `eps`, in [0,1] pixel units."""

    eps: float
    norm: str = "linf"

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise UsageError(f"norm {self.norm}: random controls are known for linf and l2")

    @classmethod
    def of(cls, manifest: dict) -> "Budget":
        """That of a manifest; the first ones do not name the norm and mean linf."""
        return cls(manifest["eps"], manifest.get("norm", "linf"))

    @property
    def levels(self) -> int:
        """Whole steps of 1/255 that one value may change."""
        return min(127, int(self.eps * 255 + 1e-6))


def budget_key(budget: Budget) -> list:
    """What a control's row is kept under. That of linf stays what it was before l2 came."""
    return [budget.levels] if budget.norm == "linf" else [budget.norm, budget.eps]


def control_noise(data: ImageDataset, budget: Budget, per: str, seed: int) -> Tensor:
    """Random noise that uses the budget up, int8 in 1/255: [N,C,H,W] for per="sample", [K,C,H,W]
    for per="class"."""
    if budget.norm == "l2":
        return random_l2_noise(data, budget.eps, per, seed)
    return random_noise(data, budget.levels, per, seed)


def random_noise(data: ImageDataset, levels: int, per: str, seed: int) -> Tensor:
    """Uniform noise in [-levels, levels].

    The control of the EMN paper (section 4); a function of (seed, per, row) only.
    """
    shape = _noise_shape(data, per)
    draw = keyed_generator(seed, f"random-{per}").uniform(-levels, levels, size=shape).round()
    return torch.from_numpy(draw).to(torch.int8)


def random_l2_noise(data: ImageDataset, eps: float, per: str, seed: int) -> Tensor:
    """Noise of random direction and l2 length `eps` in [0,1] pixel units.

    Rounding to whole levels may carry a picture out of the ball: those are shrunk until inside.
    """
    shape = _noise_shape(data, per)
    draw = keyed_generator(seed, f"random-l2-{per}").standard_normal(size=shape, dtype=np.float32)
    direction = draw.reshape(shape[0], -1)
    radius = 255 * eps
    direction *= radius / np.linalg.norm(direction, axis=1, keepdims=True)
    noise = np.empty(direction.shape, np.int8)
    rows, scale = np.arange(len(noise)), 1.0
    while len(rows):
        rounded = (direction[rows] * scale).round().clip(-127, 127)
        noise[rows] = rounded
        rows = rows[np.square(rounded).sum(1, dtype=np.float64) > radius**2]
        scale *= 0.995
    return torch.from_numpy(noise.reshape(shape))


def _noise_shape(data: ImageDataset, per: str) -> tuple[int, ...]:
    return (len(data) if per == "sample" else data.num_classes, *data.shape)


def arm_pictures(
    arm: str, seed: int, protected: ImageDataset, originals: ImageDataset, budget: Budget
) -> ImageDataset:
    """The training set of an arm."""
    if arm == "protected":
        return protected
    if arm == "clean":
        return originals
    per = arm.removeprefix("random-")
    noise = control_noise(originals, budget, per, seed).to(originals.device)
    if per == "class":
        rows = originals.labels
    else:
        rows = torch.arange(len(originals), device=originals.device)
    return replace(originals, images=protected_pictures(originals.images, noise, rows), source=arm)
