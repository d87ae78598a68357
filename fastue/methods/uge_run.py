"""What UGE needs around its losses: what is learnt from the clean pictures first, the noise in its
two forms, and the walk over the pictures that survives being killed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastue.core import stop
from fastue.core.errors import UsageError
from fastue.methods.base import Checkpointer, Perturbation, lazy
from fastue.methods.loop import Surrogate, pack, training_batch, unpack

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fastue.data.dataset import ImageDataset
    from fastue.methods.uge import UGEConfig
else:
    torch = lazy("torch")

atomic = lazy("fastue.data.atomic")
augment = lazy("fastue.data.augment")
authorized = lazy("fastue.models.authorized")
dataset = lazy("fastue.data.dataset")
generators = lazy("fastue.models.generator")
grains = lazy("fastue.ops._grain")
keyed = lazy("fastue.data.keyed")
models = lazy("fastue.models")
ops = lazy("fastue.ops")
tensorfile = lazy("fastue.data.tensorfile")
training = lazy("fastue.models.training")

_TRAJECTORY = "trajectory.safetensors"
SUBSET = 0.2  # of the pictures, in a sweep for class-wise noise, as EMN has it


class Clean:
    """What is learnt from the clean pictures first, once: kept in `folder`, so that a resumed run
    goes on from there.

    initial       the authorized networks at theta_0
    trajectories  of each some networks between theta_0 and the trained one, standing still
    trained       the trained ones
    other         a network of other initial weights, trained: the student and the feature space
    """

    def __init__(self, data: ImageDataset, c: UGEConfig, folder: Path | None, progress: Callable):
        path = folder / _TRAJECTORY if folder else None
        kept = tensorfile.read_tensors(path)[0] if path and path.exists() else {}
        learnt: dict[str, Tensor] = {}

        def states(name: str, model: nn.Module) -> list[dict[str, Tensor]]:
            """Weights at some moments of its training, the last of them the end."""
            found = _moments(kept, name) or _trained(model, data, c, name, progress)
            learnt.update(
                (f"{name}.{k}.{own}", value)
                for k, state in enumerate(found)
                for own, value in state.items()
            )
            return found

        self.initial, self.archs = authorized_networks(data, c)
        if c.frozen and not c.authorized:
            (theta,) = self.initial
            seen = _still(theta, states("front", _moving(data, c, c.seed))[-1], data.device)
            authorized.copy_front(seen, theta, c.frozen)
        wanted = {name for name in c.terms() if name != "emn"}
        self.trajectories, self.trained = [], []
        if wanted & {"gm", "ud"}:
            for k, model in enumerate(self.initial):
                steps = [_still(model, s, data.device) for s in states(f"authorized-{k}", model)]
                self.trajectories.append(steps[:-1])
                self.trained.append(steps[-1])
        if wanted & {"fd", "ud"}:
            other = _moving(data, c, c.seed + 1)
            self.other = _still(other, states("other", other)[-1], data.device)
        if path and not kept and learnt:
            tensorfile.write_tensors(atomic.make_folder(folder) / _TRAJECTORY, learnt, {})


def _moving(data: ImageDataset, c: UGEConfig, seed: int) -> nn.Module:
    """A new network all of which learns."""
    model = models.build(c.arch, data.num_classes, data.shape[0], seed=seed)
    return model.to(data.device, memory_format=torch.channels_last)


def authorized_networks(data: ImageDataset, c: UGEConfig) -> tuple[list[nn.Module], list[str]]:
    """The authorized networks at theta_0 and their architectures."""
    k, channels = data.num_classes, data.shape[0]
    if not c.authorized:
        model = authorized.authorized(c.arch, k, channels, c.seed, c.frozen)
        return [model.to(data.device, memory_format=torch.channels_last)], [c.arch]
    found = []
    for name in c.authorized.split(","):
        model, about = authorized.load(Path(name))
        if about["classes"] != data.classes or about["channels"] != channels:
            raise UsageError(f"--authorized {name}: it is for other classes or channels than these")
        if (frozen := authorized.frozen_of(about)) != c.frozen:
            raise UsageError(f"--authorized {name}: needs --frozen {frozen}")
        model = model.to(data.device, memory_format=torch.channels_last)
        found.append((model, about["arch"]))
    return [model for model, _ in found], [arch for _, arch in found]


def _trained(
    model: nn.Module, data: ImageDataset, c: UGEConfig, name: str, progress: Callable
) -> list[dict[str, Tensor]]:
    """Trains a copy on the clean pictures, under crops and flips; its weights at `snapshots` moments
    from the beginning on (`late`: from the middle on), evenly spaced, and in the end."""
    model = copy.deepcopy(model).train()
    batch = min(c.batch, len(data))
    steps = c.epochs * (len(data) // batch)
    optimizer = training.sgd(model, c.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    first = steps // 2 if c.late else 0
    moments = {first + (steps - first) * k // c.snapshots for k in range(c.snapshots)}
    found = []
    for step in range(steps):
        if step in moments:
            found.append(_state(model))
        x, y, index = training_batch(data, batch, step, c.seed)
        x = augment.crop_flip(x, index, seed=c.seed, epoch=step, rows=len(data))
        training.train_step(
            model, optimizer, training.to_input(x), y, precision=c.precision, clip=c.clip
        )
        schedule.step()
        progress(f"{name} on clean pictures", step + 1, steps, {})
        if stop.requested():
            stop.leave()
    return [*found, _state(model)]


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _moments(kept: dict[str, Tensor], name: str) -> list[dict[str, Tensor]]:
    """Of `name.moment.weight`: the weights of each moment."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in kept.items():
        whose, moment, own = key.split(".", 2)
        if whose == name:
            found.setdefault(int(moment), {})[own] = value
    return [found[moment] for moment in sorted(found)]


def _still(model: nn.Module, state: dict[str, Tensor], device: torch.device) -> nn.Module:
    """A copy with these weights, in eval mode."""
    other = copy.deepcopy(model)
    other.load_state_dict(state)
    return other.to(device, memory_format=torch.channels_last).eval()


@dataclass
class FreeNoise:
    """Noise of its own for each picture or class, drawn at first: it descends by signed steps."""

    data: ImageDataset
    c: UGEConfig
    bank: Tensor = field(init=False)

    def __post_init__(self) -> None:
        c, data = self.c, self.data
        count = data.num_classes if c.mode == "class" else len(data)
        shape = grains.bank_shape(data.shape, c.grain)
        drawn = keyed.keyed_generator(c.seed, "uge-noise").uniform(-c.eps, c.eps, (count, *shape))
        bank = torch.from_numpy(drawn).float().to(data.device)
        self.bank = bank.contiguous(memory_format=torch.channels_last)

    def _rows(self, y: Tensor, index: Tensor) -> Tensor:
        return y if self.c.mode == "class" else index

    def shown(self, x: Tensor, index: Tensor, y: Tensor) -> Tensor:
        noise = grains.spread(self.bank[self._rows(y, index)], self.c.grain, *x.shape[2:])
        return (x + noise).clamp(0, 1)

    def move(self, gradient: Tensor, y: Tensor, index: Tensor, left: float) -> None:
        """A step, shorter and shorter: `left` is the share of them that is."""
        c, gradient = self.c, gradient.contiguous(memory_format=torch.channels_last)
        pictures = self.data.take(index)
        about = {"step": left * c.step * c.eps, "eps": c.eps, "grain": c.grain}
        if c.mode == "class":
            ops.class_step(self.bank, gradient, pictures, y, **about)
        else:
            ops.linf_step(self.bank, gradient, pictures, index, **about)

    def made(self) -> Tensor:
        return self.bank

    def tensors(self) -> dict[str, Tensor]:
        return {"noise": self.bank}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.bank.copy_(tensors["noise"])


class GeneratedNoise:
    """Noise of a picture by a generator, trained by Adam."""

    def __init__(self, data: ImageDataset, c: UGEConfig):
        self.data, self.c = data, c
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(c.seed)
            model = generators.Generator(
                data.shape[0], c.eps, c.grain, width=c.width, plain=c.clamp
            )
        self.model = model.to(data.device, memory_format=torch.channels_last)
        self.adam = torch.optim.Adam(self.model.parameters(), c.adam)

    def shown(self, x: Tensor, index: Tensor, y: Tensor) -> Tensor:
        self.last = self.model.shown(x)
        return self.last

    def move(self, gradient: Tensor, y: Tensor, index: Tensor, left: float) -> None:
        self.adam.zero_grad(set_to_none=True)
        self.last.backward(gradient)
        self.adam.step()

    def made(self) -> Tensor:
        batches = dataset.batches(self.data, 500)
        with torch.no_grad():
            return torch.cat([self.model(training.to_input(x)) for x, _, _ in batches])

    def tensors(self) -> dict[str, Tensor]:
        found = {f"generator.{name}": value for name, value in self.model.state_dict().items()}
        for i, state in self.adam.state_dict()["state"].items():
            found |= {f"adam.{i}.{name}": value for name, value in state.items()}
        return found

    def restore(self, tensors: dict[str, Tensor]) -> None:
        own = {k.removeprefix("generator."): v for k, v in tensors.items() if k[:5] == "gener"}
        self.model.load_state_dict(own)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, i, moment = name.split(".")
                moments.setdefault(int(i), {})[moment] = value
        self.adam.load_state_dict({**self.adam.state_dict(), "state": moments})


class Run:
    """The walk over the pictures, sweep by sweep, the hackers learning before each; killed and
    called again, it goes on from its checkpoint."""

    def __init__(self, data, c: UGEConfig, noise, checkpoint: Checkpointer, progress: Callable):
        self.data, self.c, self.noise = data, c, noise
        self.checkpoint, self.progress = checkpoint, progress
        self.batch = min(c.batch, len(data))
        # Noise of a class changes with every batch: the hackers learn it between shorter sweeps.
        self.swept = len(data) if c.mode == "sample" else max(1, round(SUBSET * len(data)))
        self.per_sweep = -(-self.swept // self.batch)
        archs = c.hackers.split(",") if "emn" in c.terms() else []
        self.hackers = []
        for k, arch in enumerate(archs):
            model = models.build(arch, data.num_classes, data.shape[0], seed=c.seed + 2 + k)
            model = model.to(data.device, memory_format=torch.channels_last)
            self.hackers.append(Surrogate(model, c))
        self.state: dict[str, Any] = {"done": 0, "trained": 0, "scale": {}, "history": []}
        self.sums: dict[str, Tensor] = {}  # of the terms in this sweep, float64
        if saved := checkpoint.load():
            tensors, self.state = saved
            noise.restore(tensors)
            self.sums = {name: tensors[f"sum.{name}"] for name in self.state["scale"]}
            for k, hacker in enumerate(self.hackers):
                own = {
                    n.removeprefix(f"{k}."): v for n, v in tensors.items() if n.startswith(f"{k}.")
                }
                unpack(own, hacker.model, hacker.optimizer)

    def batches(self) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor]]]:
        """(number, (pictures float32 in [0,1], labels, rows)) of all sweeps that are left, each
        walked in an order of its own."""
        c, state = self.c, self.state
        for sweep in range(len(state["history"]), c.sweeps):
            if state["trained"] == sweep * c.train_steps:
                self._learn()
            for hacker in self.hackers:
                hacker.frozen.refresh()
            first = state["done"] - sweep * self.per_sweep
            order = dataset.epoch_order(len(self.data), c.seed, sweep)[: self.swept]
            order = order[first * self.batch :]
            for x, y, index in dataset.batches(self.data, self.batch, order):
                yield state["done"], (training.to_input(x), y, index)
                state["done"] += 1
                self._report(f"sweep {sweep + 1}", state["done"] - sweep * self.per_sweep)
            means = {name: float(value) / self.per_sweep for name, value in self.sums.items()}
            state["history"].append({"sweep": sweep, **means})
            self.sums = {name: torch.zeros_like(value) for name, value in self.sums.items()}

    def scale(self, values: dict[str, Tensor]) -> dict[str, float]:
        """What each term is divided by: its size at first. Keeps count of the values, too."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().double()
        if not self.state["scale"]:
            self.state["scale"] = {
                name: abs(float(value.detach())) or 1.0 for name, value in values.items()
            }
        return self.state["scale"]

    def _learn(self) -> None:
        """The hackers' training steps on the noisy pictures before a sweep."""
        c = self.c
        for hacker in self.hackers:
            hacker.model.train()
        for _ in range(c.train_steps if self.hackers else 0):
            step = self.state["trained"]
            x, y, index = training_batch(self.data, self.batch, step, c.seed)
            with torch.no_grad():
                shown = self.noise.shown(training.to_input(x), index, y)
            shown = shown.contiguous(memory_format=torch.channels_last)
            for hacker in self.hackers:
                hacker.learn(shown, y, step)
            self.state["trained"] = step + 1

    def result(self, clean: Clean) -> Perturbation:
        c, history = self.c, self.state["history"]
        self.checkpoint.save(self._snapshot)
        said = ", ".join(f"{k} {v:.4g}" for k, v in history[-1].items() if k != "sweep")
        return Perturbation(
            self.noise.made(),
            c.mode,
            c.eps,
            history,
            surrogate=clean.initial[0],
            arch=clean.archs[0],
            summary=f"{len(history)} sweeps, in the last one {said}",
            grain=c.grain,
            size=self.data.shape[1:],
        )

    def _snapshot(self) -> tuple[dict[str, Tensor], dict]:
        tensors = self.noise.tensors()
        for k, hacker in enumerate(self.hackers):
            own = pack(hacker.model, hacker.optimizer)
            tensors |= {f"{k}.{name}": value for name, value in own.items()}
        return tensors | {f"sum.{name}": value for name, value in self.sums.items()}, self.state

    def _report(self, phase: str, done: int) -> None:
        self.progress(phase, done, self.per_sweep, {})
        if stop.requested():
            self.checkpoint.save(self._snapshot)
            stop.leave()
        self.checkpoint.tick(self._snapshot)
