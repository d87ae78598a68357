"""Training of a purifier: once for each auxiliary set, kept in a file, and resumed where it was cut
off."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue.core.errors import DataError
from fastue.data.atomic import alone, canonical_json, make_folder
from fastue.data.dataset import ImageDataset
from fastue.data.keyed import keyed_generator
from fastue.data.tensorfile import read_tensors, write_tensors
from fastue.models.training import autocast, resolve_precision
from fastue.purifiers.published import Ddpm
from fastue.purifiers.schedule import alpha_bars
from fastue.purifiers.unet import UNet

EVERY = 50  # steps between checkpoints, at least: a hundred of them are enough


@dataclass(frozen=True)
class PurifierConfig:
    """steps of batches of `batch`, AdamW with rate `lr` down a cosine, times below `most_t` only.

    net      small (of `width`), or ddpm-cifar (published.Ddpm), which may begin with the weights of
             a published file
    weights  the sha256 of that file, or None
    """

    net: str = "small"
    weights: str | None = None
    steps: int = 2000
    width: int = 32
    batch: int = 16
    lr: float = 2e-3
    most_t: int = 150
    ema: float = 0.99
    seed: int = 0


# The second as DDPM was trained, but for times that purifying never sees.
CONFIGS = {
    "small": PurifierConfig(),
    "ddpm-cifar": PurifierConfig("ddpm-cifar", None, 100_000, 128, 128, 2e-4, 250, 0.9999),
}


def trained(
    aux: ImageDataset,
    config: PurifierConfig = PurifierConfig(),
    *,
    weights: Path | None = None,
    cache: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> nn.Module:
    """The purifier of the pictures `aux`, on their device, in eval mode. `weights` is the file of
    config.weights.

    With `cache`, a folder, it is read from there when it was trained before, also by another process
    that is at it, and a training that was cut off goes on from its last checkpoint to the same
    weights. Raises DataError without pictures.
    """
    if not len(aux):
        raise DataError(f"{aux.source or 'auxiliary set'}: no pictures to train a purifier on")
    precision = resolve_precision("auto", aux.device)
    key = {"aux": aux.fingerprint(), "precision": precision, "version": 2, **asdict(config)}
    name = hashlib.sha256(canonical_json(key).encode()).hexdigest()[:16]
    whole = None if cache is None else make_folder(cache) / f"{name}.safetensors"
    part = None if cache is None else cache / f"{name}.part.safetensors"
    net = _network(config, aux.shape[0]).to(aux.device)
    with alone(whole and whole.with_suffix(".lock")):
        if whole is not None and whole.exists():
            net.load_state_dict(read_tensors(whole)[0])
            return _frozen(net)
        if weights is not None:
            net.load(weights)
        _train(net, aux, config, precision, part, progress)
        if whole is not None:
            write_tensors(whole, net.state_dict(), key)
            part.unlink(missing_ok=True)
    return _frozen(net)


def _train(
    net: nn.Module,
    aux: ImageDataset,
    config: PurifierConfig,
    precision: str,
    part: Path | None,
    progress: Callable[[str, int, int], None],
) -> None:
    """From where the checkpoint `part` is, and at the end to the mean of the weights."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    mean = [w.detach().clone() for w in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr)
    first = 0
    if part is not None and part.exists():
        first = restore(part, names, parameters, mean, optimizer)
    bars = torch.from_numpy(alpha_bars()).to(aux.device, torch.float32)
    every = max(EVERY, config.steps // 100)
    for step in range(first, config.steps):
        rate = config.lr * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        optimizer.param_groups[0]["lr"] = rate
        x, t, noise = _batch(aux, config, step)
        bar = bars[t][:, None, None, None]
        with autocast(aux.device, precision):
            guess = net(bar.sqrt() * x + (1 - bar).sqrt() * noise, t)
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(guess, noise).backward()
        optimizer.step()
        with torch.no_grad():
            # young weights are forgotten faster
            young = min(config.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(mean, list(parameters), 1 - young)
        done = step + 1
        if part is not None and done % every == 0 and done < config.steps:
            keep(part, names, parameters, mean, optimizer, done)
        progress("purifier", done, config.steps)
    with torch.no_grad():
        for weight, smooth in zip(parameters, mean, strict=True):
            weight.copy_(smooth)


def _frozen(net: nn.Module) -> nn.Module:
    return net.eval().requires_grad_(False)


def _network(config: PurifierConfig, channels: int) -> nn.Module:
    """With its first weights, which depend on the config's seed alone."""
    if config.net == "ddpm-cifar":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return Ddpm(channels)
    net = UNet(channels, config.width)
    _initialise(net, config.seed)
    return net


def _initialise(net: UNet, seed: int) -> None:
    """He-scaled weights from keyed draws; norms as they are, biases 0, the last layer stays 0."""
    last = net.leave[-1].weight
    for number, weight in enumerate(net.parameters()):
        if weight.ndim > 1 and weight is not last:
            scale = 1 / math.sqrt(weight[0].numel())
            draws = keyed_generator(seed, "purifier weights", number).standard_normal(
                tuple(weight.shape), dtype=np.float32
            )
            weight.data.copy_(torch.from_numpy(draws * scale))
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.bias.data.zero_()


def _batch(aux: ImageDataset, config: PurifierConfig, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures in [-1,1] (half of them flipped), their times, and noise."""
    draw = keyed_generator(config.seed, "purifier", step)
    rows = torch.from_numpy(draw.integers(0, len(aux), config.batch))
    t = torch.from_numpy(draw.integers(0, config.most_t, config.batch)).to(aux.device)
    flip = torch.from_numpy(draw.random(config.batch) < 0.5).to(aux.device)
    noise = draw.standard_normal((config.batch, *aux.shape), dtype=np.float32)
    x = aux.take(rows.to(aux.device)).float().contiguous() / 127.5 - 1
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    return x, t, torch.from_numpy(noise).to(aux.device)


def keep(path, names, weights, mean, optimizer, step: int) -> None:
    """Write a checkpoint of a training by Adam: weights, their mean, and the moments."""
    tensors = {}
    for name, weight, smooth in zip(names, weights, mean, strict=True):
        state = optimizer.state[weight]
        tensors |= {f"weight.{name}": weight, f"mean.{name}": smooth}
        tensors |= {f"first.{name}": state["exp_avg"], f"second.{name}": state["exp_avg_sq"]}
    write_tensors(path, tensors, {"step": step})


@torch.no_grad()
def restore(path, names, weights, mean, optimizer) -> int:
    """Take it all from there; the step it was written after."""
    tensors, state = read_tensors(path)
    for name, weight, smooth in zip(names, weights, mean, strict=True):
        weight.copy_(tensors[f"weight.{name}"])
        smooth.copy_(tensors[f"mean.{name}"])
        optimizer.state[weight] = {
            "step": torch.tensor(float(state["step"])),
            "exp_avg": tensors[f"first.{name}"].to(weight.device),
            "exp_avg_sq": tensors[f"second.{name}"].to(weight.device),
        }
    return state["step"]
