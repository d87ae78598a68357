"""EMN: error-minimizing noise (Huang et al., ICLR 2021, arXiv 2101.04898), sample-wise and class-wise.

    min over theta  E[ min over |delta|_inf <= eps  CE(f_theta(x + delta), y) ]                       (eq. 2)

Two moves alternate: a few optimiser steps of theta on the noisy pictures, then one sweep over the pictures in which
theta stands still and the noise descends the loss. They stop when the noisy pictures look already learnt.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue import models
from fastue.core.clock import Clock
from fastue.core.errors import UsageError
from fastue.data.dataset import ImageDataset, batches, epoch_order
from fastue.data.keyed import keyed_generator
from fastue.methods.base import Checkpointer, Perturbation, budget_levels, pack, unpack
from fastue.models.frozen import FrozenCopy
from fastue.models.training import sgd, train_step
from fastue.ops import apply_noise, class_step, linf_step


@dataclass(frozen=True)
class EMNConfig:
    """Noise in [0,1] pixel units. `steps` and `step` left at None take the paper's value for the mode."""

    method = "emn"

    mode: str = "sample"  # one noise a picture ("sample") or one a class ("class")
    eps: float = 8 / 255
    steps: int | None = None  # noise steps on a batch in one sweep: 20 sample-wise, 1 class-wise
    step: float | None = None  # 0.8/255
    arch: str = "resnet18"
    train_steps: int = 10  # optimiser steps of the surrogate between two sweeps
    batch: int = 128
    lr: float = 0.1
    clip: float = 5.0
    subset: float = 0.2  # class-wise noise is searched on this share of the pictures
    stop_error: float = 0.01  # error rate of the surrogate on the noisy pictures, before they are improved for it ...
    stop_sweeps: int = 2  # ... in this many sweeps in a row
    max_sweeps: int = 100
    precision: str = "float32"
    compile: bool = False  # torch.compile of the surrogate in the noise step
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("sample", "class"):
            raise UsageError(f"--mode {self.mode}: use sample or class")
        budget_levels(self.eps)
        defaults = {"steps": 20 if self.mode == "sample" else 1, "step": 0.8 / 255}
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name in (
            "steps",
            "step",
            "train_steps",
            "batch",
            "lr",
            "clip",
            "stop_sweeps",
            "max_sweeps",
        ):
            if not getattr(self, name) > 0:
                raise UsageError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: must be above 0"
                )
        if not 0 < self.subset <= 1 or not 0 <= self.stop_error < 1:
            raise UsageError("--subset must be in (0, 1] and --stop-error in [0, 1)")

    def searched(self, n: int, classes: int) -> int:
        """How many of n pictures a sweep goes over."""
        return max(round(self.subset * n), min(n, classes)) if self.mode == "class" else n


RECIPES = {
    "paper": "20 noise steps of 0.8/255 on a batch in a sweep",
    "fast": "5 noise steps of 0.4 of the budget (3.2/255): more sweeps, a fraction of the cost",
}


def recipe(name: str, mode: str, eps: float) -> dict[str, float]:
    """`steps` and `step` of a recipe; class-wise noise takes one small step a batch in both."""
    return {"steps": 5, "step": 0.4 * eps} if name == "fast" and mode == "sample" else {}


def published_stop(config: EMNConfig) -> EMNConfig:
    """The stop rule of the public code: one sweep at 1 % error sample-wise or 10 % class-wise is enough."""
    return replace(config, stop_error=0.1 if config.mode == "class" else 0.01, stop_sweeps=1)


class Surrogate:
    """theta: it learns the noisy pictures, then stands still while the noise learns to please it."""

    def __init__(self, model: nn.Module, config: EMNConfig):
        self.model, self.config = model, config
        self.optimizer = sgd(model, config.lr)
        self.frozen = FrozenCopy(model, config.precision, compile=config.compile)
        self.moves = config.steps  # noise steps on a batch in one sweep

    def begin(self, history: list[dict]) -> None:
        """Before each sweep and after a resume; `history` holds the sweeps done."""

    def learn(self, x: Tensor, y: Tensor, number: int) -> None:
        """The `number`-th training step of the run."""
        train_step(
            self.model, self.optimizer, x, y, precision=self.config.precision, clip=self.config.clip
        )

    def gradient(self, noisy: Tensor, y: Tensor, move: int, number: int) -> tuple[Tensor, Tensor]:
        """For noise step `move` on the `number`-th batch of all sweeps: see _input_gradient."""
        return _input_gradient(self.frozen, noisy, y)

    def finished(self, history: list[dict]) -> bool:
        recent = [entry["error"] for entry in history[-self.config.stop_sweeps :]]
        return len(recent) == self.config.stop_sweeps and max(recent) <= self.config.stop_error


def emn(
    data: ImageDataset,
    config: EMNConfig,
    *,
    surrogate: type[Surrogate] = Surrogate,
    checkpoint: Checkpointer | None = None,
    clock: Clock | None = None,
    progress: Callable[[str, int, int, dict], None] = lambda phase, done, total, info: None,
) -> Perturbation:
    """The noise for `data`, on the device `data` is on.

    A run that is killed and started again with the same arguments and `checkpoint` ends in the same bytes: every draw
    is keyed by (seed, purpose, number), and each snapshot is a complete state. `progress(phase, done, total, info)` is
    called after each batch, in pictures; info holds the last sweep's error rate.
    """
    c = config
    classwise = c.mode == "class"
    n, batch = len(data), min(c.batch, len(data))
    model = models.build(c.arch, data.num_classes, data.shape[0], seed=c.seed)
    model = model.to(data.device, memory_format=torch.channels_last)
    theta = surrogate(model, c)
    dtype = theta.frozen.dtype
    rows = torch.arange(n)
    if (count := c.searched(n, data.num_classes)) < n:
        rows = torch.from_numpy(keyed_generator(c.seed, "emn-subset").permutation(n)[:count])
    noise = torch.zeros(data.num_classes if classwise else n, *data.shape, device=data.device)
    noise = noise.contiguous(memory_format=torch.channels_last)

    checkpoint, clock = checkpoint or Checkpointer(None), clock or Clock()
    state = {"sweep": 0, "trained": 0, "swept": 0, "correct": 0, "history": []}
    if saved := checkpoint.load():
        tensors, state = saved
        noise.copy_(tensors.pop("noise"))
        unpack(tensors, model, theta.optimizer)
    correct = torch.tensor(state["correct"], device=data.device)

    def snapshot() -> tuple[dict[str, Tensor], dict]:
        return {"noise": noise, **pack(model, theta.optimizer)}, {**state, "correct": int(correct)}

    def report(phase: str, done: int, total: int) -> None:
        info = {"error": state["history"][-1]["error"]} if state["history"] else {}
        progress(f"sweep {state['sweep'] + 1}, {phase}", done, total, info)

    while state["sweep"] < c.max_sweeps and not theta.finished(state["history"]):
        theta.begin(state["history"])
        # theta learns the noisy pictures, walking on through the data
        model.train()
        while state["trained"] < (state["sweep"] + 1) * c.train_steps:
            with clock("data"):
                x, y, index = _training_batch(data, batch, state["trained"], c.seed)
            with clock("ops"):
                x = apply_noise(x, noise, y if classwise else index, channels_last=True)
            with clock("training"):
                theta.learn(x, y, state["trained"])
            state["trained"] += 1
            steps = state["trained"] - state["sweep"] * c.train_steps
            report("surrogate", steps * batch, c.train_steps * batch)
            checkpoint.tick(snapshot)

        # the noise learns to please theta, which stands still: one forward, one input gradient, one op a step
        theta.frozen.refresh()
        for x, y, index in clock.over("data", batches(data, batch, rows[state["swept"] :])):
            with clock("ops"):
                noisy = apply_noise(
                    x, noise, y if classwise else index, dtype=dtype, channels_last=True
                )
            number = state["sweep"] * -(-len(rows) // batch) + state["swept"] // batch
            for move in range(theta.moves):
                with clock("network"):
                    gradient, right = theta.gradient(noisy, y, move, number)
                with clock("ops"):
                    if classwise:
                        class_step(noise, gradient, x, y, step=c.step, eps=c.eps)
                        noisy = apply_noise(x, noise, y, dtype=dtype, channels_last=True)
                    else:
                        linf_step(noise, gradient, x, index, step=c.step, eps=c.eps, out=noisy)
            correct += right
            state["swept"] += len(y)
            report("noise", state["swept"], len(rows))
            checkpoint.tick(snapshot)

        error = 1 - int(correct) / len(rows)  # the only read-back of a sweep
        correct.zero_()
        state["history"].append({"sweep": state["sweep"], "error": error})
        state["sweep"], state["swept"] = state["sweep"] + 1, 0
        checkpoint.tick(snapshot)

    return Perturbation(
        noise, c.mode, c.eps, state["history"], theta.finished(state["history"]), model
    )


_order = functools.lru_cache(maxsize=1)(epoch_order)


def _training_batch(data: ImageDataset, batch: int, step: int, seed: int):
    """The `step`-th training batch of a walk through the data in keyed epochs, without the ragged end of an epoch."""
    per_epoch = len(data) // batch
    order = _order(len(data), seed, step // per_epoch)
    start = step % per_epoch * batch
    return next(batches(data, batch, order[start : start + batch]))


def _input_gradient(theta: FrozenCopy, noisy: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """d CE / d noisy [B,C,H,W] in its dtype, summed over the batch, and how many pictures theta got right."""
    noisy = noisy.detach().requires_grad_()
    logits = theta(noisy)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), noisy)
    return gradient, (logits.argmax(1) == y).sum()
