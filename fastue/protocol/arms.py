"""What a victim is trained on.

`clean` (the originals), `protected` (the written files), `random-sample` and `random-class` (random
noise of the same budget: a protection that does no better than these protects nothing).
"""

from dataclasses import replace

import torch

from fastue.data.budget import Budget
from fastue.data.controls import random_noise
from fastue.data.dataset import ImageDataset
from fastue.data.writers import protected_pictures

ARMS = ("clean", "protected", "random-sample", "random-class")
CONTROLS = ("random-sample", "random-class")


def arm_pictures(
    arm: str, seed: int, protected: ImageDataset, originals: ImageDataset, budget: Budget
) -> ImageDataset:
    """The training set of an arm."""
    if arm == "protected":
        return protected
    if arm == "clean":
        return originals
    per = arm.removeprefix("random-")
    if per == "class":
        rows, count = originals.labels, originals.num_classes
    else:
        rows, count = torch.arange(len(originals), device=originals.device), len(originals)
    noise = random_noise(originals.shape, count, budget, seed, per).to(originals.device)
    return replace(originals, images=protected_pictures(originals.images, noise, rows), source=arm)


def budget_key(budget: Budget) -> list:
    """What a control's row is kept under. That of linf stays what it was before l2 came."""
    return [budget.levels] if budget.norm == "linf" else [budget.norm, budget.eps]
