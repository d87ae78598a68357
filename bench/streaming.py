"""How much memory and time `fastue protect` takes for many pictures: `python -m bench.streaming
FOLDER --size 64 --pictures 20000,100000 --mode sample`.

Of the pictures in FOLDER random crops of one size are made, a class for each picture, as JPEG files
in a temporary folder (`--work`: another, kept). Each run is a process of its own with `--max-memory`;
its peak of resident memory, mapped pages among it, and the shares of its time are one row in
bench/results/streaming.csv. The row of the smallest number of pictures says what torch and the
network take.

With `--dry-network` there is neither FOLDER nor network: what is left of a sweep over pictures in a
cache and noise in files is timed, that is reading, the noise step with a gradient that is always
the same, and committing shards to the disk.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.ops import facts, write
from fastue.core import memory
from fastue.core.clock import Clock
from fastue.data.cache import cached
from fastue.data.dataset import ImageDataset
from fastue.data.keyed import keyed_generator
from fastue.data.parallel import map_blocks
from fastue.methods.base import Checkpointer
from fastue.methods.emn import GRAIN, EMNConfig, emn
from fastue.methods.loop import Surrogate

SWEEPS = 4  # without a network
FIELDS = (
    "size", "pictures", "mode", "flags", "max_memory", "peak_mib", "seconds", "shares", "device", "threads", "load",
    "torch", "fastue", "commit", "time",
)  # fmt: skip


def make(source: Path, folder: Path, size: int, count: int) -> None:
    """`count` crops of size x size, a class for each picture of the source; a function of their
    number. What is there already stays."""
    originals = []
    for path in sorted(source.rglob("*.JPEG")) + sorted(source.rglob("*.jpg")):
        with Image.open(path) as picture:
            originals.append(picture.convert("RGB"))

    def work(rows: range) -> None:
        for row in rows:
            name = folder / f"{row % len(originals):03d}" / f"{row:07d}.jpg"
            if name.exists():
                continue
            picture, draw = originals[row % len(originals)], keyed_generator(0, "crops", row)
            side = int(min(picture.size) * draw.uniform(0.3, 1))
            left, top = (int(draw.integers(0, n - side + 1)) for n in picture.size)
            box = (left, top, left + side, top + side)
            name.parent.mkdir(parents=True, exist_ok=True)
            picture.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2).save(
                name, quality=90
            )

    for _ in map_blocks(work, count, 256):
        pass


def run(folder: Path, out: Path, flags: list[str], max_memory: str) -> tuple[float, float, str]:
    """(peak of resident memory in MiB, seconds, what --profile printed) of one protect."""
    command = [sys.executable, "-m", "fastue", "protect", str(folder), "--out", str(out)]
    command += ["--max-memory", max_memory, "--no-check", "--profile", *flags]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        child = subprocess.Popen(command, stdout=printed)
        _, status, usage = os.wait4(child.pid, 0)
        printed.seek(0)
        text = printed.read()
    if status:
        raise SystemExit(f"protect failed: {text}")
    shares = re.findall(r"^(\w+) +([\d.]+) s +[\d.]+ %$", text, re.MULTILINE)
    told = ", ".join(f"{name} {seconds} s" for name, seconds in shares)
    return usage.ru_maxrss / 1024, time.perf_counter() - start, told


class Dry(Surrogate):
    """A network that costs nothing and learns nothing."""

    def learn(self, x: torch.Tensor, y: torch.Tensor, number: int) -> None:
        pass

    def gradient(self, noisy, y, move, number):
        if not hasattr(self, "constant"):
            self.constant = torch.randn_like(noisy), torch.zeros((), dtype=torch.int64)
        gradient, right = self.constant
        return gradient[: len(noisy)], right


def dry(work: Path, size: int, count: int, grain: int) -> tuple[float, str]:
    """(seconds, the shares of them) of SWEEPS sweeps."""
    config = EMNConfig(
        arch="cnn-w8", grain=grain, steps=1, train_steps=1, max_sweeps=SWEEPS, min_sweeps=SWEEPS,
        precision="float32",
    )  # fmt: skip

    def blocks(begin: int) -> Iterator[tuple[np.ndarray, int, dict]]:
        for row in range(begin, count, 1000):
            rows = min(1000, count - row)
            yield (
                keyed_generator(0, "dry", row).integers(0, 256, (rows, size, size, 3), np.uint8),
                row + rows,
                {},
            )

    pages, _ = cached(work, "dry", [size, count], (size, size, 3), blocks)
    data = ImageDataset(
        pages.images, torch.arange(count) % 10, [f"{row:07d}" for row in range(count)],
        list("0123456789"), pages=pages,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=work) as folder:
        checkpoint, clock = Checkpointer(Path(folder), limit=0), Clock(running=True)
        start = time.perf_counter()
        emn(data, config, surrogate=Dry, checkpoint=checkpoint, clock=clock)
        seconds = time.perf_counter() - start
    return seconds, ", ".join(f"{name} {taken:.1f} s" for name, taken in clock.seconds.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("source", nargs="?", type=Path, help="pictures of any size")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--pictures", default="2000,20000", help="one run for each number")
    parser.add_argument("--mode", default="sample")
    parser.add_argument(
        "--flags", default="--arch cnn-w8 --precision float32 --steps 1 --max-sweeps 2"
    )
    parser.add_argument("--max-memory", default="1G")
    parser.add_argument("--work", type=Path, help="keep the pictures here")
    parser.add_argument("--dry-network", action="store_true")
    parser.add_argument("--grain", type=int, default=GRAIN, help="of the noise without a network")
    given = parser.parse_args()
    if (given.source is None) != given.dry_network:
        parser.error("name FOLDER, or --dry-network")
    with contextlib.ExitStack() as stack:
        work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for count in map(int, given.pictures.split(",")):
            if given.dry_network:
                seconds, shares = dry(work, given.size, count, given.grain)
                print(f"{SWEEPS * count / seconds:.0f} pictures/s: {shares}", flush=True)
                row = {
                    "mode": "dry",
                    "flags": f"--grain {given.grain}",
                    "peak_mib": f"{memory.peak() / 2**20:.0f}",
                }
            else:
                folder = work / f"{given.size}-{count}"
                make(given.source, folder, given.size, count)
                flags = ["--mode", given.mode, *given.flags.split()]
                with tempfile.TemporaryDirectory(dir=work) as out:
                    peak, seconds, shares = run(folder, Path(out) / "out", flags, given.max_memory)
                row = {
                    "mode": given.mode, "flags": given.flags, "max_memory": given.max_memory,
                    "peak_mib": f"{peak:.0f}",
                }  # fmt: skip
            row |= {
                **{name: value for name, value in facts(torch.device("cpu")).items() if name in FIELDS},
                "size": given.size, "pictures": count, "seconds": f"{seconds:.1f}", "shares": shares,
                "load": f"{os.getloadavg()[0]:.1f}",
            }  # fmt: skip
            print({name: row.get(name, "") for name in FIELDS[:8]}, flush=True)
            write([row], "streaming", FIELDS)


if __name__ == "__main__":
    main()
