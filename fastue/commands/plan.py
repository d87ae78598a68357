"""What a run will take, before it starts: a few batches are timed, the rest is arithmetic."""

import contextlib
import time

import torch

from fastue.commands.protect import METHODS
from fastue.data.dataset import ImageDataset
from fastue.methods.base import Checkpointer
from fastue.methods.emn import EMNConfig

# Sweeps until the stop rule held in our runs on CIFAR-10 pictures (docs/EMN.md); an order of magnitude, not a promise.
TYPICAL_SWEEPS = {"sample": (5, 15), "class": (6, 12)}


class _Enough(Exception):
    pass


def plan(data: ImageDataset, config: EMNConfig, device: torch.device) -> str:
    """Time, memory and disk of the method on `data`, as text. Runs one round of training and a few noise batches."""
    seconds: dict[str, list[float]] = {"train": [], "noise": []}
    last = time.perf_counter()

    def watch(phase: str, done: int, total: int, info: dict) -> None:
        nonlocal last
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        seconds["noise" if phase.endswith("noise") else "train"].append(now - last)
        if len(seconds["noise"]) == 4 or done == total and seconds["noise"]:
            raise _Enough
        last = time.perf_counter()

    with contextlib.suppress(_Enough):
        METHODS[config.method](
            data.to(device), config, checkpoint=Checkpointer(None), progress=watch
        )
    train, noise = min(seconds["train"]), min(seconds["noise"])
    rows = config.searched(len(data), data.num_classes)
    sweep = config.train_steps * train + -(-rows // config.batch) * noise
    low, high = (n * sweep for n in TYPICAL_SWEEPS[config.mode])
    pixels = data.images[0].numel()
    bank = (len(data) if config.mode == "sample" else data.num_classes) * pixels
    return "\n".join([
        f"time    {_duration(sweep)} a sweep ({_duration(train)} a training step, {_duration(noise)} a noise batch), "
        f"typically {TYPICAL_SWEEPS[config.mode][0]} to {TYPICAL_SWEEPS[config.mode][1]} sweeps: "
        f"{_duration(low)} to {_duration(high)}",
        f"memory  {_bytes(data.images.numel())} pictures and {_bytes(4 * bank)} noise, besides the network",
        f"disk    up to {_bytes(len(data) * pixels)} pictures, {_bytes(bank)} noise, {_bytes(8 * bank)} while it runs",
    ])  # fmt: skip


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
