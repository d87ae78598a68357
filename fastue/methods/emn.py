"""EMN: error-minimizing noise (Huang et al., ICLR 2021, arXiv 2101.04898), sample-wise and
class-wise.

    min over theta  E[ min over |delta|_inf <= eps  CE(f_theta(x + delta), y) ]          (eq. 2)

Two moves alternate: a few optimiser steps of theta on the noisy pictures, then one sweep over the
pictures in which theta stands still and the noise descends the loss. They stop when the noisy
pictures look already learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fastue.methods.base import (
    ABOVE_0,
    Config,
    Cost,
    Method,
    Perturbation,
    flag,
    lazy,
    number,
    pixels,
    some_of,
    whole,
)
from fastue.methods.loop import Run, Surrogate, batch_seconds

if TYPE_CHECKING:
    import torch

    from fastue.data.dataset import ImageDataset
else:
    torch = lazy("torch")

keyed = lazy("fastue.data.keyed")
models = lazy("fastue.models")
ops = lazy("fastue.ops")
training = lazy("fastue.models.training")

RECIPES = {
    "paper": "20 noise steps of 0.8/255 on a batch in a sweep",
    "fast": "5 noise steps of 0.4 of the budget (3.2/255): more sweeps, a fraction of the cost",
}
COMPATS = {
    "none": "signed noise, rounded to nearest",
    "emn2021": "as the public EMN code: stops after one good sweep, and every negative noise value "
    "becomes 0",
}
# What noise can be made to survive: fastue.methods.survive.
SURVIVE = ("gray", "jpeg", "blur")
# Squares of so many pixels a side share a noise value. Noise of single pixels is another pattern
# once a crop has moved it, and some seeds of it protect nothing (docs/EMN.md).
GRAIN = 4
GOOD_SWEEPS = 10  # in a row, class-wise
# Nor does coarse class-wise noise stop before the surrogate has walked through the pictures so
# often, or has made so many sweeps: with more pictures, some seeds would else stop too early.
WALKS, LEAST_SWEEPS = 4, 30
# Until the stop rule held in our runs on CIFAR-10 pictures (docs/EMN.md): an order of magnitude,
# not a promise.
TYPICAL_SWEEPS = {"sample": (5, 15), "class": (15, 25)}


@dataclass(frozen=True)
class EMNConfig(Config):
    """Noise in [0,1] pixel units. `steps` and `step` left at None take the recipe's value for the
    mode.
    """

    method = "emn"

    arch: str = flag(
        "auto",
        "surrogate: resnet18, resnet10-w16 (w: width), cnn, timm:NAME …",
        shown="auto (resnet18 on a GPU, resnet10-w16 on a CPU)",
    )
    recipe: str | None = flag(
        None,
        "fast: 5 large noise steps for 20 small ones",
        choices=RECIPES,
        shown="fast; paper with --compat",
        recorded=False,
    )
    steps: int | None = flag(
        None, "noise steps on a batch in a sweep", parse=whole, check=ABOVE_0, shown="the recipe's"
    )
    step: float | None = flag(
        None, "size of a noise step", parse=pixels, check=ABOVE_0, shown="the recipe's"
    )
    grain: int | None = flag(
        None,
        "side of the squares of pixels that share a noise value",
        parse=whole,
        check=ABOVE_0,
        shown=f"{GRAIN}; 1 with --compat",
        before=1,
    )
    survive: str = flag(
        "",
        "make noise that is there after these, too: some of gray, jpeg, blur. Slower",
        parse=lambda text: some_of(text, SURVIVE),
        shown="nothing",
        before="",
    )
    identities: str = flag(
        "",
        "protect the pictures of these classes only, separated by commas; the others, which an "
        "adversary learns beside them, are written as they are",
        shown="all",
        before="",
    )
    crops: bool = flag(False, "search under random crops and flips: slower", before=False)
    max_sweeps: int = flag(100, "give up after this many", parse=whole, check=ABOVE_0)
    # The stop rule is not looked at before; `fastue protect` raises it where its check fails.
    min_sweeps: int = flag(0, parse=whole, before=0)
    compat: str = flag("none", "repeat a public code's bug", choices=COMPATS, recorded=False)
    precision: str = flag(
        "auto",
        "of the surrogate",
        choices=("auto", "float32", "bf16"),
        shown="auto (bf16 where there are matrix units for it)",
    )
    compile: bool = flag(False, "torch.compile the surrogate (CUDA graphs on a GPU)")

    # Of the paper; no flags.
    train_steps: int = flag(10, parse=whole, check=ABOVE_0)  # of the surrogate between two sweeps
    batch: int = flag(128, parse=whole, check=ABOVE_0)
    lr: float = flag(0.1, parse=number, check=ABOVE_0)
    clip: float = flag(5.0, parse=number, check=ABOVE_0)
    # Class-wise noise is searched on this share of the pictures.
    subset: float = flag(0.2, parse=number, check=(lambda v: 0 < v <= 1, "must be in (0, 1]"))
    # Error rate of the surrogate on the noisy pictures, before they are improved for it, in so many
    # sweeps in a row.
    stop_error: float = flag(0.01, parse=number, check=(lambda v: 0 <= v < 1, "must be in [0, 1)"))
    stop_sweeps: int | None = flag(None, parse=whole, check=ABOVE_0)

    def __post_init__(self) -> None:
        super().__post_init__()
        paper = self.recipe == "paper" or self.recipe is None and self.compat != "none"
        large = not paper and not self.classwise
        defaults = {
            "recipe": "paper" if paper else "fast",
            "stop_sweeps": self.good_sweeps(),
            "grain": GRAIN if self.compat == "none" else 1,
            "steps": 1 if self.classwise else 5 if large else 20,
            "step": 0.4 * self.eps if large else 0.8 / 255,
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        # The public code stops after one sweep at 1 % error sample-wise, at 10 % class-wise.
        if self.compat == "emn2021":
            object.__setattr__(self, "stop_error", 0.1 if self.mode == "class" else 0.01)
            object.__setattr__(self, "stop_sweeps", 1)

    @property
    def classwise(self) -> bool:
        """Whether the search is for a noise of each class."""
        return self.mode == "class"

    def on(self, device: torch.device) -> EMNConfig:
        auto = "resnet18" if torch.device(device).type == "cuda" else "resnet10-w16"
        return replace(
            self,
            arch=auto if self.arch == "auto" else self.arch,
            precision=training.resolve_precision(self.precision, device),
        )

    def good_sweeps(self) -> int:
        """How many in a row the stop rule asks for. Class-wise a sweep is short, and coarse noise
        gets stronger for some time after the surrogate has learnt it."""
        return GOOD_SWEEPS if self.classwise and self.grain != 1 else 2

    def least_sweeps(self, n: int) -> int:
        """Before which the stop rule is not looked at, for n pictures."""
        if self.good_sweeps() != GOOD_SWEEPS:
            return self.min_sweeps
        sweeps = math.ceil(WALKS * n / (self.train_steps * min(self.batch, n)))
        return max(self.min_sweeps, min(sweeps, LEAST_SWEEPS))

    def text(self) -> str:
        seen = ", under crops" if self.crops else ""
        return (
            f"surrogate {self.arch} in {self.precision}, {super().text()}, grain {self.grain}{seen}"
        )

    def stronger(self) -> EMNConfig | None:
        """Coarser noise survives a shift at no cost; crops in the search cost several times as many
        sweeps."""
        if self.compat != "none":
            return None
        if self.grain < GRAIN:
            return replace(self, grain=GRAIN, stop_sweeps=None, min_sweeps=0)
        if not self.crops:
            return replace(self, crops=True, min_sweeps=0)
        coarser = replace(self, grain=2 * GRAIN, min_sweeps=0)
        return coarser if self.grain < coarser.grain else None

    def warnings(self) -> list[str]:
        if self.compat == "none":
            return []
        return [f"--compat {self.compat}: {COMPATS[self.compat]}. This is not a protection."]

    def searched(self, n: int, classes: int) -> int:
        """How many of n pictures a sweep goes over."""
        return max(round(self.subset * n), min(n, classes)) if self.mode == "class" else n


def emn(
    data: ImageDataset,
    config: EMNConfig,
    *,
    surrogate: type[Surrogate] = Surrogate,
    **surroundings,
) -> Perturbation:
    """The noise for `data`, on the device `data` is on. `surroundings` are checkpoint, clock and
    progress of a Run.
    """
    c = config.on(data.device)
    c = replace(c, min_sweeps=min(c.least_sweeps(len(data)), max(c.max_sweeps, c.min_sweeps)))
    swept = data.rows_of(c.protected_classes(data.classes))
    if (count := c.searched(len(swept), data.num_classes)) < len(swept):
        order = keyed.keyed_generator(c.seed, "emn-subset").permutation(len(swept))
        swept = swept[torch.from_numpy(order[:count])]
    run = Run(data, c, surrogate, swept, **surroundings)
    theta, dtype = run.theta, run.theta.frozen.dtype
    gradient_of = run.timed("network", run.seen(run.shared(theta.gradient)))
    class_step, linf_step = (run.timed("ops", op) for op in (ops.class_step, ops.linf_step))

    while run.goes_on():
        for noisy, y, step in run.training_batches():
            theta.learn(noisy, y, step)
        # The noise learns to please theta: one forward, one input gradient, one op a move.
        for x, y, index, batch in run.sweep_batches():
            (noise, rows), view = run.noise_of(y, index), run.view("noise", batch, index)
            noisy = run.apply_noise(x, noise, rows, dtype=dtype, channels_last=True, **view)
            for move in range(theta.moves):
                gradient, right = gradient_of(noisy, y, index, move, batch)
                if run.classwise:
                    class_step(noise, gradient, x, y, step=c.step, eps=c.eps, **view)
                    noisy = run.apply_noise(x, noise, y, out=noisy, **view)
                else:
                    linf_step(noise, gradient, x, rows, step=c.step, eps=c.eps, out=noisy, **view)
            run.count(right)

    return run.result(change="positive" if c.compat == "emn2021" else "additive")


def plan(
    data: ImageDataset, config: EMNConfig, n: int, make: Callable = emn, passes=(1.0, 1.0)
) -> Cost:
    """Times a few steps of training and a few noise batches, which `passes` says how often a step
    and a batch of the run contain; the rest is arithmetic.
    """
    times = zip(batch_seconds(make, data, config), passes, strict=True)
    train, noise = (seconds * often for seconds, often in times)
    size, rows = min(config.batch, len(data)), config.searched(n, data.num_classes)
    low, high = TYPICAL_SWEEPS[config.mode]
    least = config.least_sweeps(n)
    most = max(config.max_sweeps, config.min_sweeps)
    return Cost(
        {"training": size / train, "noise sweep": size / noise},
        config.train_steps * train + rows / size * noise,
        (min(max(low, least), most), min(max(high, least), most)),
    )


def check(data: ImageDataset, config: EMNConfig) -> None:
    """A network or an identity of an unknown name fails here."""
    config.protected_classes(data.classes)
    models.build(config.arch, data.num_classes, data.shape[0])


METHOD = Method(EMNConfig, emn, plan, check)
