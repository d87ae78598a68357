"""What a run will take, before it starts: a sample of the pictures is timed through each stage, the
rest is arithmetic.
"""

import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastue.core import memory
from fastue.data.atomic import sync_all, writing
from fastue.data.dataset import ImageDataset
from fastue.data.sources import Survey
from fastue.data.tensorfile import write_tensors
from fastue.data.writers import write_folder
from fastue.methods.base import SHARD_BYTES, Config, Method, duration
from fastue.ops._grain import bank_shape, spread
from fastue.protocol.check import seconds as check_seconds


@dataclass(frozen=True)
class Plan:
    """Of a run over `pictures` pictures, if its first attempt passes the check.

    rates    a second, by stage: pictures, and bytes of "noise stored"
    seconds  by stage, with the middle one of the usual numbers of sweeps
    sweeps   fewest and most, as a rule; `spread` is the seconds of all stages with these
    memory   bytes at a time: of "pictures", of "noise", and of the "process" with them, as far as
             it is the host's
    disk     bytes, by what lies there at the end or while it runs
    known    False: the method does not say how long it takes, which is counted as 0
    """

    pictures: int
    rates: dict[str, float]
    seconds: dict[str, float]
    sweeps: tuple[int, int]
    spread: tuple[float, float]
    memory: dict[str, int]
    disk: dict[str, int]
    in_files: dict[str, bool]  # "pictures", "noise": not kept in memory
    known: bool = True

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    def text(self) -> str:
        """For people, in four lines."""
        rates = [
            f"{rate:,.{0 if rate >= 10 else 2}f} {name}"
            for name, rate in self.rates.items()
            if name != "noise stored"
        ]
        spread = _range(*map(duration, self.spread))
        stages = [f"{name} {duration(seconds)}" for name, seconds in self.seconds.items()]
        if not self.known:
            stages.append("the noise itself, not known before")
        if (middle := sum(self.sweeps) / 2) > 1:
            a_sweep = duration(self.seconds["noise"] / middle)
            stages.append(f"{a_sweep} a sweep, as a rule {_range(*self.sweeps)} of them")
        where = {
            name: f"{_bytes(self.memory[name])} {name}" + (" (the rest in files)" if files else "")
            for name, files in self.in_files.items()
        }
        disk = [f"{_bytes(count)} {name}" for name, count in self.disk.items() if count]
        return (
            f"rates   pictures a second: {', '.join(rates)}; "
            f"{_bytes(self.rates['noise stored'])}/s of noise to disk\n"
            f"time    {duration(self.total)} ({spread}): {', '.join(stages)}\n"
            f"memory  {_bytes(self.memory['process'])}, of it {' and '.join(where.values())}\n"
            f"disk    {_bytes(sum(self.disk.values()))}: {', '.join(disk)}"
        )


def plan(
    survey: Survey,
    method: Method,
    config: Config,
    out: Path,
    *,
    device: torch.device,
    check: bool = True,
    limit: int,
    cache: bool = False,
    larger: float = 1.0,
) -> Plan:
    """The plan of a run into `out` on `device`; a few files are written beside `out` and removed.

    limit  bytes of pictures and of noise, each, that the run keeps in memory
    cache  its pictures are in files, however few they are
    larger how many times larger the written pictures are than those of `survey`
    """
    data, n = survey.data, len(survey)
    cost = method.plan(data.to(device), config, n) if method.plan else None
    checked = check_seconds(data.to(device), survey.labels, config) if check else 0.0
    own = memory.peak() - data.images.numel()
    png, png_rate, noise_rate = _write(data, config, out)
    png, png_rate = png * larger, png_rate / larger

    rows, values = bank_size(n, data, config)
    pixels = n * math.prod(data.shape)
    in_files = {
        "pictures": cache or pixels > limit,
        "noise": config.mode == "sample" and 4 * rows * values > limit,
    }
    disk = disk_needed(n, data, config, in_files, png=png, check=check)
    held = {
        "pictures": min(pixels, 1 << 26) if in_files["pictures"] else pixels,
        "noise": min(4 * rows * values, 4 * SHARD_BYTES)
        if in_files["noise"]
        else 4 * rows * values,
    }
    held["process"] = own + sum(held.values())

    fewest, most = cost.sweeps if cost else (0, 0)
    sweep = cost.sweep if cost else 0.0
    opening = survey.seconds
    if in_files["pictures"]:
        opening = max(opening, pixels / noise_rate)
    if in_files["noise"]:  # written in the background, once a sweep
        sweep = max(sweep, 4 * rows * values / noise_rate)
    seconds = {
        "decode": opening,
        "noise": sweep * (fewest + most) / 2,
        "check": checked,
        "write": n / png_rate + 2 * rows * values / noise_rate,
    }
    others = sum(seconds.values()) - seconds["noise"]
    decoded = n / survey.seconds if survey.seconds else math.inf
    rates = {"decoded": decoded, **(cost.rates if cost else {}), "written": png_rate}
    return Plan(
        n,
        rates | {"noise stored": noise_rate},
        {name: spent for name, spent in seconds.items() if spent},
        (fewest, most),
        (others + fewest * sweep, others + most * sweep),
        held,
        disk,
        in_files,
        known=cost is not None,
    )


def bank_size(n: int, data: ImageDataset, config: Config) -> tuple[int, int]:
    """Rows of the noise of n pictures like those of `data`, and values in a row."""
    rows = n if config.mode == "sample" else data.num_classes
    return rows, math.prod(bank_shape(data.shape, getattr(config, "grain", 1)))


def disk_needed(
    n: int,
    data: ImageDataset,
    config: Config,
    in_files: dict[str, bool],
    *,
    png: float,
    check: bool,
) -> dict[str, int]:
    """Bytes on the disk of a run over n pictures like those of `data`; a written picture takes `png`
    bytes.
    """
    rows, values = bank_size(n, data, config)
    bank = 4 * rows * values
    # A checkpoint is written beside the one before, a shard beside the one it replaces; the best
    # attempt's noise stays while the search goes on.
    making = bank + 2 * SHARD_BYTES if in_files["noise"] else 2 * bank
    return {
        "protected pictures": round(n * png),
        "noise": rows * values + 32 * n,  # and hashes of the pictures
        "noise while it runs": making + check * bank,
        "decoded pictures": n * math.prod(data.shape) if in_files["pictures"] else 0,
    }


def _write(data: ImageDataset, config: Config, out: Path) -> tuple[float, float, float]:
    """Bytes of a PNG of the sample with noise; pictures written, and bytes of noise, a second."""
    grain, budget = getattr(config, "grain", 1), config.budget
    signs = torch.randint(0, 2, (len(data), *bank_shape(data.shape, grain)))
    values = budget.quantise((2.0 * signs - 1) * _largest(budget, math.prod(data.shape)))
    noise = spread(values, grain, *data.shape[1:])
    place = out.absolute().parent
    while not place.exists():
        place = place.parent
    with writing(place), tempfile.TemporaryDirectory(prefix=".fastue-plan-", dir=place) as folder:
        shard = {"noise": torch.zeros(SHARD_BYTES // 4)}
        noise_rate = SHARD_BYTES / _seconds(lambda: write_tensors(f"{folder}/noise", shard, {}))
        sync_all()  # what others have written is not ours to wait for

        def rows(index: Tensor) -> Tensor:
            return noise[index]

        spent = _seconds(lambda: write_folder(f"{folder}/images", data, rows))
        files = [path for path in Path(folder, "images").rglob("*") if path.is_file()]
        return sum(map(os.path.getsize, files)) / len(files), len(data) / spent, noise_rate


def _largest(budget, values: int) -> float:
    """A value of noise that is the same everywhere, within the budget."""
    return budget.eps if budget.norm == "linf" else budget.eps / values**0.5


def _range(low, high) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def _seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
