""".beton files, FFCV's format, without FFCV: written bit for bit, and read in blocks or whole.

A file begins with a header, a description of each field and a table of fixed-size rows, one a
sample; pictures follow in pages that none of them straddles, and a list of where each one lies ends
the file. What the format cannot say, the ids and the names of the classes, stands beside it in
`<file>.json`, which is written last.
"""

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image

from fastue.core.errors import DataError, UsageError
from fastue.data.atomic import (
    atomic_write,
    atomic_write_json,
    free_space_check,
    make_folder,
    remove_stale_of,
)
from fastue.data.dataset import ImageDataset, gather
from fastue.data.folder import check_memory
from fastue.data.npz import from_arrays
from fastue.data.pictures import MAX_PIXELS, fit
from fastue.data.tensorfile import file_sha256

_VERSION = 2
_HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page", "<u4"), ("rows", "<u8"), ("regions", "<u8")]
)
_FIELD = np.dtype([("kind", "u1"), ("name", "S16"), ("arguments", "V1024")])
_REGION = np.dtype([("row", "<u8"), ("start", "<u8"), ("size", "<u8")])
_PICTURE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("start", "<u8")])
_SPAN = np.dtype([("start", "<u8"), ("size", "<u8")])
# What a row holds of a field of each kind: float, int, picture, bytes, array, JSON, tensor.
_KINDS = [
    np.dtype("<f8"),
    np.dtype("<i8"),
    _PICTURE,
    _SPAN,
    np.dtype("<u8"),
    _SPAN,
    np.dtype("<u8"),
]
_INT, _RGB = 1, 2
_JPEG, _RAW = 0, 1
_PAGE = 1 << 23
_BLOCK = 1024


@dataclass(frozen=True)
class Table:
    """What a .beton says of its samples: all but the pixels."""

    path: Path
    fields: tuple[str, ...]
    picture: str  # the field that holds the picture
    page: int  # bytes of a page
    labels: np.ndarray  # int64 [N]
    raw: np.ndarray  # bool [N]: pixels, not JPEG
    start: np.ndarray  # int64 [N], where the picture lies
    size: np.ndarray  # int64 [N], its bytes
    shapes: np.ndarray  # int64 [N, 2], height and width
    names: dict  # of <file>.json; {} where there is none

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        return self.names.get("channels", 3)

    def shape(self) -> tuple[int, int]:
        """Height and width of every picture. DataError where they differ."""
        found = Counter(map(tuple, self.shapes.tolist()))
        if len(found) > 1:
            text = "; ".join(f"{w}x{h}: {n}" for (h, w), n in found.most_common(5))
            raise DataError(
                f"{self.path}: the pictures have {len(found)} different sizes ({text}). "
                "Pass --size S to resize the shorter side to S and cut out the centre."
            )
        return next(iter(found))


def is_beton(path: str | os.PathLike[str]) -> bool:
    """Whether a name ends in .beton."""
    return os.fspath(path).lower().endswith(".beton")


def open_beton(path: str | os.PathLike[str], *, size: int | None = None) -> ImageDataset:
    """A .beton file in memory. FFCV is not needed.

    The one RGB field holds the pictures, the one int field but "index" (or the one named "label")
    the labels. Ids, classes and whether the pictures were gray come from `<file>.json`; without it
    ids are row numbers and classes are numbers. With `size` the shorter side is resized to it and
    the centre cut out. Raises DataError for anything else, for pictures of several sizes, for
    damage, and for a `.json` that belongs to another file.
    """
    table = read_table(path)
    path = table.path
    if table.names and file_sha256(path) != table.names["sha256"]:
        raise DataError(
            f"{path}: damaged, or {_beside(path).name} belongs to another file (checksum differs); "
            "write it again, or delete the .json to go on with row numbers as ids"
        )
    height, width = (size, size) if size else table.shape()
    check_memory(path, len(table) * height * width * table.channels)
    x = np.empty((len(table), height, width, table.channels), dtype=np.uint8)
    for pixels, _, index in _blocks(table, _BLOCK, size):
        x[index[0] : index[-1] + 1] = pixels
    names = {key: table.names[key] for key in ("ids", "classes") if key in table.names}
    dataset = from_arrays(x, table.labels, source=str(path), **names)
    if lossy := int((~table.raw).sum()):
        dataset.notes.append(f"{lossy} pictures are stored as JPEG")
    if resized := int((table.shapes != (height, width)).any(1).sum()):
        dataset.notes.append(f"{resized} pictures resized to {width}x{height}")
    return dataset


def beton_blocks(
    path: str | os.PathLike[str], block: int, *, size: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(pixels uint8 [B,H,W,C], labels int64 [B], index int64 [B]) for `block` rows after the other,
    in the order of the file; the last may be smaller.

    Only one block is in memory at a time. Otherwise as open_beton, but the file's checksum, which
    takes a pass of its own, is not compared.
    """
    if block < 1:
        raise UsageError(f"block must be at least 1, not {block}")
    return _blocks(read_table(path), block, size)


def write_beton(
    path: str | os.PathLike[str],
    dataset: ImageDataset,
    *,
    jpeg: int | None = None,
    lossy_ok: bool = False,
) -> None:
    """Write a data set as a .beton with the fields image (RGB, raw pixels), label and index (int).

    `index` is the row; `<file>.json` beside it keeps ids and classes. Gray pictures become three
    equal channels, as the format has no others, and `open_beton` gives one back. Equal data gives
    equal bytes. A kill leaves the old file or the new one, at worst for a moment without its
    `.json`; never one with the other's. FFCV is not needed.

    jpeg      quality, 1 to 100: store JPEG instead of pixels. It loses what protects a picture, so
              it takes lossy_ok=True as well, else UsageError
    Raises DataError for an empty set, pictures of more than 64 million pixels, and full disks.
    """
    path = Path(path)
    if jpeg is not None and not lossy_ok:
        raise UsageError(
            f"{path}: JPEG changes the pixels and weakens the noise in them; "
            "pass lossy_ok=True to write it all the same"
        )
    if jpeg is not None and not 1 <= jpeg <= 100:
        raise UsageError(f"{path}: JPEG quality runs from 1 to 100, not {jpeg}")
    _, height, width = dataset.shape
    if not len(dataset) or not 0 < height * width <= MAX_PIXELS or max(height, width) >= 1 << 16:
        raise DataError(f"{path}: cannot hold {len(dataset)} pictures of {width}x{height}")
    make_folder(path.parent)
    remove_stale_of(path)
    if jpeg is None:
        free_space_check(path.parent, len(dataset) * height * width * 3)
    beside = _beside(path)

    def fill(file: IO[bytes]) -> None:
        _write(file, dataset, jpeg)
        file.flush()
        names["sha256"] = file_sha256(file.name)
        names["bytes"] = os.fstat(file.fileno()).st_size
        # Before the rename: no moment has the new pictures under the old names.
        beside.unlink(missing_ok=True)

    names = {"ids": dataset.ids, "classes": dataset.classes, "channels": dataset.shape[0]}
    atomic_write(path, fill)
    atomic_write_json(beside, names)


def read_table(path: str | os.PathLike[str]) -> Table:
    """The table of a .beton. Raises DataError unless every picture lies within the file.

    FFCV itself checks nothing of this, and copies as many bytes as the file asks for.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _read_table(path, file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _read_table(path: Path, file: IO[bytes], total: int) -> Table:
    def read(dtype: np.dtype, count: int) -> np.ndarray:
        if count * dtype.itemsize > total - file.tell():
            raise DataError(f"{path}: damaged, cut off, or not a .beton file")
        return np.frombuffer(file.read(count * dtype.itemsize), dtype)

    header = read(_HEADER, 1)[0]
    page = int(header["page"])
    if header["version"] != _VERSION or not header["fields"] or page.bit_count() != 1:
        raise DataError(f"{path}: not a .beton file of version {_VERSION}")
    if not header["rows"]:
        raise DataError(f"{path}: holds no pictures")
    described = read(_FIELD, int(header["fields"]))
    fields = [name.decode("ascii", "replace") for name in described["name"].tolist()]
    kinds = described["kind"].tolist()
    for name, kind in zip(fields, kinds, strict=True):
        if kind >= len(_KINDS):
            raise DataError(
                f"{path}: field {name!r} is of a kind of its own, which nobody can read"
            )
    picture = _only(path, "picture", [f for f, k in zip(fields, kinds, strict=True) if k == _RGB])
    ints = [f for f, k in zip(fields, kinds, strict=True) if k == _INT and f != "index"]
    label = "label" if "label" in ints else _only(path, "label (int)", ints)
    layout = np.dtype([(f"f{i}", _KINDS[kind]) for i, kind in enumerate(kinds)], align=True)
    rows = read(layout, int(header["rows"]))
    first = file.tell()
    end = int(header["regions"])
    if not first <= end <= total:
        raise DataError(f"{path}: damaged or cut off")
    file.seek(end)
    regions = read(_REGION, (total - end) // _REGION.itemsize)

    pictures = rows[f"f{fields.index(picture)}"]
    start, mode = pictures["start"], pictures["mode"]
    shapes = np.stack((pictures["height"], pictures["width"]), 1).astype(np.int64)
    regions = regions[regions["row"] < len(rows)]
    regions = regions[regions["start"] == start[regions["row"]]]
    size = np.zeros_like(start)
    np.maximum.at(size, regions["row"], regions["size"])  # empty fields may start there, too
    inside = (start >= first) & (size <= page) & (start % page + size <= page) & (start < end)
    inside &= (size > 0) & (size <= end - np.minimum(start, end))
    pixels = shapes.prod(1)
    fits = (pixels > 0) & ((mode == _JPEG) | ((mode == _RAW) & (size == 3 * pixels)))
    if bad := np.flatnonzero(~(inside & fits)).tolist():
        raise DataError(f"{path}: damaged: {len(bad)} pictures, the first in row {bad[0]}")
    if pixels.max() > MAX_PIXELS:
        raise DataError(f"{path}: row {int(pixels.argmax())} has more than {MAX_PIXELS:,} pixels")
    return Table(
        path=path,
        fields=tuple(fields),
        picture=picture,
        page=page,
        labels=rows[f"f{fields.index(label)}"].astype(np.int64),
        raw=mode == _RAW,
        start=start.astype(np.int64),
        size=size.astype(np.int64),
        shapes=shapes,
        names=_read_names(path, len(rows), total),
    )


def _only(path: Path, what: str, names: list[str]) -> str:
    if len(names) != 1:
        found = ", ".join(map(repr, names)) or "none"
        raise DataError(f"{path}: exactly one {what} field is needed; it has {found}")
    return names[0]


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _read_names(path: Path, rows: int, total: int) -> dict:
    beside = _beside(path)
    try:
        names = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{beside}: cannot be read: {error}") from error
    lists = isinstance(names, dict) and all(
        isinstance(names.get(key), list) and all(isinstance(name, str) for name in names[key])
        for key in ("ids", "classes")
    )
    if not lists or names.get("channels") not in (1, 3) or "sha256" not in names:
        raise DataError(f"{beside}: not the names that fastue writes beside a .beton; move it away")
    if len(names["ids"]) != rows or names.get("bytes") != total:
        raise DataError(f"{beside}: belongs to another file than {path.name}; write it again")
    return names


def _blocks(
    table: Table, block: int, size: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    height, width = (size, size) if size else table.shape()
    plain = bool(table.raw.all() and (table.shapes == (height, width)).all())
    workers = min(16, len(os.sched_getaffinity(0)) + 1)
    with table.path.open("rb", buffering=0) as file, ThreadPoolExecutor(workers) as pool:
        # Copies are done by the time a thread has taken one over; decoding is worth it.
        each = map if plain else pool.map
        for first in range(0, len(table), block):
            index = np.arange(first, min(first + block, len(table)))
            pixels = np.empty((len(index), height, width, table.channels), dtype=np.uint8)
            found = each(lambda row: _picture(table, file.fileno(), row, size), index.tolist())
            for slot, picture in enumerate(found):
                pixels[slot] = picture[..., : table.channels]
            yield pixels, table.labels[index], index


def _picture(table: Table, handle: int, row: int, size: int | None) -> np.ndarray:
    """uint8 [H,W,3] of one row."""
    height, width = table.shapes[row].tolist()
    data = os.pread(handle, int(table.size[row]), int(table.start[row]))
    if len(data) != table.size[row]:
        raise DataError(f"{table.path}: cut off in row {row}")
    if table.raw[row]:
        pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
    else:
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as file:
                if file.size != (width, height):
                    raise ValueError(f"is {file.width}x{file.height}, not {width}x{height}")
                pixels = np.asarray(file.convert("RGB"))
        except Exception as error:  # Pillow has many kinds for damage
            raise DataError(f"{table.path}: damaged JPEG in row {row}: {error}") from error
    if size is not None and (height, width) != (size, size):
        pixels = np.asarray(fit(Image.fromarray(pixels), size))
    return pixels


def _write(file: IO[bytes], dataset: ImageDataset, jpeg: int | None) -> None:
    channels, height, width = dataset.shape
    n, whole = len(dataset), 3 * height * width
    page = max(_PAGE, 1 << (whole - 1).bit_length())
    fields = np.zeros(3, _FIELD)
    fields["kind"], fields["name"] = (_RGB, _INT, _INT), (b"image", b"label", b"index")
    rows = np.zeros(n, np.dtype([("f0", _PICTURE), ("f1", "<i8"), ("f2", "<i8")], align=True))
    rows["f0"]["mode"] = _RAW if jpeg is None else _JPEG
    rows["f0"]["width"], rows["f0"]["height"] = width, height
    rows["f1"], rows["f2"] = dataset.labels.cpu().numpy(), np.arange(n)
    regions = np.zeros(n, _REGION)
    regions["row"] = rows["f2"]

    head = _HEADER.itemsize + fields.nbytes + rows.nbytes
    end = _next_page(head, page)
    file.seek(end)  # what is skipped is zero
    for first in range(0, n, _BLOCK):
        index = torch.arange(first, min(first + _BLOCK, n), device=dataset.device)
        x = gather(dataset.images, index)  # the one place that asks the data set for pixels
        pixels = x.permute(0, 2, 3, 1).expand(-1, -1, -1, 3 if channels == 1 else -1)
        for row, picture in enumerate(np.ascontiguousarray(pixels.cpu().numpy()), first):
            data = picture.data if jpeg is None else _jpeg(picture, jpeg)
            size = picture.nbytes if jpeg is None else len(data)
            if end % page + size > page:
                end = _next_page(end, page)
                file.seek(end)
            file.write(data)
            regions["start"][row], regions["size"][row] = end, size
            end += size
    rows["f0"]["start"] = regions["start"]
    end = _next_page(end, page)
    file.seek(end)
    file.write(regions)
    file.seek(0)
    file.write(np.array((_VERSION, len(fields), page, n, end), _HEADER))
    file.write(fields)
    file.write(rows)


def _next_page(position: int, page: int) -> int:
    return -(-position // page) * page


def _jpeg(picture: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
