"""Weight recovery: undo a protection by moving a surrogate's weights within an l2 ball.

From PUE (arXiv 2405.03316): projected SGD on a few clean pictures, and a random search. By default
the ball is a ball and BatchNorm statistics stay as they are, so every network visited is one the
certificate speaks of (with noise on top): around theta + shift_between(before, after). A `scale`
measures shifts as it does, |v / scale|_2. The published attack steps onto the *sphere* after every
step, outward too, lets the statistics move freely, and trains on the test set; `sphere` and
`free_statistics` repeat the first two, the caller's choice of pictures the third.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastue.data.augment import crop_flip
from fastue.data.dataset import ImageDataset, batches, epoch_order
from fastue.models.flat import FlatParameters, flattened
from fastue.models.training import accuracy, sgd, to_input, train_step
from fastue.ops import WEIGHTS_ATTACK
from fastue.victims.train import TEST_BATCH


@dataclass(frozen=True)
class RecoveryConfig:
    """The published values. eta, and the length of the random directions, are global l2 norms in
    the units of the weights, or of the scale."""

    epochs: int = 60
    batch: int = 128
    lr: float = 0.01
    clip: float = 5.0
    augment: bool = True
    sphere: bool = False
    free_statistics: bool = False
    tries: int = 100  # random directions (published: 1000)
    precision: str = "float32"


def project(
    weights: FlatParameters, eta: float, sphere: bool = False, scale: Tensor | None = None
) -> None:
    """live = base + v with |v / scale|_2 <= eta; with `sphere` exactly eta wherever v is not zero.

    scale float32 [D], none: 1.
    """
    shift = weights.live - weights.base
    norm = (shift if scale is None else shift / scale).norm()
    factor = eta / norm.clamp_min(1e-30)
    weights.live.copy_(weights.base + shift * (factor if sphere else factor.clamp_max(1.0)))


def shift_between(before: nn.Module, after: nn.Module) -> Tensor:
    """By how much the parameters were moved, float32 [D] in the layout of FlatParameters."""
    return flattened(list(after.parameters())) - flattened(list(before.parameters()))


def recover(
    model: nn.Module,
    aux: ImageDataset,
    eta: float,
    config: RecoveryConfig,
    *,
    scale: Tensor | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> nn.Module:
    """A copy of `model`, its parameters moved by at most eta to fit the clean pictures `aux`.

    BatchNorm statistics are those that `model` has.
    """
    c = config
    model = copy.deepcopy(model).float().to(aux.device).requires_grad_(True)
    weights = FlatParameters(model)
    optimizer = sgd(model, c.lr)
    n, batch = len(aux), min(c.batch, len(aux))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, c.epochs * (n // batch))
    model.train(c.free_statistics)
    for epoch in range(c.epochs):
        order = epoch_order(n, seed, epoch)[: n // batch * batch]
        for x, y, index in batches(aux, batch, order):
            if c.augment:
                x = crop_flip(x, index, seed=seed, epoch=epoch, rows=n)
            train_step(model, optimizer, to_input(x), y, precision=c.precision, clip=c.clip)
            schedule.step()
            with torch.no_grad():
                project(weights, eta, c.sphere, scale)
        progress(epoch + 1, c.epochs)
    return model.eval()


@torch.no_grad()
def random_search(
    model: nn.Module,
    aux: ImageDataset,
    eta: float,
    config: RecoveryConfig,
    *,
    scale: Tensor | None = None,
    seed: int = 0,
) -> nn.Module:
    """The best on `aux` of `model` and of `tries` copies moved by eta in a random direction."""
    model = copy.deepcopy(model).float().to(aux.device).requires_grad_(False).eval()
    weights = FlatParameters(model)
    best = accuracy(model, batches(aux, TEST_BATCH), precision=config.precision)
    best_weights = weights.base
    for draw in range(config.tries):
        weights.perturb(1.0, seed=seed, purpose=WEIGHTS_ATTACK, draw=draw, scale=scale)
        weights.live.copy_(flattened(list(model.parameters())))  # no noise in the padding
        project(weights, eta, sphere=True, scale=scale)
        percent = accuracy(model, batches(aux, TEST_BATCH), precision=config.precision)
        if percent > best:
            best, best_weights = percent, weights.live.clone()
    weights.live.copy_(best_weights)
    return model
