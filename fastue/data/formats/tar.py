"""WebDataset: <key>.png, <key>.cls and <key>.json ({"id": …}) in a .tar, or in numbered shards.

Keys are row numbers. Class names and the number of rows stand in a header of the archive that other
readers skip. Members are never unpacked to the disk.
"""

import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import IO

import numpy as np

from fastue.core.errors import DataError, UsageError
from fastue.data.atomic import atomic_write, make_folder
from fastue.data.dataset import ImageDataset
from fastue.data.formats._pictures import BATCH, decoded, encoded
from fastue.data.npz import from_arrays
from fastue.data.store import is_inside
from fastue.data.writers import encode_png

_PATTERN = re.compile(r"\{(\d+)\.\.(\d+)\}")
_PICTURES = (".png", ".webp", ".jpg", ".jpeg", ".bmp")
_CLASSES, _ROWS = "FASTUE.classes", "FASTUE.rows"


def check(dataset: ImageDataset) -> None:
    """Holds every data set."""


def files(path: Path) -> list[Path]:
    """The shards that `set-{00000..00007}.tar` names, or the one file."""
    span = _PATTERN.search(path.name)
    if not span:
        return [path]
    first, last = span.groups()
    count = int(last) - int(first) + 1
    if not 1 <= count <= 100_000:
        raise UsageError(f"{path}: write {{FIRST..LAST}}, such as {{00000..00007}}")
    name = path.name
    numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    return [path.with_name(name[: span.start()] + n + name[span.end() :]) for n in numbers]


def exists(path: Path) -> bool:
    """Whether it is there whole: missing shards are written, those that are there are compared."""
    return all(file.exists() for file in files(path))


def write(path: Path, dataset: ImageDataset) -> None:
    shards = files(path)
    if len(shards) > len(dataset):
        raise DataError(f"{path}: {len(shards)} shards for {len(dataset)} pictures")
    make_folder(path.parent)
    bounds = [len(dataset) * k // len(shards) for k in range(len(shards) + 1)]
    for shard, start, stop in zip(shards, bounds, bounds[1:], strict=False):
        part = dataset.subset(range(start, stop)) if len(shards) > 1 else dataset
        if not shard.exists():
            _write(shard, part, start)
        elif read(shard).fingerprint() != part.fingerprint():
            raise UsageError(f"{shard}: exists and holds something else; name another file")


def _write(path: Path, dataset: ImageDataset, first: int) -> None:
    header = {_CLASSES: json.dumps(dataset.classes), _ROWS: str(len(dataset))}
    rows = zip(dataset.ids, dataset.labels.tolist(), encoded(dataset, encode_png), strict=True)

    def fill(file: IO[bytes]) -> None:
        form = tarfile.PAX_FORMAT
        with tarfile.open(fileobj=file, mode="w", format=form, pax_headers=header) as archive:
            for row, (identity, label, data) in enumerate(rows, first):
                about = json.dumps({"id": identity}).encode()
                for end, content in ((".png", data), (".cls", b"%d" % label), (".json", about)):
                    member = tarfile.TarInfo(f"{row:08d}{end}")  # time, owner and group 0
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))

    atomic_write(path, fill)


def read(path: Path, size: int | None = None) -> ImageDataset:
    keys: list[str] = []
    labels: list[int] = []
    ids: list[str] = []
    places: list[tuple[Path, int, int]] = []  # of each picture: file, offset, bytes
    classes: list[str] | None = None
    for shard in files(path):
        samples, header = _scan(shard)
        if _CLASSES in header:
            classes = _json(shard, _CLASSES, header[_CLASSES].encode(), list)
        for key, parts in samples.items():
            if not {"picture", ".cls"} <= set(parts):
                raise DataError(f"{shard}: {key} lacks a picture or its .cls")
            keys.append(key)
            labels.append(_label(shard, key, _bytes(shard, *parts[".cls"])))
            about = {}
            if ".json" in parts:
                about = _json(shard, f"{key}.json", _bytes(shard, *parts[".json"]), dict)
            ids.append(str(about.get("id", key)))
            places.append((shard, *parts["picture"]))

    def pictures():
        for start in range(0, len(places), BATCH):
            yield [_bytes(*place) for place in places[start : start + BATCH]]

    return from_arrays(
        decoded(str(path), keys, pictures, size),
        np.array(labels),
        source=str(path),
        ids=ids,
        classes=classes,
    )


def _scan(path: Path) -> tuple[dict[str, dict[str, tuple[int, int]]], dict[str, str]]:
    """Offset and bytes of each sample's parts, and the header."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        total = path.stat().st_size
        with tarfile.open(path, "r:") as archive:
            header = dict(archive.pax_headers)
            for member in archive:
                if member.isdir():
                    continue
                name = member.name.removeprefix("./")
                if not member.isreg() or not is_inside(name) or member.issparse():
                    raise DataError(f"{path}: member {member.name!r} is no plain file inside it")
                if member.offset_data + member.size > total:
                    raise DataError(f"{path}: cut short in {name}")
                folder, base = os.path.split(name)
                stem, dot, end = base.partition(".")
                end = dot + end.lower()
                part = "picture" if end in _PICTURES else end
                parts = samples.setdefault(os.path.join(folder, stem), {})
                if part in parts:
                    raise DataError(f"{path}: {name} is there twice")
                parts[part] = member.offset_data, member.size
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (tarfile.TarError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: damaged, or not a .tar file: {error}") from error
    if _ROWS in header and header[_ROWS] != str(len(samples)):
        raise DataError(f"{path}: holds {len(samples)} of {header[_ROWS]} pictures: cut short")
    return samples, header


def _bytes(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)


def _label(path: Path, key: str, text: bytes) -> int:
    text = text.strip()
    if not (text.isdigit() and len(text) < 10):
        raise DataError(f"{path}: {key}.cls holds {text[:20]!r}, no whole number")
    return int(text)


def _json(path: Path, name: str, text: bytes, kind: type):
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind) or (
        kind is list and not all(isinstance(entry, str) for entry in value)
    ):
        raise DataError(f"{path}: {name} is not what it should be")
    return value
