"""Decoded pictures in a file, so that they are decoded once and never all in memory.

CACHE/<name>-<key>/pictures.u8    uint8 [N,H,W,C], appended in row order
CACHE/<name>-<key>/journal.jsonl  what is safely in it: a line for each stretch of rows
CACHE/<name>-<key>/index.json     shape, fingerprint and what decoding met; written last

`key` is a hash of what the pictures are made of: a source that has changed gets another folder. A
kill costs the stretch that was being written; the next call goes on behind it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from fastue.core.errors import DataError
from fastue.data.atomic import (
    alone,
    atomic_write_json,
    canonical_json,
    make_folder,
    sync_folder,
    writing,
)
from fastue.data.dataset import Pages

_PICTURES, _JOURNAL, _INDEX = "pictures.u8", "journal.jsonl", "index.json"
_STRETCH = 1 << 27  # bytes of pictures from one line of the journal to the next


def cached(
    cache: Path,
    name: str,
    key: Any,
    shape: tuple[int, int, int],
    blocks: Callable[[int], Iterable[tuple[np.ndarray, int, dict]]],
) -> tuple[Pages, list[dict]]:
    """The pictures of a source, from its folder in `cache` or put there now.

    `key` (JSON-able) is what they are a function of, `shape` (H, W, C) of each. blocks(begin) makes
    them from row `begin` of the source on: (pixels uint8 [B,H,W,C], end, note), where the rows of
    the source before `end` are done and `note` is what to remember of them. Returns the pages
    (without a fingerprint: see `remember`) and the notes in order. Raises DataError when the disk
    is full; what is there then stays.
    """
    digest = hashlib.sha256(canonical_json([key, shape]).encode()).hexdigest()[:16]
    folder = make_folder(cache / f"{name or 'pictures'}-{digest}")
    with alone(folder / ".lock"):
        if not (folder / _INDEX).exists():
            _fill(folder, shape, blocks)
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        size = (folder / _PICTURES).stat().st_size
        if size != index["pictures"] * int(np.prod(shape)):
            raise DataError(f"{folder}: damaged; delete it, and it is made again")
    rows = (index["pictures"], *shape)
    return Pages(folder / _PICTURES, rows, index.get("fingerprint", "")), index["notes"]


def remember(pages: Pages, fingerprint: str) -> None:
    """Keep the fingerprint of the data set with its pictures: next time nothing is read for it."""
    pages.fingerprint = fingerprint
    path = pages.path.parent / _INDEX
    index = json.loads(path.read_text(encoding="utf-8"))
    if index.get("fingerprint") != fingerprint:
        atomic_write_json(path, {**index, "fingerprint": fingerprint})


def _fill(
    folder: Path,
    shape: tuple[int, int, int],
    blocks: Callable[[int], Iterable[tuple[np.ndarray, int, dict]]],
) -> None:
    size = int(np.prod(shape))
    lines = _lines(folder / _JOURNAL)
    pictures, row = (lines[-1]["pictures"], lines[-1]["row"]) if lines else (0, 0)
    notes = [note for line in lines for note in line["notes"]]
    with (
        writing(folder),
        open(folder / _PICTURES, "ab") as file,
        open(folder / _JOURNAL, "a", encoding="utf-8") as journal,
    ):
        file.truncate(pictures * size)
        journal.truncate(sum(len(line["text"]) for line in lines))
        pending: list[dict] = []
        unsaved = 0

        def save() -> None:
            file.flush()
            os.fsync(file.fileno())
            line = {"pictures": pictures, "row": row, "notes": pending}
            journal.write(json.dumps(line) + "\n")
            journal.flush()
            os.fsync(journal.fileno())

        for pixels, end, note in blocks(row):
            file.write(np.ascontiguousarray(pixels).data)
            pictures, row, unsaved = pictures + len(pixels), end, unsaved + pixels.nbytes
            if note:
                pending.append(note)
                notes.append(note)
            if unsaved >= _STRETCH:
                save()
                pending, unsaved = [], 0
        save()
    atomic_write_json(folder / _INDEX, {"pictures": pictures, "notes": notes})
    with writing(folder):
        (folder / _JOURNAL).unlink(missing_ok=True)
        sync_folder(folder)


def _lines(path: Path) -> list[dict]:
    """The whole lines of a journal; what a kill cut short is not one."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            lines.append({**json.loads(text), "text": text})
        except ValueError:
            break
    return lines if not lines or lines[-1]["text"].endswith("\n") else lines[:-1]
