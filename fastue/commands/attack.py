"""`fastue attack` as a function: open what was written, train the victims, write the report.

The defaults of the command are those of `attack`. What needs torch is imported when it runs, so
that `fastue attack --help` can read them at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fastue.core.errors import DataError, UsageError
from fastue.victims.config import VictimConfig

if TYPE_CHECKING:
    import os

    from fastue.countermeasures.base import Countermeasure
    from fastue.data.dataset import ImageDataset
    from fastue.protocol.cells import Material

    Source = str | os.PathLike[str] | ImageDataset


# What a victim is by default: on a CPU what the quick suite takes minutes for.
USUAL_ARCH = {"cuda": "resnet18", "cpu": "cnn-w16"}
USUAL_EPOCHS = {"cuda": 60, "cpu": 10}


@dataclass
class AttackResult:
    """`rows`: one dict a victim, as in results.json. `table` and `verdict` are text, `files` the
    paths written."""

    rows: list[dict]
    table: str
    verdict: str
    files: list[Path]
    failures: list[str] = field(default_factory=list)  # cells that could not be trained, and why


def attack(
    directory: str | os.PathLike[str],
    clean: Source,
    *,
    source: Source | None = None,
    aux: Source | None = None,
    out: str | os.PathLike[str] | None = None,
    suite: str | Sequence[str | Countermeasure] = "none",
    authorized: str | os.PathLike[str] | None = None,
    arch: str | Sequence[str] = "auto",
    arms: Sequence[str] | None = None,
    epochs: int | None = None,
    batch: int = VictimConfig.batch,
    seeds: Sequence[int] = (0,),
    labels: str | os.PathLike[str] | None = None,
    size: int | None = None,
    precision: str = "auto",
    device: str = "auto",
    progress: Callable[[str, int, int, dict], None] = lambda name, done, total, info: None,
    on_row: Callable[[dict], None] = lambda row: None,
) -> AttackResult:
    """Train victims on the pictures in `directory` (and on the controls), test them on `clean`.

    directory  what fastue.protect wrote
    clean      clean test pictures: whatever open_dataset takes, or an open ImageDataset
    source     the clean originals, for the controls; left out, the folder that protect read is
               used if it still holds the same pictures
    aux        clean pictures of the same classes that the adversary has, for the countermeasures that
               need them; none of them may be protected or in `clean`. "oracle": the test pictures
               themselves, as some papers have it
    out        where rows/, results.json and the reports go; rows that are there with the same
               pictures and settings are not trained again (default: directory/attack)
    suite      countermeasures: none, quick, standard, full, names, or a list that may hold your own
               Countermeasure; authorization: who is authorized, and hackers
    authorized  for that suite: the file of who is, initial weights or a key (default: the one that
               protect wrote)
    arch       one victim network or several; auto: resnet18 on a GPU, cnn-w16 on a CPU
    epochs     of a victim's training (default: 60 on a GPU, 10 on a CPU)
    arms       some of clean, protected, random-sample, random-class (default: these four);
               protected-25, protected-50 and protected-75 have that percentage protected and the
               rest clean
    seeds      one victim a seed
    labels     a CSV table `file,class` where `clean` is a folder without class folders; those of
               `source` are in the manifest
    size       resize `clean` and `source` as protect did (default: what protect was told)

    Raises UsageError and DataError before any training starts. A victim whose training fails is told
    in `.failures`, and the others go on.
    """
    from fastue import countermeasures
    from fastue.data.atomic import atomic_write_json
    from fastue.models.training import resolve_device, resolve_precision
    from fastue.protocol import authorization
    from fastue.protocol.arms import ARMS
    from fastue.protocol.cells import evaluate, treated_folder
    from fastue.protocol.pictures import kept, shown
    from fastue.protocol.report import write_report
    from fastue.protocol.survival import survival
    from fastue.protocol.tables import settings_table
    from fastue.protocol.verdict import verdict

    directory = Path(directory)
    out = Path(out) if out else directory / "attack"
    where = resolve_device(device)
    usual = "cuda" if where.type == "cuda" else "cpu"
    manifest, run = _manifest_and_run(directory)
    if suite == authorization.NAME:
        path = Path(authorized) if authorized else authorization.file_of(directory, manifest)
        named = tuple(name for name in _listed(arch) if name != "auto")
        suite, archs = authorization.suite(path, named, usual, aux is not None)
    elif authorized is not None:
        raise UsageError(f"--authorized goes with --suite {authorization.NAME}")
    else:
        suite = countermeasures.suite(suite)
        archs = [USUAL_ARCH[usual] if name == "auto" else name for name in _listed(arch)]
    epochs = USUAL_EPOCHS[usual] if epochs is None else epochs
    config = VictimConfig(epochs=epochs, batch=batch, precision=resolve_precision(precision, where))
    material = _material(directory, clean, source, aux, labels, size, manifest, run).to(where)
    usual_arms = ("clean", "protected") if any(one.archs for one in suite) else ARMS
    arms = tuple(arms or (usual_arms if material.originals else ("protected",)))
    material.check(arms)
    _check_archs(archs, material.protected)

    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "directory": str(directory),
        "clean": _name(clean),
        "source": _name(source or run.get("source")),
        "aux": _name(aux),
        "suite": ",".join(countermeasure.name for countermeasure in suite),
        "archs": list(archs),
        "arms": list(arms),
        "seeds": list(seeds),
        "victim": asdict(config),
        "device": str(where),
        **_protection_and_versions(manifest),
    }
    card = survival(material.originals, material.protected) if material.originals else []
    atomic_write_json(out / "attack.json", {**settings, "survival": card})
    rows: list[dict] = []
    failures: list[str] = []
    for row in evaluate(
        material,
        suite=suite,
        archs=list(archs),
        seeds=list(seeds),
        config=config,
        out=out,
        arms=arms,
        progress=progress,
        failed=lambda cell, error: failures.append(f"{cell}: {error}"),
    ):
        rows.append(row)
        on_row(row)
    if not rows:
        raise DataError("no victim could be trained: " + "; ".join(failures))
    classes = material.protected.num_classes
    seen = kept(treated_folder(out, material), [one.name for one in suite], material.protected)
    pictures = shown(material.originals, material.protected, seen)
    files = [
        out / "results.json",
        *write_report(
            out, rows, settings, classes, survival=card, pictures=pictures, failures=failures
        ),
    ]
    table = settings_table(rows, classes).text()
    return AttackResult(rows, table, verdict(rows, classes), files, failures)


def _manifest_and_run(directory: Path) -> tuple[dict, dict]:
    """What protect wrote of itself; run.json may be gone, the pictures' owner keeps it back."""
    from fastue.data.layout import RUN_FILE
    from fastue.data.store import NoiseStore

    manifest = NoiseStore.open(directory, shards=False).manifest  # pictures count, not the noise
    path = directory / RUN_FILE
    return manifest, json.loads(path.read_text()) if path.exists() else {}


def _material(
    directory: Path,
    clean: Source,
    source: Source | None,
    aux: Source | None,
    labels: str | os.PathLike[str] | None,
    size: int | None,
    manifest: dict,
    run: dict,
) -> Material:
    from fastue.data.budget import Budget
    from fastue.data.verify import open_protected
    from fastue.methods.base import classes_of
    from fastue.protocol.cells import Material

    size = size or run.get("size") or manifest.get("size")
    identities = classes_of(manifest["config"].get("identities", ""), manifest["classes"])
    test, oracle = _opened(clean, size, labels), isinstance(aux, str) and aux == "oracle"
    return Material(
        open_protected(directory),
        originals_of(source, run.get("source"), size, manifest),
        test,
        Budget.of(manifest),
        test if oracle else None if aux is None else _opened(aux, size),
        oracle,
        () if len(identities) == len(manifest["classes"]) else tuple(identities),
    )


def _protection_and_versions(manifest: dict) -> dict:
    from fastue.core import info

    names = ("method", "config", "seed", "eps", "compat")
    protection = {name: manifest[name] for name in names if name in manifest}
    return {"protection": protection, "versions": info.collect()}


def _opened(
    source: Source, size: int | None, labels: str | os.PathLike[str] | None = None
) -> ImageDataset:
    from fastue.data.dataset import ImageDataset
    from fastue.data.sources import open_dataset

    if isinstance(source, ImageDataset):
        return source
    return open_dataset(source, size=size, labels=labels)


def _name(source: Source | None) -> str | None:
    """What attack.json calls a source."""
    return source if source is None else str(getattr(source, "source", source))


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _check_archs(archs: list[str], data: ImageDataset) -> None:
    """A wrong name fails before the first training."""
    from fastue.models import build

    for arch in archs:
        build(arch, data.num_classes, data.shape[0])


def originals_of(
    source: Source | None, read_from: str | None, size: int | None, manifest: dict
) -> ImageDataset | None:
    """The clean originals if they are at `source`, or where protect read them, and still are the
    pictures that were protected. With a `source` it is an error if they are not."""
    if source is None and read_from is None:
        return None
    place = read_from if source is None else source
    try:
        data = _opened_by_manifest(place, size, manifest)
        if data.fingerprint() != manifest["source_fingerprint"]:
            raise DataError(
                f"--source {_name(place)}: these are not the pictures that were protected "
                "(fingerprint differs)"
            )
    except DataError:
        if source is not None:
            raise
        return None
    return data


def _opened_by_manifest(place: Source, size: int | None, manifest: dict) -> ImageDataset:
    """A folder that protect read with --labels need not be sorted: the manifest has the labels."""
    from fastue.data.dataset import ImageDataset
    from fastue.data.folder import open_folder

    classes = [manifest["classes"][label] for label in manifest["labels"]]
    table = dict(zip(manifest["ids"], classes, strict=True))
    sorted_by_class = all(name.split("/")[0] == label for name, label in table.items())
    if isinstance(place, ImageDataset) or sorted_by_class or not Path(place).is_dir():
        return _opened(place, size)
    return open_folder(Path(place), size=size, table=table, on_error="stop")
