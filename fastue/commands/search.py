"""The search for noise that passes its check: where it does not, more sweeps, then stronger
settings.

What is finished is kept in work/attempts.safetensors, every check together with the best noise so
far. It is one file, so a kill leaves an attempt finished or not; the one in progress goes on from
its own checkpoint.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastue import distributed, models
from fastue.core.clock import Clock
from fastue.data import checkpoint
from fastue.data.atomic import make_folder
from fastue.data.bank import Bank
from fastue.data.dataset import ImageDataset
from fastue.data.tensorfile import read_tensors, write_tensors
from fastue.methods.base import Checkpointer, Config, Method, Perturbation
from fastue.protocol.check import CheckResult, check_protection

_FIELDS = (
    *("per", "eps", "history", "converged", "arch", "norm", "change", "summary", "warning"),
    *("grain", "size"),
)
_BEST = "best"  # the folder of the best noise, where it is in files


@dataclass(frozen=True)
class Attempt:
    """Noise, the settings it was made with, what its check said (None: not checked), and which
    attempt it is.
    """

    config: Config
    noise: Perturbation
    check: CheckResult | None = None
    number: int = 0


def search(
    data: ImageDataset,
    kind: Method,
    config: Config,
    work: Path,
    *,
    check: bool,
    every: float,
    limit: float,
    clock: Clock,
    progress: Callable[[str, int, int, dict], None],
    tell: Callable[[str], None],
) -> tuple[Attempt, list[dict]]:
    """The first attempt that passes its check, or the one whose victim learns least; and what is to
    be told of all attempts.

    Checkpoints lie in folders of `work`, written `every` so many seconds; so does noise of more
    than `limit` bytes. Without `check` the first attempt is all there is. Under torchrun rank 0
    checks.
    """

    def make(settings: Config, folder: str) -> Perturbation:
        checkpoint = Checkpointer(work / folder, every, limit)
        return kind.make(data, settings, checkpoint=checkpoint, clock=clock, progress=progress)

    if not check:
        return Attempt(config, make(config, ".")), []
    kept = work / "attempts.safetensors"
    best, attempts = _load(kept, config, data)
    for row in attempts:  # before a kill
        tell(CheckResult.of(row).text())
    while (step := _next(config, attempts)) is not None:
        settings, folder = step
        if attempts:
            tell(_words(settings, config))
        noise = make(settings, folder)
        before = CheckResult.of(attempts[-1]) if attempts else None
        with clock("check"):
            said = None
            if distributed.first():
                said = check_protection(data, noise, settings, before=before, progress=progress)
            said = distributed.told(said)
        tell(said.text())
        sweeps = {"sweeps": len(noise.history)}
        attempts.append({**said.record(), **sweeps, "config": settings.record()})
        # Only the last one can be anything but a failure.
        if best is None or said.holds is not False or said.reached < best.check.reached:
            if isinstance(noise.bank, Bank):  # the attempt's own files may go on
                if distributed.first():
                    noise.bank.link(work / _BEST)
                distributed.barrier()
                noise = replace(noise, bank=noise.bank.at(work / _BEST))
            best = Attempt(settings, noise, said, len(attempts) - 1)
        if distributed.first():
            _save(kept, best, attempts)
        distributed.barrier()
        step = _next(config, attempts)
        if distributed.first() and (step is None or step[1] != folder):
            shutil.rmtree(work / folder / "bank", ignore_errors=True)
            checkpoint.clear(work / folder)
    if len(attempts) > 1 and best.check.holds is False:
        tell(f"attempt {best.number + 1} of {len(attempts)} is written: its victim learns least")
    return best, attempts


def _next(config: Config, attempts: list[dict]) -> tuple[Config, str] | None:
    """The settings to try after these attempts, and the folder of their checkpoints.

    Decided from what is kept alone, so that a resumed search takes the same way. The first folder
    is work/ itself, where an unchecked run has its checkpoint too.
    """
    number = len(attempts)
    if number == 0:
        return config, "."
    # Who repeats a public code's bug asks for its noise, not for better noise.
    if attempts[-1]["holds"] is not False or config.compat != "none":
        return None
    if hasattr(config, "min_sweeps"):
        if number == 1:
            return replace(config, min_sweeps=2 * attempts[0]["sweeps"]), "."
        number -= 1
    stronger: Config | None = config
    for _ in range(number):
        stronger = stronger.stronger()
        if stronger is None:
            return None
    return stronger, f"stronger-{number}"


def _words(settings: Config, first: Config) -> str:
    sweeps = getattr(settings, "min_sweeps", 0)
    if sweeps != getattr(first, "min_sweeps", 0):
        return f"the search goes on, to {sweeps} sweeps or more"
    return f"a stronger setting is tried, {settings.text()}"


def _save(path: Path, best: Attempt, attempts: list[dict]) -> None:
    noise = best.noise
    stored = isinstance(noise.bank, Bank)
    tensors = {} if stored else {"noise": noise.bank}
    if noise.surrogate is not None:
        weights = noise.surrogate.state_dict()
        tensors |= {f"surrogate.{name}": value for name, value in weights.items()}
    about = {name: getattr(noise, name) for name in _FIELDS}
    if stored:
        about["bank"] = [len(noise.bank), noise.bank.shape, noise.bank.shard_rows]
    make_folder(path.parent)
    write_tensors(path, tensors, {"attempts": attempts, "best": best.number, "noise": about})


def _load(path: Path, config: Config, data: ImageDataset) -> tuple[Any, list[dict]]:
    """What `_save` kept: the best attempt (None: there is none) and all of them."""
    if not path.exists():
        return None, []
    tensors, state = read_tensors(path)
    attempts, number, about = state["attempts"], state["best"], state["noise"]
    weights = {
        name.removeprefix("surrogate."): value.to(data.device)
        for name, value in tensors.items()
        if name != "noise"
    }
    surrogate = None
    if weights:
        surrogate = models.build(about["arch"], data.num_classes, data.shape[0])
        surrogate = surrogate.to(data.device, memory_format=torch.channels_last)
        surrogate.load_state_dict(weights)
    rows, shape, shard_rows = about.pop("bank", (0, (), 0))
    if rows:
        bank = Bank(path.parent / _BEST, rows, tuple(shape), shard_rows)
    else:
        bank = tensors["noise"].to(data.device)
    noise = Perturbation(bank, surrogate=surrogate, **about)
    settings, _ = _next(config, attempts[:number])
    return Attempt(settings, noise, CheckResult.of(attempts[number]), number), attempts
