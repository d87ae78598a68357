"""Self-supervised pre-training (SimCLR, Chen et al. 2020): features learnt without labels, then a
linear probe.

Two views of each picture (crop, flip, colour jitter, gray) are told from all others of the batch by
NT-Xent at temperature 0.5, behind a projection of two layers to 128 values. Optimiser, batch and
number of epochs are the victim's, so a full-length SimCLR needs `--epochs`. The probe is fitted to
the features of the training pictures and their labels, as in fastue.victims.probe.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue import models
from fastue.countermeasures.base import Countermeasure
from fastue.models.training import train_step
from fastue.victims.probe import features, head, refit
from fastue.victims.train import torch_seeded, train_epochs

TEMPERATURE, WIDTH = 0.5, 128


def nt_xent(z: Tensor) -> Tensor:
    """Loss of embeddings z [2B, D], of which rows i and B + i show the same picture: each is to find
    the other among all 2B - 1."""
    with torch.autocast(z.device.type, enabled=False):
        z = F.normalize(z.float(), dim=1)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        similarity = (z @ z.T / TEMPERATURE).masked_fill(itself, -math.inf)
        partner = torch.arange(len(z), device=z.device).roll(len(z) // 2)
        return F.cross_entropy(similarity, partner)


def view(x: Tensor) -> Tensor:
    """Model input x [B,C,H,W] in [0, 1] -> the same pictures seen otherwise, each in its own way."""

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(len(x), 1, 1, 1, device=x.device) * (high - low) + low

    x = _cropped(x, uniform)
    jittered = x * uniform(0.6, 1.4)
    jittered = torch.lerp(jittered.mean((1, 2, 3), keepdim=True), jittered, uniform(0.6, 1.4))
    if x.shape[1] == 3:
        jittered = torch.lerp(jittered.mean(1, keepdim=True), jittered, uniform(0.6, 1.4))
        jittered = _hue(jittered, 2 * math.pi * uniform(-0.1, 0.1))
    x = torch.where(uniform() < 0.8, jittered, x)
    x = torch.where(uniform() < 0.2, x.mean(1, keepdim=True), x)
    return x.clamp(0, 1)


def _cropped(x: Tensor, uniform) -> Tensor:
    """A window of 0.2 to 1 of the area and of ratio 3/4 to 4/3, at full size, every other flipped."""
    area, ratio = uniform(0.2, 1.0), uniform(math.log(3 / 4), math.log(4 / 3)).exp()
    wide, high = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    right, down = uniform(-1, 1) * (1 - wide), uniform(-1, 1) * (1 - high)
    flip, zero = (uniform() < 0.5).float() * 2 - 1, torch.zeros_like(wide)
    affine = torch.cat([wide * flip, zero, right, zero, high, down], 1).view(-1, 2, 3)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _hue(x: Tensor, angle: Tensor) -> Tensor:
    """Colours [B,3,H,W] turned about the gray axis by an angle a picture, [B,1,1,1]."""
    mean = x.mean(1, keepdim=True)
    across = (x.roll(1, 1) - x.roll(-1, 1)) / math.sqrt(3)  # the axis times x
    return mean + (x - mean) * angle.cos() + across * angle.sin()


def contrast(model, optimizer, x: Tensor, y: Tensor, **options) -> Tensor:
    """A training step that needs no labels."""
    x = torch.cat([view(x), view(x)]).contiguous(memory_format=torch.channels_last)
    return train_step(model, optimizer, x, y, loss=lambda z, _: nt_xent(z), **options)


def train(train, test, config, *, seed, step, means, progress) -> dict[str, list[float]]:
    c = config
    model = models.build(c.arch, train.num_classes, train.shape[0], seed=seed)
    with torch_seeded(seed, train.device):
        name, layer = head(model)
        d = layer.in_features
        layer = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, WIDTH))
        model.set_submodule(name, layer)
        model = model.to(train.device, memory_format=torch.channels_last)
        for done, loss in enumerate(train_epochs(model, train, c, seed=seed, step=step), 1):
            progress(done, c.epochs, {"loss": round(loss, 4)})
        known, asked = (features(model, layer, data, c.precision) for data in (train, test))
        return refit(known, train.labels, asked, test.labels, train.num_classes)[1]


COUNTERMEASURE = Countermeasure("simclr", step=contrast, train=train, cost=2.5)
