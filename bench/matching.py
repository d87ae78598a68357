"""Time matching of gradients: `python -m bench.matching [--network resnet18|cnn]`.

A step is the distances 1 - cos(g, h) and their gradient with respect to the perturbed pictures. The
sides take turns on the same network, in float32, with frozen BatchNorm:

  fastue        fastue.gradient_match, per sample
  materialised  the same with every gradient made (form="materialised")
  vmap          torch.func: vmap(grad) over the samples and double backward through it, the formula
                1 - s / sqrt(n n') as it stands
  loop          the same formula, one sample at a time, double backward
  batch         one distance of the gradients of the mean loss, double backward: what published
                gradient matching does, and another loss
  fastue-batch  fastue.gradient_match(per_sample=False)

Before anything is timed the sides that are per sample must agree with the loop in float64, and the
two batches with each other. Peak memory is that of a process of its own for each side, above what
it held before its first step; the second step is the one that counts for a peak. Rows are appended
to bench/results/matching.csv.
"""

import argparse
import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import fastue
from bench.ops import ROOT, facts, quantiles, write
from fastue.models import build

SIDES = ("fastue", "materialised", "vmap", "loop", "batch", "fastue-batch")
BATCH = {"resnet18": 16, "cnn": 64}
EACH = nn.CrossEntropyLoss(reduction="none")
FIELDS = (
    "network", "batch", "size", "side", "rounds", "p50_s", "min_s", "max_s", "times_vmap", "times_batch",
    "peak_mib", "device", "threads", "load", "torch", "fastue", "commit", "time",
)  # fmt: skip


def network(name: str) -> nn.Module:
    if name != "cnn":
        return build(name, 10, 3).eval()
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for cin, cout in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(cin, cout, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 10)).eval()


def pictures(count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, 3, 32, 32, generator=generator)
    noise = torch.rand(x.shape, generator=generator) * 2 - 1
    return x, x + noise * (8 / 255), torch.arange(count) % 10


def cosine_distance(g: list[Tensor], h: list[Tensor], start: int) -> Tensor:
    """1 - s / sqrt(n n'), over all axes from `start` on."""

    def dot(one: list[Tensor], other: list[Tensor]) -> Tensor:
        return sum((a * b).flatten(start).sum(-1) for a, b in zip(one, other, strict=True))

    return 1 - dot(g, h) / (dot(g, g) * dot(h, h)).sqrt()


def steps(model: nn.Module, x: Tensor, x2: Tensor, y: Tensor) -> dict[str, Callable]:
    """{side: call that gives (distances, gradient)}"""
    parameters = list(model.parameters())
    named = {name: p.detach() for name, p in model.named_parameters()}

    def ours(**settings):
        def step():
            point = x2.clone().requires_grad_()
            value = fastue.gradient_match(model, EACH, x, point, y, **settings)
            value.sum().backward()
            return value.detach(), point.grad

        return step

    def one(weights, x, y):
        return F.cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    per_sample = vmap(grad(one), in_dims=(None, 0, 0))

    def by_vmap():
        point = x2.clone().requires_grad_()
        g, h = per_sample(named, x, y), per_sample(named, point, y)
        value = cosine_distance(list(g.values()), list(h.values()), 1)
        return value.detach(), torch.autograd.grad(value.sum(), point)[0]

    def batch(rows=slice(None)):
        point = x2[rows].clone().requires_grad_()
        g = torch.autograd.grad(F.cross_entropy(model(x[rows]), y[rows]), parameters)
        h = torch.autograd.grad(
            F.cross_entropy(model(point), y[rows]), parameters, create_graph=True
        )
        value = cosine_distance(g, h, 0)
        return value.detach(), torch.autograd.grad(value, point)[0]

    def loop():
        found = [batch(slice(i, i + 1)) for i in range(len(x))]
        return torch.stack([value for value, _ in found]), torch.cat([s for _, s in found])

    calls = (ours(), ours(form="materialised"), by_vmap, loop, batch, ours(per_sample=False))
    return dict(zip(SIDES, calls, strict=True))


def check(model: nn.Module, x: Tensor, x2: Tensor, y: Tensor) -> None:
    """Of the first pictures: the sides agree, or nothing is timed."""
    rows = x[:2], x2[:2], y[:2]
    exact = steps(copy.deepcopy(model).double(), *(t.double() for t in rows[:2]), rows[2])
    for sides in (("loop", "fastue", "materialised", "vmap"), ("batch", "fastue-batch")):
        (value, slope), *others = [exact[side]() for side in sides]
        for side, (found, gradient) in zip(sides[1:], others, strict=True):
            error = ((gradient - slope).abs().max() / slope.abs().max()).item()
            assert (found - value).abs().max() < 1e-13, f"{side}: other distances"
            assert error < 1e-9, f"{side}: its gradient is off by {error:.1e}"
    (value, slope), (found, gradient) = exact["loop"](), steps(model, *rows)["fastue"]()
    error = ((gradient - slope).abs().max() / slope.abs().max()).item()
    assert (found - value).abs().max() < 1e-6 and error < 1e-4, f"float32 is off by {error:.1e}"


def peak(name: str, side: str) -> None:
    """Prints the MiB that this process took for a step."""
    model = network(name)
    step = steps(model, *pictures(BATCH[name]))[side]
    steps(model, *pictures(1))[side]()  # libraries are loaded
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is now what there is
    before = resident()
    step()
    step()
    print((resident() - before) / 2**20)


def resident() -> int:
    """Bytes at the high-water mark; that of getrusage would be the parent's, if larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def fresh_peak(name: str, side: str) -> float:
    command = [sys.executable, "-m", "bench.matching", "--network", name, "--peak", side]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(run.stdout)


def run(name: str, sides: tuple[str, ...], rounds: int) -> list[dict]:
    model = network(name)
    x, x2, y = pictures(BATCH[name])
    check(model, x, x2, y)
    calls = {side: steps(model, x, x2, y)[side] for side in sides}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(rounds + 1):
        for side, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:  # the first is to warm up
                seconds[side].append(time.perf_counter() - start)
    rows = []
    for side, times in seconds.items():
        row = dict(network=name, batch=len(x), size=x.shape[-1], side=side, rounds=rounds)
        row |= {
            "p50_s": f"{quantiles(times)[1]:.3f}", "min_s": f"{min(times):.3f}",
            "max_s": f"{max(times):.3f}",
        }  # fmt: skip
        for other in ("vmap", "batch"):
            if other in seconds:  # of the pairs of one round each: the machine's pace drifts
                ratios = [b / a for a, b in zip(times, seconds[other], strict=True)]
                row[f"times_{other}"] = f"{quantiles(ratios)[1]:.2f}"
        row["peak_mib"] = f"{fresh_peak(name, side):.0f}"
        row |= facts(x.device) | {"load": f"{os.getloadavg()[0]:.1f}"}
        rows.append({field: row.get(field, "") for field in FIELDS})
        print(*list(rows[-1].values())[:11], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--network", choices=BATCH, help="one of them (default: both)")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry-run", action="store_true", help="print, write no CSV")
    parser.add_argument("--peak", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.peak:
        peak(given.network, given.peak)
        return
    print(*FIELDS[:11])
    for name in [given.network] if given.network else BATCH:
        rows = run(name, tuple(given.sides.split(",")), given.rounds)
        if not given.dry_run:
            write(rows, "matching", FIELDS)


if __name__ == "__main__":
    main()
