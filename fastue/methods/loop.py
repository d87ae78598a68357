"""What methods around a surrogate share: the walk of training batches and sweeps, and everything
that is no mathematics.

A `Run` keeps the state, so that a method's own file holds its two moves and nothing else. It
survives being killed (every draw is keyed by (seed, purpose, number), each snapshot is a complete
state), tells how far it is, and takes the time of each part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from fastue import distributed
from fastue.core import memory, stop
from fastue.core.errors import DataError
from fastue.methods.base import Checkpointer, Perturbation, lazy, silent

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fastue.core.clock import Clock
    from fastue.data.dataset import ImageDataset
    from fastue.models.frozen import FrozenCopy
else:
    torch = lazy("torch")

F = lazy("torch.nn.functional")
core = lazy("fastue.core.clock")
dataset = lazy("fastue.data.dataset")
frozen = lazy("fastue.models.frozen")
grain = lazy("fastue.ops._grain")
keyed = lazy("fastue.data.keyed")
models = lazy("fastue.models")
ops = lazy("fastue.ops")
survive = lazy("fastue.methods.survive")
training = lazy("fastue.models.training")

# Crops show up to this share of a side as border: 4 pixels of 32, as in the victims' training.
CROP_PAD = 1 / 8


class Surrogate:
    """theta: learns the noisy pictures, then stands still while the noise learns to please it."""

    def __init__(self, model: nn.Module, config: Any):
        self.model, self.config = model, config
        self.optimizer = training.sgd(model, config.lr)
        self.frozen = frozen.FrozenCopy(model, config.precision, compile=config.compile)
        self.moves = config.steps  # noise steps on a batch in one sweep
        self.average = False  # over the ranks, each of which sees its part of a batch

    def begin(self, history: list[dict]) -> None:
        """Before each sweep and after a resume; `history` holds the sweeps done."""

    def learn(self, x: Tensor, y: Tensor, number: int) -> None:
        """The `number`-th training step of the run."""
        c = self.config
        try:
            training.train_step(
                self.model,
                self.optimizer,
                x,
                y,
                precision=c.precision,
                clip=c.clip,
                average=self.average,
            )
        except (MemoryError, RuntimeError) as error:
            if not memory.is_short(error):
                raise
            # No halves here: the network's statistics are those of the whole batch.
            raise DataError(
                f"not enough memory to train {c.arch} on {len(y)} pictures at once; take a smaller "
                "--arch or --size, or more ranks. The same command goes on from the last checkpoint"
            ) from error

    def gradient(self, noisy: Tensor, y: Tensor, move: int, number: int) -> tuple[Tensor, Tensor]:
        """For noise step `move` on the `number`-th batch of all sweeps: see input_gradient."""
        return input_gradient(self.frozen, noisy, y)

    def judged(self, history: list[dict]) -> list[dict]:
        """The sweeps that the stop rule looks at."""
        return history

    def finished(self, history: list[dict]) -> bool:
        c = self.config
        recent = [entry["error"] for entry in self.judged(history)[-c.stop_sweeps :]]
        enough = len(history) >= c.min_sweeps and len(recent) == c.stop_sweeps
        return enough and max(recent) <= c.stop_error


def input_gradient(theta: FrozenCopy, noisy: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """d CE / d noisy [B,C,H,W] in its dtype, summed over the batch, and how many pictures theta got
    right.

    Where memory does not suffice for the batch, its halves are taken one after the other, and so
    on: theta stands still, so a picture's gradient does not depend on those beside it.
    """
    try:
        return _input_gradient(theta, noisy, y)
    except (MemoryError, RuntimeError) as error:
        if not memory.is_short(error):
            raise
        if len(y) == 1:
            raise DataError(
                "not enough memory for the gradient of a single picture; take a smaller --arch or "
                "--size. The same command goes on from the last checkpoint"
            ) from error
    half = len(y) // 2
    parts = [input_gradient(theta, noisy[k], y[k]) for k in (slice(half), slice(half, None))]
    gradient = torch.cat([part for part, _ in parts])
    return gradient.contiguous(memory_format=torch.channels_last), parts[0][1] + parts[1][1]


def _input_gradient(theta: FrozenCopy, noisy: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    noisy = noisy.detach().requires_grad_()
    logits = theta(noisy)
    loss = F.cross_entropy(logits, y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, noisy)
    return gradient, (logits.argmax(1) == y).sum()


class Run:
    """One run of a method that trains a surrogate and sweeps over the pictures in turns.

    `rows` are the pictures a sweep goes over, in order where each has noise of its own. The noise,
    zero at first, has a value for each block of `grain` x `grain` pixels; it is in channels_last on
    the device of `data`. Noise of pictures that does not fit in memory, or that several ranks work
    on, is in shard files (`bank`): a sweep then goes shard by shard, each rank over its own.
    """

    def __init__(
        self,
        data: ImageDataset,
        config: Any,
        surrogate: type[Surrogate],
        rows: Tensor,
        *,
        checkpoint: Checkpointer | None = None,
        clock: Clock | None = None,
        progress: Callable[[str, int, int, dict], None] = silent,
    ):
        self.data, self.config, self.rows = data, config, rows
        self.checkpoint, self.progress = checkpoint or Checkpointer(None), progress
        self.rank, self.ranks = self.checkpoint.ranks
        self.clock = clock or core.Clock()
        self.batch = min(config.batch, len(data))
        self.classwise = config.mode == "class"

        model = models.build(config.arch, data.num_classes, data.shape[0], seed=config.seed)
        model = model.to(data.device, memory_format=torch.channels_last)
        self.theta = surrogate(model, config)
        self.theta.average = self.ranks > 1
        shape = grain.bank_shape(data.shape, config.grain)
        self.bank = None
        if not self.classwise:
            self.bank = self.checkpoint.bank(len(data), shape, self.batch)
        if self.bank is None:
            count = data.num_classes if self.classwise else len(data)
            noise = torch.zeros(count, *shape, device=data.device)
            self.noise = noise.contiguous(memory_format=torch.channels_last)
        self._window: tuple[int, Tensor] | None = None  # the shard being swept, from which row on
        self.apply_noise = self.timed("ops", ops.apply_noise)

        self.state = {"sweep": 0, "trained": 0, "swept": 0, "correct": 0, "history": []}
        if saved := self.checkpoint.load():
            tensors, self.state = saved
            if self.bank is None:
                self.noise.copy_(tensors.pop("noise"))
            unpack(tensors, model, self.theta.optimizer)
        self._correct = torch.tensor(self.state["correct"], device=data.device)

    def goes_on(self) -> bool:
        """Whether another round is due; tells theta that it begins."""
        history = self.state["history"]
        most = max(self.config.max_sweeps, self.config.min_sweeps)
        if self.state["sweep"] >= most or self.theta.finished(history):
            return False
        self.theta.begin(history)
        return True

    def training_batches(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """(noisy pictures, labels, number of the step) of this round's steps, walking on through
        the data.
        """
        state, steps = self.state, self.config.train_steps
        self.theta.model.train()
        while state["trained"] < (state["sweep"] + 1) * steps:
            with self.clock("data"):
                x, y, index = training_batch(
                    self.data,
                    self.batch,
                    state["trained"],
                    self.config.seed,
                    part=(self.rank, self.ranks),
                )
                noise, rows = self.noise_of(y, index)
            noisy = self.apply_noise(
                x,
                noise,
                rows,
                channels_last=True,
                **self.view("training", state["trained"], index),
            )
            with self.clock("training"):
                yield (
                    self._survivors(noisy, index, "training", state["trained"]),
                    y,
                    state["trained"],
                )
            state["trained"] += 1
            done = state["trained"] - state["sweep"] * steps
            self._report("surrogate", done * self.batch, steps * self.batch)

    def noise_of(self, y: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The noise of these pictures and some more, and which row of it each picture takes."""
        if self.bank is None:
            return self.noise, y if self.classwise else index
        if self._window is not None:
            begin, noise = self._window
            return noise, index - begin
        return self.bank.rows(index).to(y.device), torch.arange(len(index), device=y.device)

    def view(self, use: str, number: int, index: Tensor) -> dict:
        """How pictures are seen by the network: arguments of the ops. Under `crops` they are
        cropped and mirrored, by a draw for each (use, number, picture).
        """
        c = self.config
        if not c.crops:
            return {"grain": c.grain}
        crop = {"ids": index, "seed": crop_seed(c.seed, use), "epoch": number}
        pad = round(CROP_PAD * min(self.data.shape[1:]))
        return {"grain": c.grain, **crop, "pad": pad, "flip": True}

    def sweep_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        """(pictures uint8, labels, rows of the pictures, number of the batch in all sweeps) of one
        sweep.

        theta stands still meanwhile. Ends with the sweep's error rate, from what `count` was told:
        the only read-back.
        """
        self.theta.frozen.refresh()
        yield from self._resident_batches() if self.bank is None else self._shard_batches()
        state, correct = (
            self.state,
            self.state["correct"] if self.bank is not None else int(self._correct),
        )
        self._correct.zero_()
        error = 1 - correct / len(self.rows)
        state["history"].append({"sweep": state["sweep"], "error": error})
        state.update(sweep=state["sweep"] + 1, swept=0, correct=0)
        if self.bank is None:
            self.checkpoint.tick(self._snapshot)

    def _resident_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        state, rows = self.state, self.rows
        first = state["sweep"] * -(-len(rows) // self.batch)
        left = dataset.batches(self.data, self.batch, rows[state["swept"] :])
        for x, y, index in self.clock.over("data", left):
            yield x, y, index, first + state["swept"] // self.batch
            state["swept"] += len(y)
            self._report("noise", state["swept"], len(rows))

    def _shard_batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
        state, bank, device = self.state, self.bank, self.data.device
        # With theta as it is now on the disk, a kill costs the shards in flight. All ranks wait,
        # so that no shard is ahead of it.
        self.checkpoint.save(self._snapshot)
        distributed.barrier()
        first = state["sweep"] * -(-len(self.data) // self.batch)
        mine = range(self.rank, bank.shards, self.ranks)
        due = [shard for shard in mine if self._is_due(shard)]
        total = sum(len(bank.rows_of(shard)) for shard in mine)
        done = total - sum(len(bank.rows_of(shard)) for shard in due)
        try:
            for shard, then in itertools.zip_longest(due, due[1:]):
                rows = bank.rows_of(shard)
                with self.clock("store"):
                    noise = bank.load(shard, then).to(device)
                self._window = rows.start, noise
                self._correct.zero_()
                ends = torch.searchsorted(self.rows, torch.tensor([rows.start, rows.stop]))
                part = self.rows[slice(*ends.tolist())].to(device)
                batches = self.clock.over("data", dataset.batches(self.data, self.batch, part))
                for number, (x, y, index) in enumerate(batches, first + rows.start // self.batch):
                    yield x, y, index, number
                    done += len(y)
                    self._report("noise", done, total)
                with self.clock("store"):
                    bank.store(shard, noise.cpu(), int(self._correct))
                if stop.requested():
                    bank.wait()
                    stop.leave()
        finally:
            self._window = None
            bank.wait()
        with self.clock("store"):
            distributed.barrier()
            bank.scan()
        state["correct"] = sum(bank.correct(shard) for shard in range(bank.shards))

    def _is_due(self, shard: int) -> bool:
        """Whether a shard has still to be swept; the network in the checkpoint says which sweep."""
        sweeps, sweep = self.bank.sweeps(shard), self.state["sweep"]
        if sweeps not in (sweep, sweep + 1):
            raise DataError(
                f"{self.bank.folder}: shard {shard} has {sweeps} sweeps where the checkpoint has "
                f"{sweep}: files of two runs; name a new --out"
            )
        return sweeps == sweep

    def count(self, right: Tensor) -> None:
        """How many pictures of a batch theta got right before the noise moved for the last time."""
        self._correct += right

    def shared(self, gradient: Callable) -> Callable:
        """The same function of (noisy, y, ...), for class-wise noise each rank computing its part
        of a batch: then every rank has the whole gradient and makes the same step.
        """
        if self.ranks == 1 or not self.classwise:
            return gradient

        def call(noisy: Tensor, y: Tensor, *arguments) -> tuple[Tensor, Tensor]:
            size = -(-len(y) // self.ranks)
            part = slice(self.rank * size, (self.rank + 1) * size)
            mine = torch.zeros(size, *noisy.shape[1:], device=y.device)  # one length on all ranks
            right = torch.zeros((), dtype=torch.int64, device=y.device)
            if len(y[part]):
                own, right = gradient(noisy[part], y[part], *arguments)
                mine[: len(own)] = own
            whole = distributed.gathered(mine)[: len(y)]
            whole = whole.contiguous(memory_format=torch.channels_last)
            return whole, distributed.total(right.clone())

        return call

    def seen(self, gradient: Callable) -> Callable:
        """The function of (noisy, y, index, move, number) that has the gradient of (noisy, y, move,
        number) for pictures as the search sees them: see fastue.methods.survive.
        """

        def call(noisy: Tensor, y: Tensor, index: Tensor, move: int, number: int):
            if not self.config.survive:
                return gradient(noisy, y, move, number)
            return survive.pulled_back(
                noisy,
                lambda shown: self._survivors(shown, index, f"noise {move}", number),
                lambda shown: gradient(shown, y, move, number),
            )

        return call

    def _survivors(self, noisy: Tensor, index: Tensor, use: str, number: int) -> Tensor:
        if not self.config.survive:
            return noisy
        chosen = self.config.survive.split(",")
        return survive.transformed(
            noisy, chosen, index, seed=self.config.seed, use=use, number=number
        )

    def timed(self, name: str, function: Callable) -> Callable:
        """The same function, its time counted under `name`."""

        def call(*arguments, **keywords):
            with self.clock(name):
                return function(*arguments, **keywords)

        return call

    def result(self, **more) -> Perturbation:
        """The noise as it stands; `more` are further fields of the Perturbation.

        The last snapshot is complete, so that a longer search can go on from here.
        """
        self.checkpoint.save(self._snapshot)
        c, history = self.config, self.state["history"]
        converged = self.theta.finished(history)
        error = 100 * history[-1]["error"]
        warning = "the surrogate had not learnt the noisy pictures when the sweeps ran out"
        return Perturbation(
            self.noise if self.bank is None else self.bank,
            c.mode,
            c.eps,
            history,
            converged,
            self.theta.model,
            c.arch,
            c.norm,
            summary=f"{len(history)} sweeps, surrogate error on the noisy pictures {error:.2f} %",
            warning="" if converged else f"{warning}; try fastue attack",
            grain=c.grain,
            size=self.data.shape[1:],
            **more,
        )

    def _snapshot(self) -> tuple[dict[str, Tensor], dict]:
        tensors = pack(self.theta.model, self.theta.optimizer)
        if self.bank is not None:
            return tensors, {**self.state, "correct": 0}
        return {"noise": self.noise, **tensors}, {**self.state, "correct": int(self._correct)}

    def _report(self, phase: str, done: int, total: int) -> None:
        history = self.state["history"]
        info = {"error": history[-1]["error"]} if history else {}
        self.progress(f"sweep {self.state['sweep'] + 1}, {phase}", done, total, info)
        if self.bank is None:
            if stop.requested():
                self.checkpoint.save(self._snapshot)
                stop.leave()
            self.checkpoint.tick(self._snapshot)
        elif stop.requested() and phase != "noise":
            stop.leave()  # the checkpoint before this training is as good


@functools.cache
def crop_seed(seed: int, use: str) -> int:
    """Of the crops of one use: the surrogate's training, or the noise steps."""
    return int(keyed.keyed_generator(seed, f"crops {use}").integers(2**63))


@functools.lru_cache(maxsize=1)
def _order(n: int, seed: int, epoch: int) -> Tensor:
    return dataset.epoch_order(n, seed, epoch)


def training_batch(
    data: ImageDataset, batch: int, step: int, seed: int, part: tuple[int, int] = (0, 1)
):
    """The `step`-th batch of a walk through the data in keyed epochs, without the ragged end of an
    epoch; of it the part of a rank, (rank, ranks).
    """
    per_epoch = len(data) // batch
    order = _order(len(data), seed, step // per_epoch)
    start = step % per_epoch * batch
    return next(dataset.batches(data, batch, order[start : start + batch][part[0] :: part[1]]))


class _Enough(Exception):
    """Ends a run whose batches have been timed."""


def batch_seconds(make: Callable, data: ImageDataset, config: Any) -> tuple[float, float]:
    """Seconds of a training step and of a sweep's batch: a few of each are run."""
    config = dataclasses.replace(config, train_steps=min(4, config.train_steps), subset=1.0)
    seconds: dict[bool, list[float]] = {False: [], True: []}  # in a sweep: times
    last = time.perf_counter()

    def watch(phase: str, done: int, total: int, info: dict) -> None:
        nonlocal last
        if data.device.type == "cuda":
            torch.cuda.synchronize(data.device)
        now = time.perf_counter()
        in_sweep = phase.endswith("noise")
        seconds[in_sweep].append(now - last)
        if in_sweep and (len(seconds[True]) == 4 or done == total):
            raise _Enough
        last = time.perf_counter()

    with contextlib.suppress(_Enough):
        make(data, config, progress=watch)
    # The first ones also warm up, and the last batch may be a small one.
    train, sweep = (times[1:] or times for times in (seconds[False], seconds[True]))
    return statistics.median(train), statistics.median(sweep)


def pack(model: nn.Module, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """Weights, buffers and momentum as one flat dict, for a checkpoint."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{i}"] = momentum
    return tensors


def unpack(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.SGD) -> None:
    """The reverse of `pack`, in place."""
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    model.load_state_dict(weights)
    for i, parameter in enumerate(optimizer.param_groups[0]["params"]):
        if f"momentum.{i}" in tensors:
            buffer = torch.empty_like(parameter).copy_(tensors[f"momentum.{i}"])
            optimizer.state[parameter]["momentum_buffer"] = buffer
