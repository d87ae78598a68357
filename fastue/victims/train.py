"""The adversary's attempt: train a victim on the pictures and test it on clean ones.

Recipe of the EMN and PUE configurations: SGD 0.1, momentum 0.9, weight decay 5e-4, cosine to zero,
batch 128, gradients clipped at norm 5, random crop with padding 4 and horizontal flip.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fastue import models
from fastue.core.errors import DataError
from fastue.data.augment import crop_flip
from fastue.data.dataset import ImageDataset, batches, epoch_order
from fastue.data.keyed import keyed_generator
from fastue.models.training import hits, percent, sgd, to_input, train_step
from fastue.victims.config import VictimConfig

__all__ = ["VictimConfig", "check_pair", "fit", "halves", "stopped", "train_victim"]

TEST_BATCH = 500


def check_pair(train: ImageDataset, test: ImageDataset) -> None:
    """Raises DataError where a victim trained on `train` cannot be tested on `test`."""
    if train.shape != test.shape:
        raise DataError(
            f"{test.source}: pictures are {_size(test)}, those of {train.source} are "
            f"{_size(train)}; pass --size"
        )
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))[:5]
        raise DataError(
            f"{test.source}: its classes are not those of {train.source} "
            f"(differ in {', '.join(odd)})"
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
    step: Callable[..., Tensor] = train_step,
    progress: Callable[[int, int, dict], None] = lambda done, total, info: None,
) -> dict:
    """The curves of `fit`."""
    return fit(train, test, config, seed=seed, step=step, progress=progress)[1]


def fit(
    train: ImageDataset,
    test: ImageDataset,
    config: VictimConfig,
    *,
    seed: int,
    step: Callable[..., Tensor] = train_step,
    progress: Callable[[int, int, dict], None] = lambda done, total, info: None,
) -> tuple[nn.Module, dict]:
    """The trained victim, and curves over epochs: `loss` (mean training loss), `train_accuracy` and
    `accuracy` on the clean `test`, in percent; `picking` and `scoring` are the accuracy on its two
    halves, for an adversary who stops early (see `halves`). `right`, bool [epochs, test pictures] in
    memory, says which ones.

    Initial weights, order, augmentation and what `step` draws depend on `seed` alone.
    `train_accuracy` is on the training pictures as they are in `train`, without augmentation, at
    the last epoch only (a list of one).
    """
    c = config
    n, batch = len(train), min(c.batch, len(train))
    model = models.build(c.arch, train.num_classes, train.shape[0], seed=seed)
    model = model.to(train.device, memory_format=torch.channels_last)
    optimizer = sgd(model, c.lr)
    steps = n // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.epochs * steps)
    names = ("loss", "accuracy", "picking", "scoring", "train_accuracy")
    curves: dict = {name: [] for name in names}
    rights: list[Tensor] = []
    picking, scoring = (rows.to(test.device) for rows in halves(len(test)))
    with _torch_seeded(seed, train.device):
        for epoch in range(c.epochs):
            model.train()
            total = torch.zeros((), device=train.device)  # read once an epoch: reading waits
            order = epoch_order(n, seed, epoch)[: steps * batch]
            for x, y, index in batches(train, batch, order):
                if c.augment:
                    x = crop_flip(x, index, seed=seed, epoch=epoch, rows=n)
                total += step(model, optimizer, to_input(x), y, precision=c.precision, clip=c.clip)
                schedule.step()
            curves["loss"].append(round(float(total) / steps, 4))
            right = hits(model, batches(test, TEST_BATCH), precision=c.precision)
            rights.append(right.bool().cpu())
            curves["accuracy"].append(round(percent(right), 3))
            curves["picking"].append(round(percent(right[picking]), 3))
            curves["scoring"].append(round(percent(right[scoring]), 3))
            latest = {"loss": curves["loss"][-1], "accuracy": curves["accuracy"][-1]}
            progress(epoch + 1, c.epochs, latest)
    right = hits(model, batches(train, TEST_BATCH), precision=c.precision)
    curves["train_accuracy"].append(round(percent(right), 3))
    curves["right"] = torch.stack(rights)
    return model, curves


def halves(n: int) -> tuple[Tensor, Tensor]:
    """Rows of a test set on which an adversary picks the epoch to stop at, and rows on which that
    epoch is scored: two halves drawn once, the same for every victim."""
    order = torch.from_numpy(keyed_generator(0, "early-stopping").permutation(n))
    return order[: n // 2], order[n // 2 :]


def stopped(curves: dict[str, list[float]]) -> tuple[float, int]:
    """Accuracy on one half of the test set at the epoch that was best on the other, and that epoch,
    counted from 1: what an adversary with some clean pictures really gets."""
    best = max(range(len(curves["picking"])), key=curves["picking"].__getitem__)
    return curves["scoring"][best], best + 1


@contextlib.contextmanager
def _torch_seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout and random training steps draw from torch's global generator: seeded here, and put
    back as it was afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
