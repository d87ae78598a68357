"""Every (countermeasure, architecture, seed, arm) of an attack is one victim and one row.

All victims are tested on the same clean pictures. A row is kept in `out/rows` under a hash of all
that it depends on, so a killed attack goes on, and attacks that share `out` share their controls.
Several processes may work in one `out`: each takes cells that no other is at.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fastue.core.errors import DataError, UsageError
from fastue.countermeasures.base import Countermeasure, Means
from fastue.data.atomic import atomic_write_json, make_folder
from fastue.data.budget import Budget
from fastue.data.dataset import ImageDataset
from fastue.data.writers import picture_hashes
from fastue.methods.base import duration
from fastue.models.training import percent
from fastue.protocol.arms import ARMS, PARTLY, arm_pictures, budget_key
from fastue.protocol.pictures import keep
from fastue.victims.train import (
    VictimConfig,
    check_pair,
    new_curves,
    score,
    stopped,
    train_victim,
)


@dataclass(frozen=True)
class Cell:
    """One victim to train."""

    countermeasure: str
    arm: str
    arch: str
    seed: int

    def __str__(self) -> str:
        after = "" if self.countermeasure == "none" else f" after {self.countermeasure}"
        return f"{self.arm}{after} {self.arch} seed {self.seed}"


@dataclass(frozen=True)
class Material:
    """The pictures of an attack. Without `originals` only the protected arm can be trained, without
    `aux` only countermeasures that need none. `oracle`: `aux` is the test set itself, as some
    papers have it. `identities`: the classes that were protected, where not all were.
    """

    protected: ImageDataset
    originals: ImageDataset | None
    test: ImageDataset
    budget: Budget
    aux: ImageDataset | None = None
    oracle: bool = False
    identities: tuple[int, ...] = ()

    def to(self, device: torch.device) -> Material:
        return replace(
            self,
            protected=self.protected.to(device),
            originals=self.originals.to(device) if self.originals else None,
            test=self.test.to(device),
            aux=self.aux.to(device) if self.aux else None,
        )

    def check(self, arms: tuple[str, ...]) -> None:
        """Raises UsageError for an unknown arm, DataError for sets that do not fit together."""
        if unknown := set(arms) - {*ARMS, *PARTLY}:
            known = ", ".join((*ARMS, *PARTLY))
            raise UsageError(f"--arms {','.join(sorted(unknown))}: use some of {known}")
        if self.originals is None and set(arms) != {"protected"}:
            raise UsageError("--arms: the controls need the clean originals; pass --source")
        for data in filter(None, (self.protected, self.originals, self.aux)):
            check_pair(data, self.test)
        if self._common:
            raise DataError(self._common)

    @functools.cached_property
    def _common(self) -> str:
        """What is wrong where two of the sets have a picture in common: every picture is hashed."""
        sets = [("the originals", self.originals or self.protected), ("--clean", self.test)]
        if self.aux is not None and not self.oracle:
            sets.append(("--aux", self.aux))
        found = [(name, set(picture_hashes(data))) for name, data in sets]
        for (one, first), (other, second) in itertools.combinations(found, 2):
            if common := len(first & second):
                return (
                    f"{other}: {common} of its pictures are among {one}; what a victim has seen "
                    "says nothing about what it has learnt. Pass sets without common pictures"
                )
        return ""

    def training_set(self, cell: Cell) -> ImageDataset:
        originals = self.originals or self.protected
        return arm_pictures(cell.arm, cell.seed, self.protected, originals, self.budget)


class RowKeys:
    """The name of a cell's file: a hash of all that the victim's accuracy is a function of."""

    def __init__(self, material: Material):
        self.budget = budget_key(material.budget)
        self.test = material.test.fingerprint()
        sets = {"protected": material.protected, "originals": material.originals}
        sets["aux"] = material.aux
        self.train = {name: data.fingerprint() for name, data in sets.items() if data}

    def key(self, cell: Cell, victim: VictimConfig, countermeasure: Countermeasure) -> str:
        source = "protected" if cell.arm == "protected" else "originals"
        inputs = [self.train[source], self.test]
        inputs += [self.train["protected"]] if cell.arm in PARTLY else []
        inputs += self.budget if cell.arm.startswith("random") else []
        inputs += [self.train["aux"]] if countermeasure.aux else []
        identity = {**asdict(cell), **asdict(victim), "inputs": inputs}
        if countermeasure.version != 1:  # the first version's rows are named as before versions
            identity["countermeasure_version"] = countermeasure.version
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def evaluate(
    material: Material,
    *,
    suite: list[Countermeasure],
    archs: list[str],
    seeds: list[int],
    config: VictimConfig,
    out: Path,
    arms: tuple[str, ...] = ARMS,
    progress: Callable[[str, int, int, dict], None] = lambda name, done, total, info: None,
    failed: Callable[[Cell, Exception], None] | None = None,
) -> Iterator[dict]:
    """Train every victim of the attack and yield its row; `out/results.json` holds all rows so far
    after each. A row that an earlier attack left in `out/rows` is not trained again.

    What goes wrong in a cell is raised; with `failed` it is told there, and the others go on.
    Raises UsageError for an unknown arm or where pictures are missing, DataError for sets that do
    not fit together.
    """
    material.check(arms)
    if needy := [c.name for c in suite if c.aux and material.aux is None]:
        raise UsageError(
            f"--suite {','.join(needy)}: needs clean pictures that are neither protected nor in "
            "--clean; pass --aux"
        )
    keys = RowKeys(material)
    by_name = {countermeasure.name: countermeasure for countermeasure in suite}
    cells = [
        Cell(name, arm, arch, seed)
        for name, countermeasure in by_name.items()
        for arch in countermeasure.archs or archs
        for seed in seeds
        for arm in arms
    ]
    folder, total = make_folder(out / "rows"), len(cells)
    treated = treated_folder(out, material)
    rows: dict[Cell, dict] = {}
    left = _TimeLeft({cell: by_name[cell.countermeasure].cost for cell in cells})
    for wait in (False, True):  # first what no other process is at, then what is missing still
        for number, cell in enumerate(cells, 1):
            if cell in rows:
                continue
            victim, countermeasure = replace(config, arch=cell.arch), by_name[cell.countermeasure]
            path = folder / f"{keys.key(cell, victim, countermeasure)}.json"
            with _claimed(path, wait) as mine:
                if not mine:
                    continue
                if path.exists():
                    row = json.loads(path.read_text())
                    left.skip(cell)
                else:
                    name = f"[{number}/{total}] {cell}"
                    try:
                        row = train_cell(
                            cell,
                            material,
                            victim,
                            countermeasure,
                            lambda done, total, info, name=name, cell=cell: progress(
                                f"{name}{left.text(cell, done / total)}", done, total, info
                            ),
                            cache=out / "aux",
                            treated=treated,
                        )
                    except Exception as error:
                        if failed is None:
                            raise
                        failed(cell, error)
                        cells = [other for other in cells if other != cell]
                        continue
                    left.done(cell)
                    atomic_write_json(path, row)
            rows[cell] = row
            atomic_write_json(out / "results.json", [rows[c] for c in cells if c in rows])
            yield row


def treated_folder(out: Path, material: Material) -> Path:
    """Of these protected pictures: attacks that share `out` may be of others."""
    return out / "treated" / material.protected.fingerprint()[:16]


class _TimeLeft:
    """How long the cells that are left will take, from those that were trained."""

    def __init__(self, costs: dict[Cell, float]):
        self.costs, self.spent = dict(costs), 0.0
        self.start = time.perf_counter()

    def skip(self, cell: Cell) -> None:
        self.costs.pop(cell, None)

    def done(self, cell: Cell) -> None:
        self.spent += self.costs.pop(cell)

    def text(self, cell: Cell, share: float) -> str:
        """For people, `share` of this cell being done; nothing before there is anything to go by."""
        spent = self.spent + share * self.costs[cell]
        if spent == 0:
            return ""
        seconds = (time.perf_counter() - self.start) / spent
        return f", {duration(seconds * (sum(self.costs.values()) - share * self.costs[cell]))} left"


@contextlib.contextmanager
def _claimed(path: Path, wait: bool) -> Iterator[bool]:
    """Whether this process has a cell to itself; the claim ends with the process, however it ends."""
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    path.with_suffix(".lock").unlink(missing_ok=True)


def train_cell(
    cell: Cell,
    material: Material,
    victim: VictimConfig,
    countermeasure: Countermeasure,
    progress: Callable[[int, int, dict], None],
    cache: Path | None = None,
    treated: Path | None = None,
) -> dict:
    """Train one victim; its row. Some pictures of a protected arm after the countermeasure are kept
    in the folder `treated`, for the report."""
    start = time.perf_counter()
    means = Means(
        material.aux,
        cache,
        lambda phase, done, total: progress(0, victim.epochs, {"phase": f"{phase} {done}/{total}"}),
    )
    train = countermeasure.training_set(material.training_set(cell), cell.seed, means)
    if treated is not None and cell.arm == "protected":
        keep(treated, cell.countermeasure, material.protected, train)
    test = countermeasure.test_set(material.test, cell.seed)
    options = {"seed": cell.seed, "step": countermeasure.step, "progress": progress}
    if countermeasure.train is None:
        curves = train_victim(train, test, victim, **options)
    else:
        curves = countermeasure.train(train, test, victim, means=means, **options)
    if material.identities:
        curves = of_identities(curves, material.test.labels, material.identities)
    accuracy_stopped, epoch_stopped = stopped(curves)
    row = {
        **asdict(cell),
        "accuracy_final": curves["accuracy"][-1],
        "accuracy_stopped": accuracy_stopped,
        "epoch_stopped": epoch_stopped,
        "accuracy_peak": max(curves["accuracy"]),
        "train_accuracy": curves["train_accuracy"][-1],
        "accuracy_curve": curves["accuracy"],
        "loss_curve": curves["loss"],
        "epochs": victim.epochs,
        "seconds": round(time.perf_counter() - start, 1),
    }
    if countermeasure.aux:
        row["aux"] = "oracle" if material.oracle else len(material.aux)
    # What a countermeasure found beside the curves, by name: a linear separability …
    return row | {name: value for name, value in curves.items() if isinstance(value, float)}


def of_identities(curves: dict, labels: Tensor, protected: tuple[int, ...]) -> dict:
    """The curves on the test pictures of the protected identities (classes `protected`) alone;
    `others_final` and `others_peak` are the accuracy on those of the others after the last epoch
    and at the best one."""
    if "right" not in curves:
        raise DataError("this countermeasure does not say which pictures its victim gets right")
    right = torch.tensor([list(epoch) for epoch in curves["right"]], dtype=torch.bool)
    mine = torch.isin(labels.cpu(), torch.tensor(protected))
    own = new_curves()
    for epoch in right:
        score(own, epoch[mine])
    others = [round(percent(epoch[~mine]), 3) for epoch in right]
    found = {name: own[name] for name in ("accuracy", "picking", "scoring")}
    return {**curves, **found, "others_final": others[-1], "others_peak": max(others)}
