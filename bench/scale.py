"""What ImageNet-1k takes on H100-class GPUs: `python -m bench.scale`. Computed, not measured: nothing
here has run on such a machine.

The network's part is its floating-point operations, counted by torch, over the GPU's published peak
times `--utilisation`. Bytes to and from the disk are counted from what a sweep reads and writes,
over `--disk`. Decoding and PNG writing are the rates of one core that bench/loaders.py has measured
(the last rows of bench/results/loaders.csv), times `--cores`.
"""

import argparse
import csv
import functools
import math

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.ops import ROOT
from fastue import models
from fastue.methods.emn import TYPICAL_SWEEPS, EMNConfig
from fastue.ops._grain import bank_shape

PICTURES, CLASSES, SHAPE = 1_281_167, 1000, (3, 224, 224)
PEAK = 989e12  # dense bf16 of an H100 SXM5: NVIDIA H100 data sheet
GPUS = (1, 8)


@functools.cache
def flops(arch: str) -> tuple[float, float]:
    """Of a picture: in a training step, and in a noise step (forward and gradient of the input)."""
    model, counts = models.build(arch, CLASSES), []
    for train in (True, False):
        model.requires_grad_(train)
        x = torch.zeros(2, *SHAPE, requires_grad=not train)
        with FlopCounterMode(display=False) as counter:
            model(x).sum().backward()
        counts.append(counter.get_total_flops() / len(x))
    return counts[0], counts[1]


def core_rates() -> dict[str, float]:
    """Pictures of this size a second and core: JPEG decoded, and written as PNG."""
    path = ROOT / "bench" / "results" / "loaders.csv"
    wanted = {"decode JPEG": ("jpeg", "DataLoader, Pillow"), "write PNG": ("png", "runs only")}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for name, (part, side) in wanted.items():
        mine = [
            r for r in rows if r["part"] == part and r["side"] == side and int(r["size"]) >= 224
        ]
        mine = [r for r in mine if r["workers"] in ("", "0", "1")]
        if not mine:
            raise SystemExit(f"{path} has no rows of {part}: run python -m bench.loaders first")
        found[name] = float(mine[-1]["median"])
    return found


def sweeps_of(config: EMNConfig) -> tuple[int, int]:
    """The fewest and the most a run takes as a rule."""
    least = config.least_sweeps(PICTURES)
    low, high = TYPICAL_SWEEPS[config.mode]
    return max(low, least), max(high, least)


def hours(
    mode: str, arch: str, gpus: int, given: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """Of each resource, for the fewest and the most sweeps a run takes as a rule."""
    config = EMNConfig(mode=mode)
    swept = config.searched(PICTURES, CLASSES)
    training, noise = flops(arch)
    trained = config.train_steps * config.batch
    values = math.prod(bank_shape(SHAPE, config.grain))
    # A sweep reads pictures and noise, and writes the noise.
    moved = (swept + trained) * math.prod(SHAPE) + (8 * values * swept if mode == "sample" else 0)
    sweep = {
        "network": (trained * training + swept * config.steps * noise)
        / (PEAK * given.utilisation * gpus),
        "disk": moved / (given.disk * 1e9),
    }
    rates = core_rates()
    # Before and after the sweeps: the cache is written and read; the PNG files are written.
    once = {
        "disk": PICTURES * 4 * math.prod(SHAPE) / (given.disk * 1e9),
        **{name: PICTURES / (rate * given.cores) for name, rate in rates.items()},
    }
    return {
        name: tuple(
            (sweeps * sweep.get(name, 0) + once.get(name, 0)) / 3600 for sweeps in sweeps_of(config)
        )
        for name in (*sweep, *rates)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", default="torchvision:resnet18")
    parser.add_argument(
        "--utilisation", type=float, default=0.3, help="of the peak, by the network"
    )
    parser.add_argument("--disk", type=float, default=5.0, help="GB/s")
    parser.add_argument("--cores", type=int, default=32, help="of the host")
    given = parser.parse_args()
    training, noise = flops(given.arch)
    print(
        f"{given.arch} at {SHAPE[1]} x {SHAPE[2]}: {training / 1e9:.1f} GFLOP a picture of a training step, "
        f"{noise / 1e9:.1f} of a noise step; {100 * given.utilisation:.0f} % of {PEAK / 1e12:.0f} TFLOP/s, "
        f"disk {given.disk:g} GB/s, {given.cores} cores\n"
    )
    names = ("network", "disk", "decode JPEG", "write PNG")
    print(
        "| noise | GPUs | sweeps | "
        + " | ".join(f"{name}, h" for name in names)
        + " | what binds |"
    )
    print("|---" * (4 + len(names)) + "|")
    for mode in ("class", "sample"):
        for gpus in GPUS:
            found = hours(mode, given.arch, gpus, given)
            cells = [
                f"{low:.2f} to {high:.2f}" if low != high else f"{low:.2f}"
                for low, high in found.values()
            ]
            sweeps = "{} to {}".format(*sweeps_of(EMNConfig(mode=mode)))
            binds = max(found, key=lambda name: found[name][1])
            print(f"| {mode}-wise | {gpus} | {sweeps} | {' | '.join(cells)} | {binds} |")


if __name__ == "__main__":
    main()
