"""The result of an attack as files: CSV, Markdown, and one HTML page that needs nothing beside it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import torch
from torch import Tensor

from fastue.core.errors import UsageError
from fastue.data.atomic import atomic_write_text
from fastue.data.dataset import ImageDataset
from fastue.protocol import tables
from fastue.protocol.page import EXPLANATION, SURVIVAL, page
from fastue.protocol.verdict import verdict

SHOWN = 6  # pictures in the page


def write_report(
    out: Path,
    rows: list[dict],
    config: dict,
    num_classes: int,
    *,
    survival: list[dict] = (),
    pictures: dict[str, Tensor] | None = None,
    failures: list[str] = (),
) -> list[Path]:
    """Write results.csv, report.md and report.html into `out`; the paths written.

    survival  what fastue.protocol.survival found, pictures what `shown` gives, failures the cells
    that could not be trained. Raises UsageError where there is no row.
    """
    if not rows:
        raise UsageError(f"{out}: there is no row to report")
    texts = {
        "results.csv": victims_csv(rows),
        "report.md": _markdown(rows, num_classes, survival, failures),
        "report.html": page(
            rows,
            config,
            num_classes,
            survival=survival,
            pictures=pictures or {},
            failures=failures,
        ),
    }
    for name, text in texts.items():
        atomic_write_text(out / name, text)
    return [out / name for name in texts]


def shown(originals: ImageDataset | None, protected: ImageDataset) -> dict[str, Tensor]:
    """Columns of the page's pictures, uint8 [R,C,H,W], each of another class while there are such:
    clean, protected, difference x10; protected alone where there are no originals."""
    labels = protected.labels.cpu()
    first = [int((labels == k).nonzero()[0]) for k in labels.unique()[:SHOWN]]
    rows = torch.tensor(first)
    after = protected.take(rows).cpu()
    if originals is None:
        return {"protected": after}
    before = originals.take(rows).cpu()
    difference = (after.int() - before.int()).abs().mul(10).clamp(0, 255).to(torch.uint8)
    return {"clean": before, "protected": after, "difference x10": difference}


def victims_csv(rows: list[dict]) -> str:
    """A line a victim, all its single values; curves are in results.json."""
    names = dict.fromkeys(
        name for row in rows for name, value in row.items() if not isinstance(value, (list, dict))
    )
    file = io.StringIO()
    writer = csv.DictWriter(file, list(names), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _markdown(rows: list[dict], num_classes: int, survival: list[dict], failures: list) -> str:
    beside = tables.found_table(rows, num_classes)
    parts = [
        "# What a victim learns from the protected pictures",
        f"**{verdict(rows, num_classes)}**",
        *(f"Not trained: {each}" for each in failures),
        tables.settings_table(rows, num_classes).markdown(),
        EXPLANATION,
    ]
    if beside:
        parts += ["## Also found", beside.markdown()]
    if survival:
        parts += [
            "## What is left of the noise",
            SURVIVAL,
            tables.survival_table(survival).markdown(),
        ]
    parts += ["## All that was trained", tables.arms_table(rows, num_classes).markdown()]
    return "\n\n".join(parts) + "\n"
