"""`fastue attack` as a function: open what was written, train the victims, write results.json and report.html."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fastue.core import info
from fastue.core.errors import DataError, UsageError
from fastue.data.atomic import atomic_write_json
from fastue.data.dataset import ImageDataset
from fastue.data.layout import RUN_FILE
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.verify import open_protected
from fastue.models import build
from fastue.models.training import resolve_device, resolve_precision
from fastue.protocol.cells import ARMS, evaluate, verdict
from fastue.protocol.report import text_table, write_report
from fastue.victims.train import VictimConfig


@dataclass
class AttackResult:
    rows: list[dict]
    table: str
    verdict: str
    files: list[Path]


def attack(
    directory: Path,
    *,
    clean: str,
    source: str | None,
    out: Path,
    suite: str = "none",
    archs: list[str],
    arms: list[str] | None = None,
    seeds: list[int],
    size: int | None = None,
    device: str = "auto",
    config: VictimConfig,
    progress: Callable = lambda name, done, total, info: None,
    on_row: Callable[[dict], None] = lambda row: None,
) -> AttackResult:
    """Train victims on the pictures in `directory` (and on the controls) and test them on `clean`.

    `source` names the originals; left out, the folder that protect read is used if it still holds the same pictures.
    Rows already in `out` with the same settings are kept. Raises DataError and UsageError before any training starts.
    """
    where = resolve_device(device)
    config = replace(config, precision=resolve_precision(config.precision, where))
    manifest = NoiseStore.open(directory).manifest
    protected = open_protected(directory).to(where)
    run = json.loads((directory / RUN_FILE).read_text()) if (directory / RUN_FILE).exists() else {}
    size = size or run.get("size")
    test = open_dataset(clean, size=size).to(where)
    originals = _originals(source or run.get("source"), size, manifest, required=source is not None)
    if originals is None:
        if arms and set(arms) != {"protected"}:
            raise UsageError("--arms: the controls need the clean originals; pass --source")
        arms = ["protected"]
    else:
        originals = originals.to(where)
    for arch in archs:
        build(
            arch, protected.num_classes, protected.shape[0]
        )  # a wrong name fails before the first training

    described = {
        "directory": str(directory), "clean": clean, "source": source or run.get("source"), "suite": suite,
        "archs": archs, "arms": arms or list(ARMS), "seeds": seeds, "victim": asdict(config), "device": str(where),
        "protection": {k: manifest[k] for k in ("method", "config", "seed", "eps", "compat") if k in manifest},
        "versions": info.collect(),
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_json(out / "attack.json", described)
    rows = []
    for row in evaluate(
        protected, originals, test, levels=manifest["levels"], suite=suite, archs=archs, seeds=seeds,
        config=config, out=out, arms=tuple(arms or ARMS), progress=progress,
    ):  # fmt: skip
        rows.append(row)
        on_row(row)
    files = write_report(out, rows, described, protected.num_classes, directory / "preview.png")
    return AttackResult(
        rows, text_table(rows), verdict(rows, protected.num_classes), [out / "results.json", *files]
    )


def _originals(
    source: str | None, size: int | None, manifest: dict, *, required: bool
) -> ImageDataset | None:
    """The clean originals if they are at `source` and are the ones that were protected."""
    if source is None:
        return None
    try:
        data = open_dataset(source, size=size)
    except DataError:
        if required:
            raise
        return None
    if data.fingerprint() != manifest["source_fingerprint"]:
        if required:
            raise DataError(
                f"--source {source}: these are not the pictures that were protected (fingerprint differs)"
            )
        return None
    return data
