"""A picture folder with one sub-folder a class, read into memory."""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from fastue.core.errors import DataError
from fastue.data.dataset import ImageDataset
from fastue.data.parallel import map_blocks
from fastue.data.pictures import EXTENSIONS, PictureError, decode

_SHOWN = 5
_BLOCK = 64


def some(names: Iterable[str], shown: int = _SHOWN) -> str:
    """The first few names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def open_folder(
    root: Path, *, size: int | None, table: dict[str, str] | None, on_error: str
) -> ImageDataset:
    """Every picture below root/<class>/ (sub-folders included); ids are paths relative to root, in sorted order.

    With `table` (relative path -> class name) the folder may have any shape and the table gives the classes.
    """
    notes: list[str] = []
    if table is None:
        ids, labels, classes = _scan_classes(root, notes)
    else:
        ids, labels, classes = _scan_table(root, table, notes)
    pixels, kept = read_pictures(root, ids, size=size, on_error=on_error, notes=notes)
    ids = [ids[row] for row in kept]
    classes, kept_labels = _drop_empty(
        root, classes, np.asarray(labels, dtype=np.int64)[kept], on_error, notes
    )
    return ImageDataset(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        labels=torch.from_numpy(kept_labels),
        ids=ids,
        classes=classes,
        source=str(root),
        notes=notes,
    )


def read_pictures(
    root: Path, ids: list[str], *, size: int | None, on_error: str, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Decode root/id for every id into one uint8 array [K,H,W,C]; also the rows that were kept, int64 [K].

    Unreadable files stop with their list, or are left out with a note when on_error is "skip". Gray pictures become
    RGB when at least one picture is coloured. Pictures of different sizes stop, naming the sizes.
    """
    first = _first_readable(root, ids, size)
    height, width, channels = first.shape if first is not None else (1, 1, 1)
    while True:
        check_memory(root, len(ids) * height * width * channels)
        pixels = np.empty((len(ids), height, width, channels), dtype=np.uint8)
        outcome = _decode_all(root, ids, size, pixels)
        coloured = any(shape[2] == 3 for shape in outcome.shapes)
        if coloured and channels == 1:
            channels = 3
            continue
        break
    if outcome.bad and (on_error != "skip" or len(outcome.bad) == len(ids)):
        lines = [f"  {ids[row]}: {reason}" for row, reason in sorted(outcome.bad.items())]
        more = [f"  ... and {len(lines) - 20} more"] if len(lines) > 20 else []
        raise DataError(
            "\n".join(
                [f"{root}: {len(lines)} of {len(ids)} pictures cannot be read:", *lines[:20], *more]
                + ["Repair or remove them, or leave them out with --skip-bad."]
            )
        )
    sizes: dict[tuple[int, int], list[int]] = defaultdict(list)
    gray = []
    for shape, rows in outcome.shapes.items():
        sizes[shape[:2]] += rows
        if shape[2] == 1 and channels == 3:
            gray += rows
    if len(sizes) > 1:
        common = sorted(sizes.items(), key=lambda item: (-len(item[1]), item[0]))
        text = "; ".join(
            f"{w}x{h}: {len(rows)} ({ids[min(rows)]})" for (h, w), rows in common[:_SHOWN]
        )
        rest = f"; and {len(common) - _SHOWN} more" if len(common) > _SHOWN else ""
        raise DataError(
            f"{root}: the pictures have {len(sizes)} different sizes ({text}{rest}). "
            "Pass --size S to resize the shorter side to S and cut out the centre."
        )
    if outcome.bad:
        names = some(f"{ids[row]} ({reason})" for row, reason in sorted(outcome.bad.items()))
        notes.append(f"{len(outcome.bad)} unreadable pictures left out: {names}")
    if gray:
        notes.append(
            f"{len(gray)} pictures: gray converted to RGB: {some(ids[row] for row in sorted(gray))}"
        )
    for kind, rows in sorted(outcome.converted.items()):
        notes.append(f"{len(rows)} pictures: {kind}: {some(ids[row] for row in sorted(rows))}")
    kept = np.array(sorted(set(range(len(ids))) - set(outcome.bad)), dtype=np.int64)
    return (pixels[kept] if outcome.bad else pixels), kept


class _Outcome:
    def __init__(self) -> None:
        self.bad: dict[int, str] = {}
        self.shapes: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        self.converted: dict[str, list[int]] = defaultdict(list)


def _decode_all(root: Path, ids: list[str], size: int | None, pixels: np.ndarray) -> _Outcome:
    def work(rows: range) -> _Outcome:
        found = _Outcome()
        for row in rows:
            try:
                picture, kinds = decode(root / ids[row], size)
            except PictureError as error:
                found.bad[row] = str(error)
                continue
            found.shapes[picture.shape].append(row)
            for kind in kinds:
                found.converted[kind].append(row)
            if picture.shape[:2] == pixels.shape[1:3] and picture.shape[2] <= pixels.shape[3]:
                pixels[row] = picture  # gray is repeated over the three channels
        return found

    total = _Outcome()
    for found in map_blocks(work, len(ids), _BLOCK):
        total.bad |= found.bad
        for shape, rows in found.shapes.items():
            total.shapes[shape] += rows
        for kind, rows in found.converted.items():
            total.converted[kind] += rows
    return total


def _first_readable(root: Path, ids: list[str], size: int | None) -> np.ndarray | None:
    for name in ids:
        try:
            return decode(root / name, size)[0]
        except PictureError:
            continue
    return None


def check_memory(name: str | Path, need: int) -> None:
    """Raise DataError when `need` bytes are more than this machine can hold."""
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > 0.8 * have:
        raise DataError(
            f"{name}: the pictures take {need / 2**30:.1f} GiB in memory and this machine has {have / 2**30:.1f}. "
            "Pass a smaller --size, or protect the set in parts."
        )


def _scan_classes(root: Path, notes: list[str]) -> tuple[list[str], list[int], list[str]]:
    folders, files = _list(root, root)
    loose = [name for name in files if _is_picture(name)]
    if loose:
        raise DataError(
            f"{root}: {len(loose)} pictures lie outside the class folders and have no label: {some(loose)}. "
            "Move them into a folder named after their class, or give a table with --labels."
        )
    if not folders:
        raise DataError(
            f"{root}: no class folders; pictures are expected as {root}/<class>/<picture>"
        )
    ids: list[str] = []
    labels: list[int] = []
    other = list(files)
    for label, folder in enumerate(folders):
        names = _walk(root, folder, notes)
        pictures = [name for name in names if _is_picture(name)]
        other += [name for name in names if not _is_picture(name)]
        ids += pictures
        labels += [label] * len(pictures)
    _finish_scan(root, ids, other, notes)
    return ids, labels, folders


def _scan_table(
    root: Path, table: dict[str, str], notes: list[str]
) -> tuple[list[str], list[int], list[str]]:
    names = _walk(root, "", notes)
    ids = [name for name in names if _is_picture(name)]
    missing = [name for name in ids if name not in table]
    if missing:
        raise DataError(
            f"{root}: {len(missing)} pictures have no label in the table: {some(missing)}"
        )
    absent = sorted(set(table) - set(ids))
    if absent:
        raise DataError(
            f"{root}: the label table names {len(absent)} pictures that are not there: {some(absent)}"
        )
    classes = sorted(set(table.values()))
    place = {name: label for label, name in enumerate(classes)}
    _finish_scan(root, ids, [name for name in names if not _is_picture(name)], notes)
    return ids, [place[table[name]] for name in ids], classes


def _finish_scan(root: Path, ids: list[str], other: list[str], notes: list[str]) -> None:
    undecodable = [name for name in ids if not _is_text(name)]
    if undecodable:
        raise DataError(
            f"{root}: names that are not valid UTF-8, rename them: {some(map(ascii, undecodable))}"
        )
    if not ids:
        raise DataError(
            f"{root}: no picture found; PNG, JPEG, WebP and BMP files are read from {root}/<class>/"
        )
    if other:
        notes.append(
            f"{len(other)} files that are not PNG, JPEG, WebP or BMP left out: {some(map(_shown, other))}"
        )


def _drop_empty(
    root: Path, classes: list[str], labels: np.ndarray, on_error: str, notes: list[str]
) -> tuple[list[str], np.ndarray]:
    present = np.unique(labels)
    empty = [name for label, name in enumerate(classes) if label not in present]
    if empty and on_error != "skip":
        raise DataError(
            f"{root}: class folders without a picture: {some(empty)}. "
            "Remove them or add pictures, or leave them out with --skip-bad."
        )
    if empty:
        notes.append(f"{len(empty)} class folders without a picture left out: {some(empty)}")
    return [classes[label] for label in present], np.searchsorted(present, labels)


def _walk(root: Path, folder: str, notes: list[str]) -> list[str]:
    """Files below root/folder as paths relative to root, sorted; a link back to a folder above is not followed."""
    found: list[str] = []
    loops: list[str] = []

    def visit(name: str, above: frozenset[str]) -> None:
        real = os.path.realpath(root / name)
        if real in above:
            loops.append(name)
            return
        folders, files = _list(root, root / name)
        prefix = f"{name}/" if name else ""
        found.extend(prefix + file for file in files)
        for inner in folders:
            visit(prefix + inner, above | {real})

    visit(folder, frozenset({os.path.realpath(root)} if folder else ()))
    if loops:
        notes.append(
            f"{len(loops)} links that lead back to a folder above not followed: {some(map(_shown, loops))}"
        )
    return sorted(found)


def _list(root: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Names of sub-folders and of files, sorted; hidden ones are left out."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
            folders = sorted(entry.name for entry in shown if entry.is_dir())
            files = sorted(entry.name for entry in shown if not entry.is_dir())
    except PermissionError as error:
        raise DataError(f"{folder}: no permission to list this folder") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed: {error.strerror}") from error
    return folders, files


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(name: str) -> str:
    return name if _is_text(name) else ascii(name)
