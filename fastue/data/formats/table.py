"""A folder of PNG in the order of the data set, 00000.png and so on, with labels.csv beside them.

The table has the columns file, label, class, id; of foreign ones only file and label are needed.
"""

import csv
import io
from pathlib import Path

import numpy as np

from fastue.core.errors import DataError
from fastue.data.atomic import atomic_folder, atomic_write_bytes
from fastue.data.dataset import ImageDataset
from fastue.data.formats._pictures import BATCH, decoded, encoded, refuse_empty_classes
from fastue.data.npz import from_arrays
from fastue.data.store import is_inside
from fastue.data.writers import encode_png

TABLE = "labels.csv"


def check(dataset: ImageDataset) -> None:
    refuse_empty_classes(dataset)
    for name in (*dataset.ids, *dataset.classes):
        if not name or any(sign in name for sign in "\0\r\n") or not name.isprintable():
            raise DataError(f"{dataset.source}: {name!r} does not fit into a table; rename it")


def write(path: Path, dataset: ImageDataset) -> None:
    width = max(5, len(str(len(dataset) - 1)))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "label", "class", "id"])
    with atomic_folder(path) as folder:
        rows = zip(dataset.labels.tolist(), dataset.ids, encoded(dataset, encode_png), strict=True)
        for row, (label, identity, data) in enumerate(rows):
            name = f"{row:0{width}d}.png"
            atomic_write_bytes(folder / name, data, durable=False)
            table.writerow([name, label, dataset.classes[label], identity])
        atomic_write_bytes(folder / TABLE, text.getvalue().encode(), durable=False)


def read(path: Path, size: int | None = None) -> ImageDataset:
    table = path / TABLE
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            columns = lines.fieldnames or []
            rows = list(lines)
    except OSError as error:
        raise DataError(f"{table}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a UTF-8 CSV table: {error}") from error
    if not {"file", "label"} <= set(columns) or not rows:
        raise DataError(f"{table}: needs the columns file and label, and a line for each picture")
    names, labels, classes = [], [], {}
    for number, row in enumerate(rows, 2):
        name, label = row["file"], row["label"] or ""
        if not is_inside(name):
            raise DataError(f"{table}, line {number}: {name!r} is no file of this folder")
        if not (label.isascii() and label.isdigit() and len(label) < 10):
            raise DataError(f"{table}, line {number}: label {label!r} is no whole number")
        names.append(name)
        labels.append(int(label))
        if "class" in columns and classes.setdefault(int(label), row["class"]) != row["class"]:
            raise DataError(f"{table}, line {number}: a second name for class {label}")
    if classes and sorted(classes) != list(range(len(classes))):
        raise DataError(f"{table}: labels must be 0 .. classes - 1")

    def files():
        for start in range(0, len(names), BATCH):
            yield [_bytes(path / name) for name in names[start : start + BATCH]]

    return from_arrays(
        decoded(str(path), names, files, size),
        np.array(labels),
        source=str(path),
        ids=[row["id"] for row in rows] if "id" in columns else names,
        classes=[classes[label] for label in sorted(classes)] or None,
    )


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
