"""Time batch-level gradient matching: `python -m bench.grad_cosine [--rounds N] [--dry-run]`.

A step is the cosine of two lists of gradients and its gradient in the second list: the op and
1 - cos in its difference form, against the list loops that published gradient-matching code runs,
written here in our own words. All take turns on the gradients of ResNet-18, after they gave the
same loss and gradient (except for the cosine of each row, which is another loss). Rows are appended
to bench/results/<device>.csv.
"""

import argparse
import os
import sys

import torch

import fastue.ops
from bench.ops import FIELDS, facts, once, peak_mib, quantiles, write
from fastue.ops.grad_cosine.cases import lists, resnet18


def fused(g, h):
    n, q, m = fastue.ops.grad_cosine(g, h)
    of_h = n + 2 * q + m
    root_g, root_h = n.sqrt(), of_h.sqrt()
    return (m - ((2 * q + m) / (root_g + root_h)) ** 2) / (2 * root_g * root_h)


def witches_brew(g, h):
    """One product and one norm a tensor; the targets' norm is known before."""
    loss, norm = 0, 0
    for target, source in zip(g, h, strict=True):
        loss -= (target * source).sum()
        norm += source.pow(2).sum()
    return 1 + loss / (norm.sqrt() * NORM[0])


def breaching(g, h):
    """Three sums."""
    product, norm, target_norm = 0, 0, 0
    for target, source in zip(g, h, strict=True):
        product += (target * source).sum()
        norm += source.pow(2).sum()
        target_norm += target.pow(2).sum()
    return 1 - product / norm.sqrt() / target_norm.sqrt()


def condensation(g, h):
    """Dataset condensation: a cosine for each output row, summed; vectors are left out."""
    loss = 0
    for target, source in zip(g, h, strict=True):
        if target.dim() > 1:
            target, source = target.flatten(1), source.flatten(1)
            cosine = (target * source).sum(1) / (target.norm(dim=1) * source.norm(dim=1) + 1e-6)
            loss += (1 - cosine).sum()
    return loss


NORM = []
LOSSES = {f.__name__: f for f in (fused, witches_brew, breaching, condensation)}


def step(loss, g, h):
    """The loss and its gradient in h, as a search for noise takes both."""
    value = loss(g, h)
    return value, torch.autograd.grad(value, h, allow_unused=True)


def check(g, h) -> None:
    """The same loss and gradient as in float64; raises AssertionError else."""
    wide = [t.double() for t in g], [t.detach().double().requires_grad_() for t in h]
    NORM[:] = [sum(t.square().sum() for t in wide[0]).sqrt()]
    value, gradient = step(breaching, *wide)
    size = sum(t.square().sum() for t in gradient).sqrt()
    for name in ("fused", "witches_brew", "breaching"):
        own, v = step(LOSSES[name], g, h)
        off = sum((a - b).square().sum() for a, b in zip(v, gradient, strict=True)).sqrt() / size
        print(f"{name}: loss off by {abs(own - value) / value:.1e}, gradient by {off:.1e}")
        assert abs(own - value) < 1e-3 * value and off < 1e-2, f"{name} gives something else"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.grad_cosine", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dry-run", action="store_true", help="print, write no CSV")
    given = parser.parse_args()
    device = torch.device(given.device)
    pair = lists(torch.Generator().manual_seed(0), torch.float32, resnet18(), 0.01, 0.1)
    g, h = ([t.to(device) for t in pair[k]] for k in ("g", "h"))
    for t in h:
        t.requires_grad_()
    check(g, h)
    NORM[:] = [sum(t.square().sum() for t in g).sqrt()]
    sides = {name: lambda loss=loss: step(loss, g, h) for name, loss in LOSSES.items()}
    for side in sides.values():
        side()
    times = {name: [] for name in sides}
    for _ in range(given.rounds):
        for name, side in sides.items():
            times[name].append(once(side, device))
    about, rows = facts(device), []
    own = quantiles(times["fused"])[1]
    for name, side in sides.items():
        p20, p50, p80 = (f"{t:.3f}" for t in quantiles(times[name]))
        peak = f"{peak_mib(side, device):.0f}"
        row = dict(op="grad_cosine", case="resnet18-step", shape=str(sum(t.numel() for t in g)),
                   dtype="float32", backend=name, p20_ms=p20, p50_ms=p50, p80_ms=p80, peak_MiB=peak,
                   rounds=given.rounds, load=f"{os.getloadavg()[0]:.1f}", **about)  # fmt: skip
        rows.append({field: row.get(field, "") for field in FIELDS})
        times_fused = quantiles(times[name])[1] / own
        print(
            f"{name:<13} p20 {p20} p50 {p50} p80 {p80} ms {times_fused:5.2f}x fused, peak {peak} MiB"
        )
    if not given.dry_run:
        print(write(rows, about["device"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
