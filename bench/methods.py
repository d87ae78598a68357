"""Time a whole EMN outer iteration: `python -m bench.methods [--arch resnet18] [--pictures 512]
[--peer emn=DIR]`.

One iteration is 10 optimiser steps of the surrogate on the noisy pictures, one sweep of noise steps
over all pictures, and the error rate that the stop rule needs. The sides take turns, each starting
from the same weights and zero noise:

  published   the loop of the public EMN code in our words: float32, a Python loop over the samples
              of each batch, noise copied to the host and back, an optimiser object a step, a
              forward pass more for the error rate; the network as the public one, with activations
              that are not in place
  peer        the same outer loop around the public repository's own PerturbationTool, from a
              checkout you name
  tuned       what somebody who knows PyTorch would write: gathers by index, channels_last, bf16
              autocast (or not)
  fastue      fastue.methods.emn

The last two run with the heap as `fastue` sets it (fastue.core.heap), the first two as any program
runs.

Before anything is timed, one batch of noise steps must give the same noise on all sides (float32,
where the sign of the gradient is decided). Rows are appended to bench/results/methods-<device>.csv.
"""

import argparse
import contextlib
import copy
import importlib.util
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from bench.certify import out_of_place
from bench.ops import facts, quantiles, write
from fastue import models
from fastue.core.heap import freed_memory_kept
from fastue.core.opspec import use_backend
from fastue.data.sources import open_dataset
from fastue.methods.emn import EMNConfig, emn
from fastue.models.training import autocast, resolve_precision, sgd, to_input, train_step

EPS, STEP = 8 / 255, 0.8 / 255
FIELDS = (
    "method", "mode", "side", "precision", "arch", "pictures", "steps", "batch", "rounds", "p50_s", "min_s", "max_s",
    "times_published", "times_tuned", "device", "threads", "load", "torch", "triton", "fastue", "commit", "time",
)  # fmt: skip


def min_min(model, images, labels, noise, steps):
    """The published inner loop, in our words: the picture is stepped, the noise is what is left of
    it."""
    p = torch.clamp(images + noise, 0, 1)
    for _ in range(steps):
        p = p.detach().requires_grad_()
        torch.optim.SGD([p], lr=1e-3).zero_grad()
        model.zero_grad()
        F.cross_entropy(model(p), labels).backward()
        p = p.data + STEP * p.grad.data.sign() * -1
        eta = torch.clamp(p - images, -EPS, EPS)
        p = torch.clamp(images + eta, 0, 1)
    return eta


def published(data, given, inner=min_min):
    """The published outer iteration; `inner` may be the public repository's own."""
    model = out_of_place(models.build(given.arch, data.num_classes, data.shape[0]))
    optimizer = sgd(model, 0.1)
    noise = [np.zeros(data.shape, np.float32) for _ in range(len(data))]
    pictures = data.images.contiguous().float() / 255

    def noisy(rows):
        images = pictures[rows].clone()
        for i, row in enumerate(rows.tolist()):
            images[i] = images[i] + torch.from_numpy(noise[row])
        return images

    chunks = torch.arange(len(data)).split(given.batch)
    model.train()
    for step in range(10):
        rows = chunks[step % len(chunks)]
        train_step(model, optimizer, noisy(rows), data.labels[rows], precision="float32", clip=5.0)
    model.eval().requires_grad_(False)
    for rows in chunks:
        batch_noise = torch.stack([torch.from_numpy(noise[row]) for row in rows.tolist()])
        eta = inner(model, pictures[rows], data.labels[rows], batch_noise, given.steps)
        for i, row in enumerate(rows.tolist()):
            noise[row] = eta[i].clone().detach().cpu().numpy()
    wrong = sum(int((model(noisy(rows)).argmax(1) != data.labels[rows]).sum()) for rows in chunks)
    model.requires_grad_(True)
    return wrong / len(data)


def peer_inner(folder: str):
    """min_min_attack of the public repository in `folder`."""
    spec = importlib.util.spec_from_file_location("peer_emn_toolbox", Path(folder) / "toolbox.py")
    toolbox = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(toolbox)

    def inner(model, images, labels, noise, steps):
        tool = toolbox.PerturbationTool(seed=0, epsilon=EPS, num_steps=steps, step_size=STEP)
        _, eta = tool.min_min_attack(
            images, labels, model, None, torch.nn.CrossEntropyLoss(), random_noise=noise
        )
        return eta

    return inner


# torch's own convolutions: in bf16 those of our networks are a kernel of ours
@use_backend("reference")
def tuned(data, given, precision):
    """The same iteration by index, in channels_last, under autocast where precision is bf16."""
    model = models.build(given.arch, data.num_classes, data.shape[0]).to(
        memory_format=torch.channels_last
    )
    optimizer = sgd(model, 0.1)
    noise = torch.zeros(data.images.shape).contiguous(memory_format=torch.channels_last)
    chunks = torch.arange(len(data)).split(given.batch)
    model.train()
    for step in range(10):
        rows = chunks[step % len(chunks)]
        x = (to_input(data.images[rows]) + noise[rows]).clamp_(0, 1)
        train_step(model, optimizer, x, data.labels[rows], precision=precision, clip=5.0)
    model.eval().requires_grad_(False)
    wrong = 0
    for rows in chunks:
        eta = tuned_inner(
            model,
            to_input(data.images[rows]),
            data.labels[rows],
            noise[rows],
            given.steps,
            precision,
        )
        noise[rows] = eta
    with torch.no_grad(), autocast(data.device, precision):
        for rows in chunks:
            x = (to_input(data.images[rows]) + noise[rows]).clamp_(0, 1)
            wrong += (model(x).argmax(1) != data.labels[rows]).sum()
    return float(wrong) / len(data)


def tuned_inner(model, images, labels, eta, steps, precision="float32"):
    for _ in range(steps):
        p = (
            (images + eta)
            .clamp_(0, 1)
            .contiguous(memory_format=torch.channels_last)
            .requires_grad_()
        )
        with autocast(p.device, precision):
            loss = F.cross_entropy(model(p), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, p)
        with torch.no_grad():
            eta = p.sub_(gradient.sign_(), alpha=STEP).sub_(images).clamp_(-EPS, EPS)
    return eta


def ours(data, given, precision):
    config = EMNConfig(
        recipe="paper",
        arch=given.arch,
        batch=given.batch,
        steps=given.steps,
        max_sweeps=1,
        precision=precision,
        grain=1,
    )
    return emn(data, config).history[-1]["error"]


def gate(data, given, inners: dict) -> list[str]:
    """Two noise steps on one batch: every side must step as float64 does wherever float64's
    gradient is decided."""
    from fastue.methods.loop import input_gradient
    from fastue.models.frozen import FrozenCopy
    from fastue.ops import apply_noise, linf_step

    n = min(16, len(data))
    x, y = data.images[:n], data.labels[:n]
    images = to_input(x)
    model = models.build(given.arch, data.num_classes, data.shape[0]).eval().requires_grad_(False)
    exact = copy.deepcopy(model).double()
    p = images.double().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(exact(p), y), p)
    decided = gradient.abs() > 1e-3 * gradient.abs().amax((1, 2, 3), keepdim=True)
    # One step from zero noise, kept inside [0, 1] as every side's picture is.
    wanted = ((images.double() - STEP * gradient.sign()).clamp(0, 1) - images.double()) * 255

    results = {
        name: inner(model, images, y, torch.zeros_like(images), 1) for name, inner in inners.items()
    }
    results["tuned"] = tuned_inner(model, images, y, torch.zeros_like(images), 1)
    noise = torch.zeros_like(images)
    theta, rows = FrozenCopy(model, "float32"), torch.arange(n)
    gradient, _ = input_gradient(theta, apply_noise(x, noise, rows), y)
    linf_step(noise, gradient, x, rows, step=STEP, eps=EPS)
    results["fastue"] = noise
    red = []
    for name, eta in results.items():
        got = ((images + eta).clamp(0, 1) - images).double() * 255
        worst = float(((got - wanted).abs() * decided).max().detach())
        if worst > 1e-3:
            red.append(f"{name}: noise differs by {worst:.3g}/255 where the sign is decided")
    return red


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.methods", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--source", default="demo:train", help="any data set fastue protect takes")
    parser.add_argument("--peer", metavar="emn=DIR", help="a checkout of the public EMN repository")
    parser.add_argument("--dry-run", action="store_true", help="print, write no CSV")
    given = parser.parse_args()
    data = open_dataset(given.source)
    data = data.subset(
        torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: given.pictures]
    )
    inners = {"published": min_min}
    if given.peer:
        name, _, folder = given.peer.partition("=")
        if name != "emn" or not (Path(folder) / "toolbox.py").exists():
            parser.error("--peer takes emn=DIR where DIR holds the public repository's toolbox.py")
        inners["peer"] = peer_inner(folder)
    about = facts(torch.device("cpu"))
    print("  ".join(f"{k} {v}" for k, v in about.items()), f" load {os.getloadavg()[0]:.1f}")
    if red := gate(data, given, inners):
        print("wrong results, nothing is timed:", *red, sep="\n  ")
        return 1
    precisions = ["float32"] + (["bf16"] if resolve_precision("auto") == "bf16" else [])
    sides = {
        (name, "float32"): lambda inner=inner: published(data, given, inner)
        for name, inner in inners.items()
    }
    for precision in precisions:
        sides["tuned", precision] = lambda precision=precision: tuned(data, given, precision)
        sides["fastue", precision] = lambda precision=precision: ours(data, given, precision)
    times: dict[tuple, list[float]] = {side: [] for side in sides}
    with contextlib.suppress(KeyboardInterrupt):  # what is measured so far counts
        for number in range(given.rounds):
            for side, run in sides.items():
                with (
                    freed_memory_kept()
                    if side[0] in ("tuned", "fastue")
                    else contextlib.nullcontext()
                ):
                    start = time.perf_counter()
                    error = run()
                    times[side].append(time.perf_counter() - start)
                print(f"round {number + 1} {' '.join(side):<18} {times[side][-1]:7.1f} s, error {error:.3f}, "
                      f"load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
    conclude(times, given, len(data), about)
    return 0


def conclude(times: dict[tuple, list[float]], given, pictures: int, about: dict) -> None:
    """Print and write a row a side, over the rounds that all sides finished."""
    rounds = min(len(seconds) for seconds in times.values())
    if not rounds:
        return
    p50 = {side: quantiles(seconds[:rounds])[1] for side, seconds in times.items()}
    rows = []
    for (name, precision), middle in p50.items():
        seconds = times[name, precision][:rounds]
        rows.append({
            "method": "emn", "mode": "sample", "side": name, "precision": precision, "arch": given.arch,
            "pictures": pictures, "steps": given.steps, "batch": given.batch, "rounds": rounds,
            "p50_s": f"{middle:.2f}", "min_s": f"{min(seconds):.2f}", "max_s": f"{max(seconds):.2f}",
            "times_published": f"{p50['published', 'float32'] / middle:.2f}",
            "times_tuned": f"{p50['tuned', precision] / middle:.2f}",
            "load": f"{os.getloadavg()[0]:.1f}", **about,
        })  # fmt: skip
        print(f"{name:<10} {precision:<8} {middle:7.1f} s  {rows[-1]['times_published']}x published  "
              f"{rows[-1]['times_tuned']}x tuned")  # fmt: skip
    if not given.dry_run:
        print(write(rows, f"methods-{about['device']}", FIELDS))


if __name__ == "__main__":
    sys.exit(main())
