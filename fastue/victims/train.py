"""The adversary's plain attempt: train a victim on the pictures and test it on clean ones.

Recipe of the EMN and PUE configurations: SGD 0.1, momentum 0.9, weight decay 5e-4, cosine to zero, batch 128,
gradients clipped at norm 5, random crop with padding 4 and horizontal flip.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from fastue import models
from fastue.core.errors import DataError
from fastue.data.augment import crop_flip
from fastue.data.dataset import ImageDataset, batches, epoch_order
from fastue.models.training import accuracy, sgd, to_input, train_step


@dataclass(frozen=True)
class VictimConfig:
    arch: str = "resnet18"
    epochs: int = 60
    batch: int = 128
    lr: float = 0.1
    clip: float = 5.0
    augment: bool = True
    precision: str = "float32"


def check_pair(train: ImageDataset, test: ImageDataset) -> None:
    """Raises DataError where a victim trained on `train` cannot be tested on `test`."""
    if train.shape != test.shape:
        raise DataError(
            f"{test.source}: pictures are {_size(test)}, those of {train.source} are {_size(train)}; pass --size"
        )
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[:5]
        raise DataError(
            f"{test.source}: its classes are not those of {train.source} (differ in {', '.join(odd)})"
        )


def _size(data: ImageDataset) -> str:
    c, h, w = data.shape
    return f"{h}x{w} with {c} channel{'s' if c > 1 else ''}"


def train_victim(
    train: ImageDataset,
    test: ImageDataset,
    config: VictimConfig,
    *,
    seed: int,
    progress: Callable[[int, int, dict], None] = lambda done, total, info: None,
) -> dict[str, list[float]]:
    """The curves of `fit`."""
    return fit(train, test, config, seed=seed, progress=progress)[1]


def fit(
    train: ImageDataset,
    test: ImageDataset,
    config: VictimConfig,
    *,
    seed: int,
    progress: Callable[[int, int, dict], None] = lambda done, total, info: None,
) -> tuple[nn.Module, dict[str, list[float]]]:
    """The trained victim, and curves over epochs: `loss` (mean training loss), `train_accuracy` and `accuracy` on the
    clean `test`, in percent.

    Initial weights, order and augmentation depend on `seed` alone. `train_accuracy` is on the training pictures as
    written, without augmentation, at the last epoch only (a list of one).
    """
    c = config
    n, batch = len(train), min(c.batch, len(train))
    model = models.build(c.arch, train.num_classes, train.shape[0], seed=seed)
    model = model.to(train.device, memory_format=torch.channels_last)
    optimizer = sgd(model, c.lr)
    per_epoch = n // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.epochs * per_epoch)
    curves: dict[str, list[float]] = {"loss": [], "accuracy": [], "train_accuracy": []}
    for epoch in range(c.epochs):
        model.train()
        total = torch.zeros((), device=train.device)
        order = epoch_order(n, seed, epoch)[: per_epoch * batch]
        for x, y, index in batches(train, batch, order):
            if c.augment:
                x = crop_flip(x, index, seed=seed, epoch=epoch, rows=n)
            total += train_step(
                model, optimizer, to_input(x), y, precision=c.precision, clip=c.clip
            )
            schedule.step()
        curves["loss"].append(round(float(total) / per_epoch, 4))
        curves["accuracy"].append(
            round(accuracy(model, batches(test, 500), precision=c.precision), 3)
        )
        progress(
            epoch + 1, c.epochs, {"loss": curves["loss"][-1], "accuracy": curves["accuracy"][-1]}
        )
    curves["train_accuracy"].append(
        round(accuracy(model, batches(train, 500), precision=c.precision), 3)
    )
    return model, curves
