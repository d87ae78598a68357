"""An authorized network: an architecture and its initial weights, of which the first convolutions
may stand still for good.
"""

import types
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from fastue import models
from fastue.core.errors import UsageError
from fastue.models import saved


def authorized(arch: str, classes: int, channels: int, seed: int, frozen: int = 0) -> nn.Module:
    """A new one: weights drawn by `seed`, the first `frozen` convolutions standing still."""
    return stand_still(models.build(arch, classes, channels, seed=seed), frozen)


def load(path: Path) -> tuple[nn.Module, dict]:
    """One in a file that fastue wrote (surrogate.safetensors of `--method uge`), in training mode,
    and what it is: arch, classes, channels, notes. Raises DataError for any other file."""
    model, about = saved.load(path)
    return stand_still(model.train(), frozen_of(about)), about


def frozen_of(about: dict) -> int:
    """How many of its convolutions stand still."""
    return about["notes"].get("config", {}).get("frozen", 0)


def stand_still(model: nn.Module, count: int) -> nn.Module:
    """The same network, its first `count` convolutions, and the norms behind them, in eval mode and
    without gradients for good. Raises UsageError where there are not so many."""
    parts = list(fronts(model))
    if count > len(parts) - 1:
        raise UsageError(f"--frozen {count}: the network has {len(parts)} convolutions")
    for part in parts[:count]:
        part.requires_grad_(False).eval()
        part.train = types.MethodType(_stays, part)
    return model


def copy_front(source: nn.Module, target: nn.Module, count: int) -> None:
    """The first `count` convolutions, and the norms behind them, become those of `source`."""
    for theirs, ours in zip(list(fronts(source))[:count], fronts(target), strict=False):
        ours.load_state_dict(theirs.state_dict())


def _stays(self: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(self, False)


def fronts(model: nn.Module) -> Iterator[nn.Module]:
    """Convolutions in order, each with the norm behind it where both stand in one nn.Sequential."""
    held: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.Sequential) and len(module) and isinstance(module[0], nn.Conv2d):
            held.add(id(module[0]))
            yield module
        elif isinstance(module, nn.Conv2d) and id(module) not in held:
            yield module
