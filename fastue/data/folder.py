"""A picture folder with one sub-folder a class, read into memory or into a cache on disk."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from fastue.core.errors import DataError
from fastue.data.cache import cached, remember
from fastue.data.dataset import ImageDataset, Pages
from fastue.data.parallel import map_blocks
from fastue.data.pictures import EXTENSIONS, PictureError, decode

_NAMED = 5  # in a message
_LISTED = 20  # unreadable files
_BLOCK = 64


def some(names: Iterable[str], count: int = _NAMED) -> str:
    """The first few names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def open_folder(
    root: Path,
    *,
    size: int | None,
    table: dict[str, str] | None,
    on_error: str,
    cache: Path | None = None,
    limit: int = 0,
) -> ImageDataset:
    """Every picture below root/<class>/, sub-folders included; ids are paths below root, sorted.

    With `table` (relative path -> class name) the folder may have any shape and the table gives the
    classes. Pictures of more than `limit` bytes in all are decoded into the folder `cache`, if it
    is given, and stay there.
    """
    notes: list[str] = []
    ids, labels, classes = _scan(root, table, notes)
    pages = None
    if cache is not None and _bytes(root, ids, size) > limit:
        pages, rows = _cached_pictures(
            root, ids, size=size, on_error=on_error, notes=notes, cache=cache
        )
        images = pages.images
    else:
        pixels, rows = read_pictures(root, ids, size=size, on_error=on_error, notes=notes)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    label_of_row = np.asarray(labels, dtype=np.int64)[rows]
    classes, label_of_row = _drop_empty(root, classes, label_of_row, on_error, notes)
    dataset = ImageDataset(
        images=images,
        labels=torch.from_numpy(label_of_row),
        ids=[ids[row] for row in rows],
        classes=classes,
        source=str(root),
        notes=notes,
        pages=pages,
        root=root,
    )
    if pages is not None:
        remember(pages, dataset.fingerprint())
    return dataset


def sample_folder(
    root: Path, rows: Callable[[int], np.ndarray], *, size: int | None, table: dict[str, str] | None
) -> tuple[ImageDataset, np.ndarray]:
    """Some pictures of a folder, and the labels of all, int64 [N]; only those are decoded.

    rows(N) says which, int64 [K] ascending; those of them that cannot be read are left out. The
    classes are those of all.
    """
    notes: list[str] = []
    ids, labels, classes = _scan(root, table, notes)
    classes, label_of_row = _drop_empty(root, classes, np.asarray(labels), "skip", notes)
    wanted = rows(len(ids))
    names = [ids[row] for row in wanted]
    pixels, found = read_pictures(root, names, size=size, on_error="skip", notes=notes)
    data = ImageDataset(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        labels=torch.from_numpy(label_of_row[wanted[found]]),
        ids=[names[row] for row in found],
        classes=classes,
        source=str(root),
        notes=notes,
        root=root,
    )
    return data, label_of_row


def read_pictures(
    root: Path, ids: list[str], *, size: int | None, on_error: str, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Decode root/id for every id: one uint8 array [K,H,W,C], and the rows they are, int64 [K].

    Unreadable files stop with their list, or are left out with a note when on_error is "skip". Gray
    pictures become RGB when at least one picture is coloured. Pictures of different sizes stop,
    naming the sizes.
    """
    pixels, outcome = _decode_all(root, ids, size)
    _refuse_unreadable(root, ids, outcome, on_error)
    _refuse_sizes(root, ids, outcome)
    _note(ids, outcome, pixels.shape[3], notes)
    rows = np.array(sorted(set(range(len(ids))) - set(outcome.bad)), dtype=np.int64)
    return (pixels[rows] if outcome.bad else pixels), rows


def _bytes(root: Path, ids: list[str], size: int | None) -> int:
    """Of all pictures, if they are all like the first."""
    first = _first_readable(root, ids, size)
    return 0 if first is None else first.size * len(ids)


def _cached_pictures(
    root: Path, ids: list[str], *, size: int | None, on_error: str, notes: list[str], cache: Path
) -> tuple[Pages, np.ndarray]:
    """As read_pictures, the pictures in a file of the cache."""
    first = _first_readable(root, ids, size)
    assert first is not None  # pictures of no bytes go into no cache
    channels = first.shape[2]
    key = [str(root.resolve()), ids, [_stamp(root / name) for name in ids], size]
    while True:
        shape = (*first.shape[:2], channels)

        def blocks(begin: int) -> Iterator[tuple[np.ndarray, int, dict]]:
            return _decoded_blocks(root, ids, size, shape, begin, on_error)  # noqa: B023

        try:
            pages, found = cached(cache, root.name, [key, channels], shape, blocks)
            break
        except _ColourError:
            channels = 3  # the first was gray, another is coloured: again, with room for colours
    outcome = _Outcome()
    for note in found:
        outcome.add(_Outcome.of(note))
    _refuse_unreadable(root, ids, outcome, on_error)
    _note(ids, outcome, channels, notes)
    rows = np.array(sorted(set(range(len(ids))) - set(outcome.bad)), dtype=np.int64)
    return pages, rows


def _stamp(path: Path) -> tuple[int, int]:
    """What changes with a file's content."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1  # decoding will say why
    return status.st_size, status.st_mtime_ns


class _ColourError(Exception):
    """A coloured picture among gray ones."""


def _decoded_blocks(
    root: Path,
    ids: list[str],
    size: int | None,
    shape: tuple[int, int, int],
    begin: int,
    on_error: str,
) -> Iterator[tuple[np.ndarray, int, dict]]:
    """Blocks for data.cache.cached; pictures of another size stop, naming the sizes."""
    height, width, channels = shape

    def work(rows: range) -> tuple[np.ndarray, int, _Outcome]:
        pixels = np.empty((len(rows), *shape), dtype=np.uint8)
        outcome = _decode_into(
            pixels, root, ids, size, range(begin + rows.start, begin + rows.stop)
        )
        good = [row for row in rows if begin + row not in outcome.bad]
        return pixels[np.array(good, dtype=np.int64) - rows.start], begin + rows.stop, outcome

    total = _Outcome()
    for pixels, end, outcome in map_blocks(work, len(ids) - begin, _BLOCK):
        if channels == 1 and any(found[2] == 3 for found in outcome.shapes):
            raise _ColourError
        total.bad |= outcome.bad
        if outcome.bad:
            _refuse_unreadable(root, ids, total, on_error)
        for found, rows in outcome.shapes.items():
            total.shapes[found].append(rows[0])
        _refuse_sizes(root, ids, total)
        yield pixels, end, outcome.note(channels)


class _Outcome:
    """What decoding met: rows by the reason why not, by shape, and by kind of conversion."""

    def __init__(self) -> None:
        self.bad: dict[int, str] = {}
        self.shapes: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        self.converted: dict[str, list[int]] = defaultdict(list)

    def note(self, channels: int) -> dict:
        """What is unusual in it, as JSON; empty where nothing is."""
        gray = {shape: rows for shape, rows in self.shapes.items() if shape[2] < channels}
        parts = {"bad": self.bad, "gray": list(gray.items()), "converted": self.converted}
        return {name: part for name, part in parts.items() if part}

    @classmethod
    def of(cls, note: dict) -> "_Outcome":
        """The reverse of `note`."""
        outcome = cls()
        outcome.bad = {int(row): reason for row, reason in note.get("bad", {}).items()}
        outcome.shapes.update({tuple(shape): rows for shape, rows in note.get("gray", [])})
        outcome.converted.update(note.get("converted", {}))
        return outcome

    def add(self, other: "_Outcome") -> None:
        self.bad |= other.bad
        for shape, rows in other.shapes.items():
            self.shapes[shape] += rows
        for kind, rows in other.converted.items():
            self.converted[kind] += rows


def _decode_all(root: Path, ids: list[str], size: int | None) -> tuple[np.ndarray, _Outcome]:
    """Pixels uint8 [N,H,W,C] of the first picture's size; rows of other sizes are not filled."""
    first = _first_readable(root, ids, size)
    height, width, channels = first.shape if first is not None else (1, 1, 1)
    while True:
        check_memory(root, len(ids) * height * width * channels)
        pixels = np.empty((len(ids), height, width, channels), dtype=np.uint8)
        outcome = _Outcome()

        def work(rows: range, pixels: np.ndarray = pixels) -> _Outcome:
            return _decode_into(pixels[rows.start : rows.stop], root, ids, size, rows)

        for part in map_blocks(work, len(ids), _BLOCK):
            outcome.add(part)
        if channels == 3 or not any(shape[2] == 3 for shape in outcome.shapes):
            return pixels, outcome
        channels = 3  # the first was gray, another is coloured: again, with room for colours


def _decode_into(
    pixels: np.ndarray, root: Path, ids: list[str], size: int | None, rows: range
) -> _Outcome:
    """Fill pixels uint8 [len(rows),H,W,C] by the pictures of these rows that fit."""
    outcome = _Outcome()
    for place, row in enumerate(rows):
        try:
            picture, kinds = decode(root / ids[row], size)
        except PictureError as error:
            outcome.bad[row] = str(error)
            continue
        outcome.shapes[picture.shape].append(row)
        for kind in kinds:
            outcome.converted[kind].append(row)
        if picture.shape[:2] == pixels.shape[1:3] and picture.shape[2] <= pixels.shape[3]:
            pixels[place] = picture  # gray is repeated over the three channels
    return outcome


def _refuse_unreadable(root: Path, ids: list[str], outcome: _Outcome, on_error: str) -> None:
    """Files that cannot be read are never left out unasked, and all of them not even then."""
    if not outcome.bad or (on_error == "skip" and len(outcome.bad) < len(ids)):
        return
    lines = [f"  {ids[row]}: {reason}" for row, reason in sorted(outcome.bad.items())]
    more = [f"  ... and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    raise DataError(
        "\n".join(
            [
                f"{root}: {len(lines)} of {len(ids)} pictures cannot be read:",
                *lines[:_LISTED],
                *more,
                "Repair or remove them, or leave them out with --skip-bad.",
            ]
        )
    )


def _refuse_sizes(root: Path, ids: list[str], outcome: _Outcome) -> None:
    rows_of_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for shape, rows in outcome.shapes.items():
        rows_of_size[shape[:2]] += rows
    if len(rows_of_size) <= 1:
        return
    common = sorted(rows_of_size.items(), key=lambda item: (-len(item[1]), item[0]))
    text = "; ".join(
        f"{width}x{height}: {len(rows)} ({ids[min(rows)]})"
        for (height, width), rows in common[:_NAMED]
    )
    rest = f"; and {len(common) - _NAMED} more" if len(common) > _NAMED else ""
    raise DataError(
        f"{root}: the pictures have {len(common)} different sizes ({text}{rest}). "
        "Pass --size S to resize the shorter side to S and cut out the centre."
    )


def _note(ids: list[str], outcome: _Outcome, channels: int, notes: list[str]) -> None:
    """What was left out or converted, with some of the names."""
    if outcome.bad:
        names = some(f"{ids[row]} ({reason})" for row, reason in sorted(outcome.bad.items()))
        notes.append(f"{len(outcome.bad)} unreadable pictures left out: {names}")
    gray = [row for shape, rows in outcome.shapes.items() if shape[2] < channels for row in rows]
    if gray:
        names = some(ids[row] for row in sorted(gray))
        notes.append(f"{len(gray)} pictures: gray converted to RGB: {names}")
    for kind, rows in sorted(outcome.converted.items()):
        names = some(ids[row] for row in sorted(rows))
        notes.append(f"{len(rows)} pictures: {kind}: {names}")


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
            f"{name}: the pictures take {need / 2**30:.1f} GiB in memory and this machine has "
            f"{have / 2**30:.1f}. Pass a smaller --size, or protect the set in parts."
        )


def _scan(
    root: Path, table: dict[str, str] | None, notes: list[str]
) -> tuple[list[str], list[int], list[str]]:
    """Ids, labels and classes: of the sub-folders, or as the table says."""
    return _scan_classes(root, notes) if table is None else _scan_table(root, table, notes)


def _scan_classes(root: Path, notes: list[str]) -> tuple[list[str], list[int], list[str]]:
    folders, files = _list(root, root)
    loose = [name for name in files if _is_picture(name)]
    if loose:
        raise DataError(
            f"{root}: {len(loose)} pictures lie outside the class folders and have no label: "
            f"{some(loose)}. Move them into a folder named after their class, or give a table "
            "with --labels."
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
            f"{root}: the label table names {len(absent)} pictures that are not there: "
            f"{some(absent)}"
        )
    classes = sorted(set(table.values()))
    label_of = {name: label for label, name in enumerate(classes)}
    _finish_scan(root, ids, [name for name in names if not _is_picture(name)], notes)
    return ids, [label_of[table[name]] for name in ids], classes


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
        names = some(map(_printable, other))
        notes.append(f"{len(other)} files that are not PNG, JPEG, WebP or BMP left out: {names}")


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
    """Files below root/folder as paths relative to root, sorted; links upwards are not followed."""
    paths: list[str] = []
    loops: list[str] = []

    def visit(name: str, above: frozenset[str]) -> None:
        real = os.path.realpath(root / name)
        if real in above:
            loops.append(name)
            return
        folders, files = _list(root, root / name)
        prefix = f"{name}/" if name else ""
        paths.extend(prefix + file for file in files)
        for inner in folders:
            visit(prefix + inner, above | {real})

    visit(folder, frozenset({os.path.realpath(root)} if folder else ()))
    if loops:
        names = some(map(_printable, loops))
        notes.append(f"{len(loops)} links that lead back to a folder above not followed: {names}")
    return sorted(paths)


def _list(root: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Names of sub-folders and of files, sorted; hidden ones are left out."""
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]
            folders = sorted(entry.name for entry in entries if entry.is_dir())
            files = sorted(entry.name for entry in entries if not entry.is_dir())
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


def _printable(name: str) -> str:
    return name if _is_text(name) else ascii(name)
