"""UGE: ungeneralizable examples (Ye & Wang, CVPR 2024, arXiv 2404.14016), pictures for one
authorized network.

    L = L_gm + lambda_fd L_fd + lambda_ud L_ud        minimised over a generator of the noise

The authorized network is an architecture *and its initial weights* theta_0. It is trained on the
clean pictures once; at weights theta_t of that trajectory, drawn at random,

    gm    mean_i [1 - cos(grad l(theta_t; x_i, y_i), grad l(theta_t; x_i', y_i))]  keeps the
          trajectory
    fd    drives x' away from x in a feature space that others learn in
    ud    keeps a student from imitating the authorized network's answers to x'

The paper's text was not to be had in full: what is not said of it in docs/UGE.md is ours, and so
is the term

    emn   the loss of hackers that learn the noisy pictures meanwhile, minimised (EMN's min-min)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from fastue import distributed
from fastue.core.errors import UsageError
from fastue.methods.base import (
    ABOVE_0,
    Checkpointer,
    Config,
    Method,
    Perturbation,
    flag,
    lazy,
    number,
    silent,
    whole,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fastue.core.clock import Clock
    from fastue.data.dataset import ImageDataset
    from fastue.methods.loop import Surrogate
    from fastue.methods.uge_run import Clean
else:
    torch = lazy("torch")

F = lazy("torch.nn.functional")
core = lazy("fastue.core.clock")
dataset = lazy("fastue.data.dataset")
feature_spaces = lazy("fastue.models.features")
keyed = lazy("fastue.data.keyed")
matching = lazy("fastue.matching")
models = lazy("fastue.models")
training = lazy("fastue.models.training")
uge_run = lazy("fastue.methods.uge_run")

TERMS = ("gm", "fd", "ud", "emn")
TEMPERATURE, MARGIN = 4.0, 4.0  # of undistillation; the divergence counts up to the margin


def weights(text: str) -> str:
    """`gm=1,fd=0.5`: each term once, in order; those not named have weight 0."""
    found: dict[str, float] = {}
    for word in filter(None, text.split(",")):
        name, equals, value = word.partition("=")
        if name not in TERMS or not equals or name in found:
            raise UsageError(
                f"{word}: write {','.join(f'{term}=1' for term in TERMS)}, or some of it"
            )
        found[name] = number(value)
        if not 0 <= found[name] < math.inf:
            raise UsageError(f"{word}: a weight is 0 or more")
    if not any(found.values()):
        raise UsageError("all weights are 0")
    return ",".join(f"{term}={found[term]:g}" for term in TERMS if found.get(term))


@dataclass(frozen=True)
class UGEConfig(Config):
    """Noise in [0,1] pixel units; each term of the loss is divided by what it is at first."""

    method = "uge"

    arch: str = flag(
        "auto",
        "the authorized network, its initial weights drawn by --seed",
        shown="auto (resnet18 on a GPU, cnn-w16 on a CPU)",
    )
    authorized: str = flag(
        "",
        "files of authorized networks instead, separated by commas: surrogate.safetensors of "
        "earlier runs",
        shown="none",
    )
    frozen: int = flag(
        0,
        "first convolutions of the authorized network that never learn: they have learnt the clean "
        "pictures before (ours)",
        parse=whole,
        check=(lambda v: v >= 0, "must be 0 or more"),
    )
    weights: str = flag("gm=1,fd=1,ud=1", "of the terms gm, fd, ud, emn", parse=weights)
    free: bool = flag(
        False,
        "a noise of its own for each picture (or class), by signed steps, instead of a generator's",
    )
    grain: int = flag(
        4, "side of the squares of pixels that share a noise value", parse=whole, check=ABOVE_0
    )
    clamp: bool = flag(False, "clamp the generator's output, as published, instead of eps * tanh")
    level: str = flag(
        "sample",
        "whose gradients are matched",
        choices={"sample": "each picture's", "batch": "a batch's"},
    )
    layerwise: bool = flag(False, "match the gradients of each layer instead of all together")
    norm_term: float = flag(
        0.0,
        "weight of the square of log(norm of g' / norm of g) beside the cosine",
        parse=number,
        check=(lambda v: v >= 0, "must be 0 or more"),
    )
    late: bool = flag(False, "match at snapshots of the second half of the clean training only")
    features: str = flag("self", "feature space of fd: self (a network trained here) or timm:NAME")
    distance: str = flag(
        "misaligned",
        "of fd",
        choices={"misaligned": "towards another class", "plain": "away from where it is"},
    )
    hackers: str = flag(
        "auto",
        "networks of emn, separated by commas",
        shown="auto (--arch with other initial weights)",
    )
    epochs: int = flag(
        12, "of the authorized network on clean pictures", parse=whole, check=ABOVE_0
    )
    sweeps: int = flag(20, "over the pictures, to make the noise", parse=whole, check=ABOVE_0)

    # Ours, where the sources are silent; no flags.
    snapshots: int = flag(4, parse=whole, check=ABOVE_0)  # of the trajectory, one drawn a batch
    batch: int = flag(128, parse=whole, check=ABOVE_0)
    width: int = flag(32, parse=whole, check=ABOVE_0)  # of the generator
    adam: float = flag(1e-3, parse=number, check=ABOVE_0)  # of the generator
    step: float = flag(0.4, parse=number, check=ABOVE_0)  # of free noise at first, in budgets
    lr: float = flag(0.1, parse=number, check=ABOVE_0)  # of all networks that learn
    clip: float = flag(5.0, parse=number, check=ABOVE_0)
    train_steps: int = flag(10, parse=whole, check=ABOVE_0)  # of the hackers between two sweeps
    # Of the hackers, as fastue.methods.loop.Surrogate wants to know.
    precision: ClassVar[str] = "float32"
    compile: ClassVar[bool] = False
    steps: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "class" and not self.free:
            object.__setattr__(self, "free", True)  # a generator's noise is a picture's

    def on(self, device: torch.device) -> UGEConfig:
        auto = "resnet18" if torch.device(device).type == "cuda" else "cnn-w16"
        arch = auto if self.arch == "auto" else self.arch
        return replace(self, arch=arch, hackers=arch if self.hackers == "auto" else self.hackers)

    def terms(self) -> dict[str, float]:
        """The terms with a weight above 0."""
        pairs = (word.split("=") for word in self.weights.split(","))
        return {name: float(value) for name, value in pairs}

    def text(self) -> str:
        kind = "free noise" if self.free else "a generator"
        return f"for {self.authorized or self.arch}, {self.weights}, {kind}, {super().text()}"


def uge(
    data: ImageDataset,
    config: UGEConfig,
    *,
    checkpoint: Checkpointer | None = None,
    clock: Any = None,
    progress: Callable[[str, int, int, dict], None] = silent,
) -> Perturbation:
    """The noise for `data`, on the device `data` is on."""
    c, checkpoint = config.on(data.device), checkpoint or Checkpointer(None)
    clock = clock or core.Clock()
    with clock("clean"):
        clean = uge_run.Clean(data, c, checkpoint.folder, progress)
    noise = (uge_run.FreeNoise if c.free else uge_run.GeneratedNoise)(data, c)
    run = uge_run.Run(data, c, noise, checkpoint, progress)
    losses = Losses(c, clean, data, run.hackers, clock)

    for batch, (x, y, index) in run.batches():
        shown = noise.shown(x, index, y).detach().requires_grad_()
        values = losses(x, shown, y, batch)
        scale = run.scale(values)
        total = sum(weight / scale[name] * values[name] for name, weight in c.terms().items())
        with clock("gradient"):  # but that of gm, which is made with its value
            (gradient,) = torch.autograd.grad(total, shown)
        with clock("noise"):
            noise.move(gradient, y, index, left=1 - batch / (c.sweeps * run.per_sweep))
    clock.notes += losses.plan
    return run.result(clean)


class Losses:
    """The terms of pictures x' float32 [B,C,H,W] beside their originals x (both in [0,1])."""

    def __init__(
        self,
        c: UGEConfig,
        clean: Clean,
        data: ImageDataset,
        hackers: list[Surrogate],
        clock: Clock,
    ):
        self.c, self.clean, self.hackers, self.clock = c, clean, hackers, clock
        self.plan: list[str] = []  # how the gradients of each layer are compared
        self.classes = data.num_classes
        if "fd" in c.terms():
            self.features = (
                feature_spaces.penultimate(clean.other)
                if c.features == "self"
                else feature_spaces.pretrained(c.features)
            )
            if c.distance == "misaligned":
                self.prototypes = self._prototypes(data)
                shift = keyed.keyed_generator(c.seed, "uge-misaligned").integers(1, self.classes)
                self.elsewhere = int(shift)  # a permutation of the classes without a fixed point

    def __call__(self, x: Tensor, shown: Tensor, y: Tensor, number: int) -> dict[str, Tensor]:
        found = {}
        for name in self.c.terms():
            with self.clock(name):
                found[name] = getattr(self, name)(x, shown, y, number)
        return found

    def gm(self, x: Tensor, shown: Tensor, y: Tensor, number: int) -> Tensor:
        """Gradient matching at a weight of each authorized network's trajectory."""
        c = self.c
        generator = keyed.keyed_generator(c.seed, "uge-snapshot", number)
        total = 0.0
        for trajectory in self.clean.trajectories:
            theta = trajectory[int(generator.integers(len(trajectory)))]
            each = c.level == "sample"
            target = matching.GradientTarget(
                theta,
                _each if each else F.cross_entropy,
                x,
                y,
                each,
                layers=c.layerwise,
                norm_weight=c.norm_term,
            )
            total = total + target(shown).mean()
            if each:
                self.plan = [
                    f"{name}: {form}, {positions} positions, {outs} x {depth}"
                    for name, form, _, positions, outs, depth in target.plan
                ]
        return total / len(self.clean.trajectories)

    def fd(self, x: Tensor, shown: Tensor, y: Tensor, number: int) -> Tensor:
        """Feature distance: misaligned, the cross-entropy of another class in phi, a class being
        its mean; plain, cos(phi(x), phi(x'))."""
        seen = self.features(shown)
        if self.c.distance == "plain":
            with torch.no_grad():
                target = self.features(x)
            return F.cosine_similarity(seen, target).mean()
        middle, means = self.prototypes
        logits = 10 * F.normalize(seen - middle) @ means.T
        return F.cross_entropy(logits, (y + self.elsewhere) % self.classes)

    def ud(self, x: Tensor, shown: Tensor, y: Tensor, number: int) -> Tensor:
        """Undistillation: the divergence of a student from the trained authorized network, up to a
        margin, negative."""
        t = TEMPERATURE
        total = 0.0
        for teacher in self.clean.trained:
            answers = F.log_softmax(teacher(shown) / t, 1)
            student = F.log_softmax(self.clean.other(shown) / t, 1)
            divergence = F.kl_div(student, answers, reduction="none", log_target=True).sum(1)
            total = total - (t * t * divergence).clamp(max=MARGIN).mean()
        return total / len(self.clean.trained)

    def emn(self, x: Tensor, shown: Tensor, y: Tensor, number: int) -> Tensor:
        """Error minimised for the hackers, as they stand since the last sweep began."""
        return sum(F.cross_entropy(h.frozen(shown), y) for h in self.hackers) / len(self.hackers)

    def _prototypes(self, data: ImageDataset) -> tuple[Tensor, Tensor]:
        """The mean of phi over all pictures [F], and the direction of each class's from it [K, F]."""
        sums, counts = 0.0, torch.bincount(data.labels, minlength=self.classes)
        for x, y, _ in dataset.batches(data, 500):
            with torch.no_grad():
                seen = self.features(training.to_input(x))
            one_hot = F.one_hot(y, self.classes).to(seen.dtype)
            sums = sums + one_hot.T @ seen
        middle = sums.sum(0) / counts.sum()
        return middle, F.normalize(sums / counts[:, None] - middle)


def _each(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="none")


def check(data: ImageDataset, config: UGEConfig) -> None:
    """Networks and feature spaces of unknown names fail here."""
    if distributed.place()[1] > 1:
        raise UsageError("--method uge runs in one process; start it without torchrun")
    c = config.on(data.device)
    uge_run.authorized_networks(data, c)
    for arch in c.hackers.split(","):
        models.build(arch, data.num_classes, data.shape[0])
    if "fd" in c.terms() and data.num_classes < 2:
        raise UsageError("fd needs two classes at least")
    if c.features != "self":
        feature_spaces.pretrained(c.features)


METHOD = Method(UGEConfig, uge, None, check)
