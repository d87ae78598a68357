"""The result of an attack as files: CSV, Markdown, and one HTML page that needs nothing beside it."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from torch import Tensor

from fastue.core.errors import UsageError
from fastue.data.atomic import atomic_write_text
from fastue.protocol import tables
from fastue.protocol.page import EXPLANATION, SURVIVAL, page
from fastue.protocol.verdict import verdict


def write_report(
    out: Path,
    rows: list[dict],
    config: dict,
    num_classes: int,
    *,
    survival: list[dict] = (),
    pictures: dict[str, dict[str, Tensor]] | None = None,
    failures: list[str] = (),
) -> list[Path]:
    """Write results.csv, report.md and report.html into `out`; the paths written.

    survival  what fastue.protocol.survival found, pictures what fastue.protocol.pictures.shown
    gives, failures the cells that could not be trained. Raises UsageError where there is no row.
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
