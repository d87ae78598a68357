"""What a method is made of: settings that are flags too, a function from data to a Perturbation,
optional hooks.

Nothing here and nothing at the head of a method's file imports torch, so that `fastue protect
--help`, which is made from the settings of all methods, is there at once; `lazy` stands for the
modules that do.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from fastue import distributed
from fastue.core.errors import UsageError
from fastue.data.budget import Budget

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fastue.data.bank import Bank
    from fastue.data.dataset import ImageDataset


SHARD_BYTES = 32 << 20  # of noise in a file at most; three or four of them are in memory
_SHARDS = 16  # at least, where there are so many batches


class lazy:
    """A module that is imported when something in it is first used."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str):
        value = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, value)  # the next use finds it here
        return value


# Values of settings, from a command line's text or from Python: each takes str(value) and says what
# is wrong with it.


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UsageError("not a whole number") from None


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError("not a number") from None


def length(text: str) -> float:
    """A positive length in [0,1] pixel units: `8/255` or `1.3`."""
    top, slash, unit = text.partition("/")
    try:
        value = float(top) / (float(unit) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise UsageError("no number; write 8/255 or 0.03") from None
    if not 0 < value < float("inf"):
        raise UsageError("not above 0 (pixel units of [0,1])")
    return value


def pixels(text: str) -> float:
    """A budget or step of a pixel: as `length`, at most 1. A number above 1 without a unit is an
    error.
    """
    value = length(text)
    if value > 1:
        hint = "" if "/" in text else f"; did you mean {text}/255?"
        raise UsageError(f"not between 0 and 1 (pixel units of [0,1]){hint}")
    return value


def some_of(text: str, names: tuple[str, ...]) -> str:
    """`a,b`: each of the names that are in it once, in their own order."""
    found = {name.strip() for name in text.split(",") if name.strip()}
    if unknown := sorted(found - set(names)):
        raise UsageError(f"{unknown[0]} is none of {', '.join(names)}")
    return ",".join(name for name in names if name in found)


def classes_of(identities: str, classes: list[str]) -> list[int]:
    """Which of the classes `a,b` names, in their order; all for an empty text. Raises UsageError for
    a name that is no class.
    """
    names = [name.strip() for name in identities.split(",")]
    if names == [""]:
        return list(range(len(classes)))
    if unknown := [name for name in names if name not in classes]:
        raise UsageError(
            f"--identities: {unknown[0]!r} is no class; there are {', '.join(classes[:10])}"
            + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")
        )
    return sorted({classes.index(name) for name in names})


ABOVE_0 = (lambda value: value > 0, "must be above 0")


def flag(
    default: Any,
    help: str | None = None,
    *,
    parse: Callable[[str], Any] | None = None,
    check: tuple[Callable[[Any], bool], str] | None = None,
    choices: tuple[str, ...] | dict[str, str] = (),
    shown: str | None = None,
    recorded: bool = True,
    before: Any = None,
) -> Any:
    """A field of a Config, and the only place of its default; with `help` it is a flag of `fastue
    protect` as well.

    parse     makes the value of str(value): whole, number, pixels, length; None for text and
              switches
    check     (test, words): the value has to pass the test
    choices   the values there are, with what each means where that needs saying
    shown     the default as people write it (8/255), or what an empty default stands for
    recorded  False for what only decides about other fields; run.json and manifests do not hold it
    before    the value that runs had before there was this setting: they do not hold it, so it is
              not written either
    """
    about = {"help": help, "parse": parse, "check": check, "choices": choices, "shown": shown}
    return field(default=default, metadata={**about, "recorded": recorded, "before": before})


def default_text(setting: dataclasses.Field) -> str:
    """The default of a flag as people write it."""
    return setting.metadata["shown"] or (
        "off" if setting.default is False else str(setting.default)
    )


@dataclass(frozen=True)
class Config:
    """Settings every method has. A field takes text as typed on a command line, or the value
    itself.
    """

    method: ClassVar[str] = ""
    norm: ClassVar[str] = "linf"  # a method that knows several makes it a field
    compat: ClassVar[str] = "none"  # one that repeats a public code's bugs makes it a field

    mode: str = flag("sample", "one noise a picture or a class", choices=("sample", "class"))
    eps: float = flag(8 / 255, "L-inf budget in [0,1] pixel units", parse=pixels, shown="8/255")
    seed: int = flag(0, "of every random draw", parse=whole)

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            try:
                object.__setattr__(self, setting.name, _checked(value, setting.metadata))
            except UsageError as error:
                # How a person would write it: a length typed as text stays as typed.
                raise UsageError(f"--{setting.name.replace('_', '-')} {value}: {error}") from None
        _ = self.budget  # says what is wrong with eps

    @property
    def budget(self) -> Budget:
        return Budget(self.eps, self.norm)

    def record(self) -> dict[str, Any]:
        """What run.json, the manifest and the surrogate's file hold."""
        values = {setting: getattr(self, setting.name) for setting in dataclasses.fields(self)}
        return {
            setting.name: value
            for setting, value in values.items()
            if setting.metadata.get("recorded", True)
            and (value is None or value != setting.metadata.get("before"))
        }

    def protected_classes(self, classes: list[str]) -> list[int]:
        """Which of the classes get noise: those of a method's `identities`, or all. Raises
        UsageError for a name that is no class.
        """
        return classes_of(getattr(self, "identities", ""), classes)

    def on(self, device: torch.device) -> Config:
        """The same with what depends on the device (`auto`) filled in."""
        return self

    def text(self) -> str:
        """For people, in one line."""
        return f"{self.mode}-wise, eps {self.budget.text()}"

    def warnings(self) -> list[str]:
        """What a person should hear before the run."""
        return []

    def stronger(self) -> Config | None:
        """The setting to try next where the noise of this one does not protect; None: there is
        none.
        """
        return None


def _checked(value: Any, about: Any) -> Any:
    """The value of a field, parsed, or a UsageError that goes on after `--name value: `."""
    if value is None or not about:
        return value
    if about["parse"]:
        value = about["parse"](str(value))
    if about["choices"] and value not in tuple(about["choices"]):
        raise UsageError(f"use {' or '.join(about['choices'])}")
    if about["check"] and not about["check"][0](value):
        raise UsageError(about["check"][1])
    return value


@dataclass(frozen=True)
class Cost:
    """What making noise takes, as far as it is known before: from the times of a few pictures.

    rates   pictures a second of each part, by name
    sweep   seconds of a sweep with the training before it; without sweeps, of all there is to do
    sweeps  how many there are, fewest and most as a rule
    """

    rates: dict[str, float]
    sweep: float
    sweeps: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Method:
    """What a method's file offers as METHOD.

    make   (data, config, *, checkpoint, clock, progress) -> Perturbation, on the device `data` is
           on. Killed and called again with the same arguments and checkpoint it has to end in the
           same bytes.
    plan   (some of the pictures, config, n) -> Cost of all n; None: not known before
    check  (data, config): raises UsageError for what cannot be, before anything is written
    files  (out, data, perturbation, config): writes what the method leaves in the run's directory
           beside noise and pictures; called again after a kill
    """

    config: type[Config]
    make: Callable[..., Perturbation]
    plan: Callable[[ImageDataset, Config, int], Cost] | None = None
    check: Callable[[ImageDataset, Config], None] = lambda data, config: None
    files: Callable[[Path, ImageDataset, Perturbation, Config], None] = lambda *run: None


@dataclass
class Perturbation:
    """Noise float32 of N pictures (per="sample") or K classes (per="class"), in [0,1] pixel units,
    within eps in norm.

    `bank` is [N or K, C, h, w], a tensor or in files (fastue.data.bank.Bank); a value of it is
    shown on a square of `grain` x `grain` pixels, and `size` is (H, W) of the pictures.
    """

    bank: Tensor | Bank
    per: str
    eps: float
    history: list[dict] = field(default_factory=list)
    converged: bool = True  # False where a stop rule was not met in the sweeps allowed
    surrogate: nn.Module | None = None  # the network the noise was made with, at the end
    arch: str | None = None  # its name for fastue.models.build
    norm: str = "linf"
    change: str = "additive"  # how noise becomes a picture: see fastue.data.budget.CHANGES
    summary: str = ""  # how the run went, in words
    warning: str = ""  # why not to trust the noise
    grain: int = 1
    size: tuple[int, int] | None = None  # None: that of the bank, whose grain is 1

    @property
    def budget(self) -> Budget:
        return Budget(self.eps, self.norm)

    @property
    def noise(self) -> Tensor:
        """All of it at the size of the pictures, float32 [N or K, C, H, W], in memory."""
        return self._shown(self._taken(None))

    def coarse(self, rows: Tensor | None = None) -> Tensor:
        """int8 [B, C, h, w] in units of 1/255 of these rows (int64 [B]) of the bank, or of all:
        rounded to nearest and never above the budget.
        """
        return self.budget.quantise(self._taken(rows))

    def quantised(self, rows: Tensor | None = None) -> Tensor:
        """The same at the size of the pictures, int8 [B, C, H, W]."""
        return self._shown(self.coarse(rows))

    def _taken(self, rows: Tensor | None) -> Tensor:
        import torch

        if isinstance(self.bank, torch.Tensor):
            return self.bank if rows is None else self.bank[rows.to(self.bank.device)]
        return self.bank.rows(torch.arange(len(self.bank)) if rows is None else rows)

    def _shown(self, noise: Tensor) -> Tensor:
        from fastue.ops._grain import spread

        return spread(noise, self.grain, *(self.size or noise.shape[2:]))

    def rows(self, labels: Tensor) -> Tensor:
        """Which noise each picture takes, int64 [N]."""
        import torch

        return labels if self.per == "class" else torch.arange(len(labels), device=labels.device)

    def apply(self, images: Tensor, labels: Tensor, only: Tensor | None = None) -> Tensor:
        """The protected pictures of those the noise was made for, uint8 [N,C,H,W], as they would be
        written; `only` (int64) picks some of them.
        """
        rows = self.rows(labels)
        if only is not None:
            only = only.to(images.device)
            images, rows = images[only], rows[only]
        return self.change_pictures(images, rows)

    def change_pictures(self, images: Tensor, rows: Tensor) -> Tensor:
        """Pictures uint8 [B,C,H,W] with the noise of these rows of the bank (int64 [B]), uint8."""
        from fastue.data.writers import protected_pictures

        needed, rows = rows.unique(return_inverse=True)
        return protected_pictures(images, self.quantised(needed), rows, change=self.change)


class Checkpointer:
    """Snapshots of (tensors, state) in `folder`, at most one every `seconds`; None as folder keeps
    nothing.

    A method calls `tick` wherever its state is consistent. What it computes must not depend on when
    that was. Noise of more than `limit` bytes is not kept in memory, but in files of the folder
    (`bank`). Under torchrun rank 0 writes the snapshots, and all ranks read them.
    """

    def __init__(self, folder: Path | None, seconds: float = 30.0, limit: float = float("inf")):
        self.folder, self.seconds, self.limit = folder, seconds, limit
        self._last = time.monotonic()

    @property
    def ranks(self) -> tuple[int, int]:
        """(rank, number of ranks) that share the work: one without a folder they could share."""
        return distributed.place() if self.folder else (0, 1)

    def bank(self, rows: int, shape: tuple[int, int, int], batch: int) -> Bank | None:
        """Files for noise float32 [rows, *shape], or None where it is to be in memory.

        A shard is a number of whole batches, so that shards change nothing of what is computed.
        """
        from fastue.data.bank import Bank

        size = 4 * math.prod(shape)
        if self.folder is None or (self.ranks[1] == 1 and rows * size <= self.limit):
            return None
        # Several, for several ranks; how many there are and how much memory they have may change.
        shard = max(1, min(SHARD_BYTES // size, -(-rows // _SHARDS)) // batch) * batch
        bank = Bank(self.folder / "bank", rows, shape, shard)
        if distributed.first():
            bank.tidy()
        distributed.barrier()
        bank.scan()
        return bank

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        from fastue.data import checkpoint

        if self.folder is None:
            return None
        distributed.barrier()  # rank 0 may still be writing
        saved = checkpoint.load(self.folder)
        distributed.barrier()  # a rank behind still removes what a kill left: no new files yet
        return saved

    def tick(self, snapshot: Callable[[], tuple[dict[str, Tensor], dict]]) -> None:
        if time.monotonic() - self._last >= self.seconds:
            self.save(snapshot)

    def save(self, snapshot: Callable[[], tuple[dict[str, Tensor], dict]]) -> None:
        """Now, however short ago the last one was: for the end of a search that may go on later."""
        from fastue.data import checkpoint

        if self.folder and distributed.first():
            checkpoint.save(self.folder, *snapshot())
        self._last = time.monotonic()


def silent(phase: str, done: int, total: int, info: dict) -> None:
    """A `progress` that tells nobody."""


def duration(seconds: float) -> str:
    """Seconds for people: 350 ms, 12.0 s, 40 min, 3.1 h."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
