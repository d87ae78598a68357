"""Orthogonal projection (Sandoval-Segura et al. 2023, "What can we learn from unlearnable datasets?").

A linear model without bias is trained on the pixels in [0,1]: SGD 0.1, no momentum, batches of
1024, 20 epochs, rate x0.1 after 10 and 15. What its classes' weights see is taken out of every
training picture: x - QQ'x, Q an orthonormal base of the weights (QR). Strong against noise that one
such model can read, class-wise noise above all. Test pictures are left as they are, and the victim
is that of the attack, not the paper's.

Two figures come with the row: `separability`, the percentage of training pictures that the linear
model gets right (clean pictures' own is in the row of the clean arm), and `clamped`.

Two things differ from the paper. Its 50,000 pictures make 49 steps an epoch; fewer pictures are
taken in smaller batches, so that the model has as many steps: with five an epoch it has not found the noise.
Its pictures are floats that leave [0,1]; here they are rounded and cut to [0, 255], and `clamped` is
the percentage of pixels that were cut.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fastue.countermeasures.base import Countermeasure, Means
from fastue.data.dataset import ImageDataset, batches, epoch_order
from fastue.data.keyed import keyed_generator
from fastue.models.training import percent, to_input
from fastue.victims.config import VictimConfig
from fastue.victims.train import train_victim

EPOCHS, RATE, BATCH = 20, 0.1, 1024
STEPS = 49  # of an epoch, at least
_BLOCK = 1024


def linear_model(
    data: ImageDataset, seed: int, progress: Callable[[str, int, int], None]
) -> tuple[Tensor, float]:
    """Weights float32 [D, classes], D = C*H*W, and the percentage of `data` it gets right."""
    n, width = len(data), data.images[0].numel()
    draw = keyed_generator(seed, "linear-model").uniform(-1, 1, (width, data.num_classes))
    weight = torch.from_numpy(draw / width**0.5).float().to(data.device)
    batch = min(BATCH, -(-n // STEPS))
    for epoch in range(EPOCHS):
        rate = RATE * 0.1 ** ((epoch >= EPOCHS // 2) + (epoch >= EPOCHS * 3 // 4))
        for x, y, _ in batches(data, batch, epoch_order(n, seed, epoch)):
            x = _flat(x)
            error = (x @ weight).softmax(1) - F.one_hot(y, data.num_classes)
            weight -= rate / len(x) * (x.T @ error)  # the gradient of the mean cross-entropy
        progress("linear model", epoch + 1, EPOCHS)
    right = [(_flat(x) @ weight).argmax(1) == y for x, y, _ in batches(data, _BLOCK)]
    return weight, percent(torch.cat(right))


def projected(
    data: ImageDataset, seed: int, progress: Callable[[str, int, int], None]
) -> tuple[ImageDataset, dict[str, float]]:
    """`data` without what a linear model sees in it, and the figures of the row."""
    weight, separability = linear_model(data, seed, progress)
    base, _ = torch.linalg.qr(weight)
    parts, cut = [], 0
    for x, _, _ in batches(data, _BLOCK):
        flat = _flat(x)
        levels = (255 * (flat - (flat @ base) @ base.T)).round()
        kept = levels.clamp(0, 255)
        cut += int((levels != kept).sum())
        parts.append(kept.to(torch.uint8).view(x.shape))
    images = torch.cat(parts)
    figures = {"separability": separability, "clamped": 100 * cut / images.numel()}
    return replace(data, images=images), {name: round(x, 3) for name, x in figures.items()}


def _flat(x: Tensor) -> Tensor:
    """uint8 [B,C,H,W] -> float32 [B,D] in [0,1]."""
    return to_input(x).flatten(1)


def train(
    pictures: ImageDataset, test: ImageDataset, config: VictimConfig, *, means: Means, **options
) -> dict:
    """The victim's curves on the projected pictures, with both figures."""
    data, figures = projected(pictures, options["seed"], means.progress)
    return {**train_victim(data, test, config, **options), **figures}


COUNTERMEASURE = Countermeasure("orthogonal-projection", train=train)
