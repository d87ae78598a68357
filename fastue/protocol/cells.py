"""Every (countermeasure, architecture, seed, arm) of an attack is one victim and one row.

All victims are tested on the same clean pictures. A row is kept in `out/rows` under a hash of all
that it depends on, so a killed attack goes on, and attacks that share `out` share their controls.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from fastue.core.errors import UsageError
from fastue.countermeasures.base import Countermeasure
from fastue.data.atomic import atomic_write_json, make_folder
from fastue.data.budget import Budget
from fastue.data.dataset import ImageDataset
from fastue.protocol.arms import ARMS, arm_pictures, budget_key
from fastue.victims.train import VictimConfig, check_pair, stopped, train_victim


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
    """The pictures of an attack. Without `originals` only the protected arm can be trained."""

    protected: ImageDataset
    originals: ImageDataset | None
    test: ImageDataset
    budget: Budget

    def to(self, device: torch.device) -> "Material":
        originals = self.originals.to(device) if self.originals else None
        return replace(
            self,
            protected=self.protected.to(device),
            originals=originals,
            test=self.test.to(device),
        )

    def check(self, arms: tuple[str, ...]) -> None:
        """Raises UsageError for an unknown arm, DataError for sets that do not fit together."""
        if unknown := set(arms) - set(ARMS):
            raise UsageError(f"--arms {','.join(sorted(unknown))}: use some of {', '.join(ARMS)}")
        if self.originals is None and set(arms) != {"protected"}:
            raise UsageError("--arms: the controls need the clean originals; pass --source")
        for data in filter(None, (self.protected, self.originals)):
            check_pair(data, self.test)

    def training_set(self, cell: Cell) -> ImageDataset:
        originals = self.originals or self.protected
        return arm_pictures(cell.arm, cell.seed, self.protected, originals, self.budget)


class RowKeys:
    """The name of a cell's file: a hash of all that the victim's accuracy is a function of."""

    def __init__(self, material: Material):
        self.budget = budget_key(material.budget)
        self.test = material.test.fingerprint()
        sets = {"protected": material.protected, "originals": material.originals}
        self.train = {name: data.fingerprint() for name, data in sets.items() if data}

    def key(self, cell: Cell, victim: VictimConfig, countermeasure: Countermeasure) -> str:
        source = "protected" if cell.arm == "protected" else "originals"
        inputs = [self.train[source], self.test]
        inputs += self.budget if cell.arm.startswith("random") else []
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
) -> Iterator[dict]:
    """Train every victim of the attack and yield its row; `out/results.json` holds all rows so far
    after each. A row that an earlier attack left in `out/rows` is not trained again.

    Raises UsageError for an unknown arm, DataError for sets that do not fit together.
    """
    material.check(arms)
    keys = RowKeys(material)
    by_name = {countermeasure.name: countermeasure for countermeasure in suite}
    cells = [
        Cell(name, arm, arch, seed)
        for name in by_name
        for arch in archs
        for seed in seeds
        for arm in arms
    ]
    make_folder(out / "rows")
    rows: list[dict] = []
    for number, cell in enumerate(cells, 1):
        victim, countermeasure = replace(config, arch=cell.arch), by_name[cell.countermeasure]
        path = out / "rows" / f"{keys.key(cell, victim, countermeasure)}.json"
        if path.exists():
            row = json.loads(path.read_text())
        else:
            name = f"[{number}/{len(cells)}] {cell}"
            row = train_cell(
                cell,
                material,
                victim,
                countermeasure,
                lambda done, total, info, name=name: progress(name, done, total, info),
            )
            atomic_write_json(path, row)
        rows.append(row)
        atomic_write_json(out / "results.json", rows)
        yield row


def train_cell(
    cell: Cell,
    material: Material,
    victim: VictimConfig,
    countermeasure: Countermeasure,
    progress: Callable[[int, int, dict], None],
) -> dict:
    """Train one victim; its row."""
    start = time.perf_counter()
    curves = train_victim(
        countermeasure.training_set(material.training_set(cell), cell.seed),
        countermeasure.test_set(material.test, cell.seed),
        victim,
        seed=cell.seed,
        step=countermeasure.step,
        progress=progress,
    )
    accuracy_stopped, epoch_stopped = stopped(curves)
    return {
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
