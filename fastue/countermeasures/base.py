"""What a countermeasure is: other training pictures, another training step, or another training."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fastue.core.errors import DataError, UsageError
from fastue.data.dataset import ImageDataset
from fastue.models.training import train_step


def identity(images: Tensor, labels: Tensor | None, seed: int) -> Tensor:
    return images


@dataclass(frozen=True)
class Means:
    """What an adversary has beside the protected files.

    aux       clean pictures of the same classes, none of them protected or in the test set; on the
              device of the training set
    cache     a folder where what takes long and depends on `aux` alone may be kept (a purifier)
    progress  called as progress(phase, done, total) by what takes long before the training
    """

    aux: ImageDataset | None = None
    cache: Path | None = None
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None


@dataclass(frozen=True)
class Countermeasure:
    """A name, and what differs from plain training.

    pictures  (images uint8 [N,C,H,W], labels int64 [N], seed) -> uint8 of the same shape: applied
              once to the whole training set. Must not write into `images`. Random draws come from
              `seed` (`keyed_generator(seed, name)`), so that a victim can be trained again.
    test      whether the pictures of the clean test set go through `pictures` too. Their labels
              are not told: it gets None.
    step      replaces fastue.models.training.train_step, same arguments. Random draws may come
              from torch's global generator, which a victim's training seeds.
    data      (training set, seed, means) -> training set, instead of `pictures`: for what takes
              `means.aux`, or more or fewer pictures.
    train     (training set, test set, VictimConfig, *, seed, step, means, progress) -> curves as
              fastue.victims.train.fit gives them: replaces the whole training.
    aux       whether it needs `means.aux`
    cost      seconds of a victim, in those of a plainly trained one: for the time left
    archs     the networks it is for; empty: all of the attack
    version   raise it when the result changes: victims trained before are then trained anew.
    """

    name: str
    pictures: Callable[[Tensor, Tensor | None, int], Tensor] = identity
    test: bool = False
    step: Callable[..., Tensor] = train_step
    data: Callable[[ImageDataset, int, Means], ImageDataset] | None = None
    train: Callable[..., dict] | None = None
    aux: bool = False
    cost: float = 1.0
    archs: tuple[str, ...] = ()
    version: int = 1

    def training_set(self, data: ImageDataset, seed: int, means: Means = Means()) -> ImageDataset:
        """What the victim is trained on; with `pictures` the labels, ids and classes are those of
        `data`."""
        if self.data is not None:
            return self.data(data, seed, means)
        return self._apply(data, data.labels, seed)

    def test_set(self, data: ImageDataset, seed: int) -> ImageDataset:
        """`data` as the trained victim is asked about it."""
        return self._apply(data, None, seed) if self.test else data

    def _apply(self, data: ImageDataset, labels: Tensor | None, seed: int) -> ImageDataset:
        images = self.pictures(data.images, labels, seed)
        if images.dtype != torch.uint8 or images.shape != data.images.shape:
            raise DataError(
                f"countermeasure {self.name}: its pictures are {images.dtype} {list(images.shape)};"
                f" they must be torch.uint8 {list(data.images.shape)}, like those it is given"
            )
        return replace(data, images=images.to(data.device))


def by_blocks(images: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """change(uint8 [B,C,H,W]) -> float32 of the same shape, for so many pictures at a time, rounded
    and clamped to uint8: float32 of a whole data set would be four times its size."""
    out = torch.empty_like(images)
    for start in range(0, len(images), 1024):
        part = slice(start, start + 1024)
        out[part] = change(images[part]).round().clamp(0, 255)
    return out


def number(strength: str, low: float, high: float) -> int | float:
    """What stands behind the name of a countermeasure (the 30 of jpeg-30): a whole number where
    `low` is one. Raises UsageError where it is none, or outside of low to high."""
    whole = isinstance(low, int)
    try:
        value = int(strength) if whole else float(strength)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        kind = "whole number" if whole else "number"
        raise UsageError(f"{strength} is no {kind} from {low} to {high}")
    return value
