"""D-VAE (Yu et al., ICML 2024): an autoencoder with little room, and noise of a class beside it.

No auxiliary pictures: it is trained on those it purifies. What a code of few nats cannot hold, and
what the classes have in common, is not the picture. Two networks, one after the other:

    z ~ N(mu, exp(logvar)) of x;  rec of z;  p of z and the class
    mean (rec - x)^2 + mean (clip(rec + p) - x)^2 + 0.01 max(KL, nats)
        + max(mean p^2, 0.002), after the first sixth of the epochs

The first has 1 nat for each place of the code, and p is taken off the pictures; the second has 3,
p is taken off again, and rec of that is the purified picture. Smaller than published, and fewer
epochs at a lower rate; a place is 2x2 pixels.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue.data.atomic import alone, canonical_json, make_folder
from fastue.data.dataset import ImageDataset, epoch_order
from fastue.data.keyed import keyed_generator
from fastue.data.tensorfile import read_tensors, write_tensors
from fastue.models.training import autocast, resolve_precision
from fastue.purifiers.sampling import BATCH
from fastue.purifiers.training import keep, restore

KL_WEIGHT, POWER = 0.01, 0.002


@dataclass(frozen=True)
class DvaeConfig:
    epochs: int = 20
    width: int = 32
    code: int = 16
    batch: int = 64
    lr: float = 2e-3
    nats: tuple[float, float] = (1.0, 3.0)


CONFIG = DvaeConfig()


class Residual(nn.Sequential):
    def __init__(self, width: int):
        half = (nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        again = (nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        super().__init__(*half, *again)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _tower(inner: int, width: int, outer: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, width, 3, padding=1),
        *(Residual(width) for _ in range(2)),
        *(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, outer, 3, padding=1)),
    )


class Dvae(nn.Module):
    """x float32 [B,C,H,W] in [0,1], labels int64 [B], draws float32 like the code, or None for its
    mean -> rec and p like x, KL in nats a place, 0-d. Sides are continued to an even length.
    """

    def __init__(self, channels: int, classes: int, config: DvaeConfig):
        super().__init__()
        self.code = config.code
        self.encode = _tower(4 * channels, config.width, 2 * config.code)
        self.decode = _tower(config.code, config.width, 4 * channels)
        self.classes = nn.Embedding(classes, config.code)
        self.disturb = _tower(2 * config.code, config.width, 4 * channels)

    def places(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """The shape of the code of pictures [..., H, W]."""
        return self.code, (shape[-2] + 1) // 2, (shape[-1] + 1) // 2

    def forward(
        self, x: Tensor, labels: Tensor, draws: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        height, width = x.shape[2:]
        blocks = F.pixel_unshuffle(F.pad(x, (0, width % 2, 0, height % 2), mode="replicate"), 2)
        mean, spread = self.encode(blocks).float().chunk(2, 1)  # spread: log of the variance
        kl = 0.5 * (mean**2 + spread.exp() - 1 - spread).sum(1).mean()
        z = mean if draws is None else mean + (spread / 2).exp() * draws
        own = self.classes(labels)[:, :, None, None].expand(-1, -1, *z.shape[2:])
        towers = self.decode(z), self.disturb(torch.cat([z, own], 1))
        rec, p = (F.pixel_shuffle(t.float(), 2)[:, :, :height, :width] for t in towers)
        return rec, p, kl


def objective(x: Tensor, rec: Tensor, p: Tensor, kl: Tensor, nats: float, late: bool) -> Tensor:
    """The loss above, 0-d; `late` in the epochs that bound p."""
    value = F.mse_loss(rec, x) + F.mse_loss((rec + p).clamp(0, 1), x)
    value = value + KL_WEIGHT * kl.clamp_min(nats)
    return value + p.square().mean().clamp_min(POWER) if late else value


@torch.no_grad()
def dvae(
    data: ImageDataset,
    config: DvaeConfig = DvaeConfig(),
    *,
    seed: int,
    cache: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> Tensor:
    """The purified pictures of `data`, uint8 [N,C,H,W] on its device.

    With `cache`, a folder, a training that was cut off goes on from its last epoch, and none is
    done twice.
    """
    x = data.take(torch.arange(len(data), device=data.device)).float().contiguous() / 255
    lock = cache and cache / f"{data.fingerprint()[:16]}-{seed}.dvae.lock"
    with alone(lock):
        for stage, nats in enumerate(config.nats):
            net = _trained(x, data, config, seed, stage, nats, cache, progress)
            _, p = _passed(net, x, data.labels)
            x = (x - p).clamp(0, 1)
    rec, _ = _passed(net, x, data.labels)
    images = torch.empty_like(data.images, device=data.device)
    return images.copy_((rec * 255).round().clamp(0, 255))


def _passed(net: Dvae, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """rec and p of all pictures, BATCH at a time, whatever their number."""
    outs = []
    for begin in range(0, len(x), BATCH):
        part, own = x[begin : begin + BATCH], labels[begin : begin + BATCH]
        count = len(part)
        part = torch.cat([part, part.new_zeros(BATCH - count, *part.shape[1:])])
        own = torch.cat([own, own.new_zeros(BATCH - count)])
        rec, p, _ = net(part, own, None)
        outs.append((rec[:count], p[:count]))
    recs, ps = zip(*outs, strict=True)
    return torch.cat(recs), torch.cat(ps)


@torch.enable_grad()
def _trained(
    x: Tensor,
    data: ImageDataset,
    config: DvaeConfig,
    seed: int,
    stage: int,
    nats: float,
    cache: Path | None,
    progress: Callable[[str, int, int], None],
) -> Dvae:
    device = x.device
    precision = resolve_precision("auto", device)
    key = {"data": data.fingerprint(), "precision": precision, "seed": seed, "stage": stage}
    name = hashlib.sha256(canonical_json(key | asdict(config)).encode()).hexdigest()[:16]
    whole = None if cache is None else make_folder(cache) / f"{name}.dvae.safetensors"
    part = None if cache is None else cache / f"{name}.dvae.part.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(keyed_generator(seed, "dvae weights", stage).integers(2**62)))
        net = Dvae(data.shape[0], data.num_classes, config).to(device)
    if whole is not None and whole.exists():
        net.load_state_dict(read_tensors(whole)[0])
        return net
    names, parameters = zip(*net.named_parameters(), strict=True)
    optimizer = torch.optim.Adam(parameters, lr=config.lr)
    first = 0
    if part is not None and part.exists():
        first = restore(part, names, parameters, parameters, optimizer)
    n, batch = len(x), min(config.batch, len(x))
    for epoch in range(first, config.epochs):
        rate = config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))
        optimizer.param_groups[0]["lr"] = rate
        draw = keyed_generator(seed, "dvae", stage, epoch)
        for rows in epoch_order(n, seed, epoch)[: n // batch * batch].split(batch):
            draws = draw.standard_normal((batch, *net.places(x.shape)), dtype=np.float32)
            own = x[rows.to(device)]
            with autocast(device, precision):
                outs = net(own, data.labels[rows.to(device)], torch.from_numpy(draws).to(device))
            optimizer.zero_grad(set_to_none=True)
            objective(own, *outs, nats, late=epoch >= config.epochs / 6).backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
        if part is not None and epoch + 1 < config.epochs:
            keep(part, names, parameters, parameters, optimizer, epoch + 1)
        progress(f"D-VAE {stage + 1} of 2", epoch + 1, config.epochs)
    if whole is not None:
        write_tensors(whole, net.state_dict(), key)
        part.unlink(missing_ok=True)
    return net
