"""What a victim is trained on.

`clean` (the originals), `protected` (the written files), `random-sample` and `random-class` (random
noise of the same budget: a protection that does no better than these protects nothing). On request
`protected-25`, `protected-50` and `protected-75`: that percentage of the written files, the rest as
it was, for an owner who can protect only some of what an adversary collects.
"""

from dataclasses import replace

import torch

from fastue.data.budget import Budget
from fastue.data.controls import random_noise
from fastue.data.dataset import ImageDataset
from fastue.data.keyed import keyed_generator
from fastue.data.writers import protected_pictures

ARMS = ("clean", "protected", "random-sample", "random-class")
CONTROLS = ("random-sample", "random-class")
PARTLY = ("protected-25", "protected-50", "protected-75")


def arm_pictures(
    arm: str, seed: int, protected: ImageDataset, originals: ImageDataset, budget: Budget
) -> ImageDataset:
    """The training set of an arm."""
    if arm == "protected":
        return protected
    if arm == "clean":
        return originals
    if arm in PARTLY:
        return partly_protected(protected, originals, int(arm.removeprefix("protected-")), seed)
    per = arm.removeprefix("random-")
    if per == "class":
        rows, count = originals.labels, originals.num_classes
    else:
        rows, count = torch.arange(len(originals), device=originals.device), len(originals)
    noise = random_noise(originals.shape, count, budget, seed, per).to(originals.device)
    return replace(originals, images=protected_pictures(originals.images, noise, rows), source=arm)


def partly_protected(
    protected: ImageDataset, originals: ImageDataset, percent: int, seed: int
) -> ImageDataset:
    """The originals with `percent` of them protected, drawn by `seed`; a larger share holds the
    smaller ones of the same seed. Both sets have the same rows.
    """
    n = len(originals)
    rows = torch.from_numpy(keyed_generator(seed, "partly-protected").permutation(n))
    rows = rows[: round(n * percent / 100)]
    images = originals.images.clone()
    images[rows.to(images.device)] = protected.take(rows.to(protected.device)).to(images.device)
    return replace(originals, images=images, source=f"protected-{percent}")


def budget_key(budget: Budget) -> list:
    """What a control's row is kept under. That of linf stays what it was before l2 came."""
    return [budget.levels] if budget.norm == "linf" else [budget.norm, budget.eps]
