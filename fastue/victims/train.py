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

__all__ = [
    "VictimConfig",
    "check_pair",
    "fit",
    "halves",
    "new_curves",
    "score",
    "stopped",
    "torch_seeded",
    "train_epochs",
    "train_victim",
]

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
) -> dict[str, list[float]]:
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
    model: nn.Module | None = None,
) -> tuple[nn.Module, dict[str, list[float]]]:
    """The trained victim, and curves over epochs: `loss` (mean training loss), `train_accuracy` and
    `accuracy` on the clean `test`, in percent; `picking` and `scoring` are the accuracy on its two
    halves, for an adversary who stops early (see `halves`). `right`: which test pictures, a
    byte each, 1 or 0.

    Initial weights, order, augmentation and what `step` draws depend on `seed` alone; with `model`,
    which is trained in place, the initial weights are its own. `train_accuracy` is on the training
    pictures as they are in `train`, without augmentation, at the last epoch only (a list of one).
    """
    c = config
    if model is None:
        model = models.build(c.arch, train.num_classes, train.shape[0], seed=seed)
    model = model.to(train.device, memory_format=torch.channels_last)
    curves = new_curves()
    with torch_seeded(seed, train.device):
        for loss in train_epochs(model, train, c, seed=seed, step=step):
            curves["loss"].append(round(loss, 4))
            score(curves, hits(model, batches(test, TEST_BATCH), precision=c.precision))
            latest = {"loss": curves["loss"][-1], "accuracy": curves["accuracy"][-1]}
            progress(len(curves["loss"]), c.epochs, latest)
    right = hits(model, batches(train, TEST_BATCH), precision=c.precision)
    curves["train_accuracy"].append(round(percent(right), 3))
    return model, curves


def train_epochs(
    model: nn.Module,
    train: ImageDataset,
    config: VictimConfig,
    *,
    seed: int,
    step: Callable[..., Tensor] = train_step,
) -> Iterator[float]:
    """Train `model` in place by the recipe; the mean training loss after each epoch."""
    c = config
    n, batch = len(train), min(c.batch, len(train))
    optimizer = sgd(model, c.lr)
    steps = n // batch
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.epochs * steps)
    for epoch in range(c.epochs):
        model.train()
        total = torch.zeros((), device=train.device)  # read once an epoch: reading waits
        order = epoch_order(n, seed, epoch)[: steps * batch]
        for x, y, index in batches(train, batch, order):
            if c.augment:
                x = crop_flip(x, index, seed=seed, epoch=epoch, rows=n)
            total += step(model, optimizer, to_input(x), y, precision=c.precision, clip=c.clip)
            schedule.step()
        yield float(total) / steps


def new_curves() -> dict[str, list[float]]:
    """The curves of `fit`, empty."""
    names = ("loss", "accuracy", "picking", "scoring", "train_accuracy")
    return {name: [] for name in names}


def score(curves: dict, right: Tensor) -> None:
    """Add to the curves which test pictures were classified right, bool [N]: in all, in each of the
    two halves, and, in memory, one by one (`right`)."""
    curves.setdefault("right", []).append(right.bool().cpu().numpy().tobytes())
    picking, scoring = (rows.to(right.device) for rows in halves(len(right)))
    for name, part in (
        ("accuracy", right),
        ("picking", right[picking]),
        ("scoring", right[scoring]),
    ):
        curves[name].append(round(percent(part), 3))


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
def torch_seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Dropout and random training steps draw from torch's global generator: seeded here, and put
    back as it was afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
