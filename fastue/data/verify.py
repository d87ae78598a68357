"""Read a protected directory back: as a data set to train on, and to check every file against noise
and originals.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fastue.core.errors import DataError
from fastue.data.budget import Budget, within_length
from fastue.data.dataset import ImageDataset
from fastue.data.folder import read_pictures, some
from fastue.data.fullsize import files_of, original
from fastue.data.npz import open_npz
from fastue.data.parallel import map_blocks
from fastue.data.pictures import EXTENSIONS, PictureError, decode
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.tensorfile import file_sha256, read_tensors
from fastue.data.writers import is_png, pixel_hash, protected_original, protected_pictures

_BLOCK = 128


@dataclass
class VerifyResult:
    """What a check of a protected directory came to. `ok` means that nothing is wrong.

    The lists hold file names (of an .npz: ids). `max_levels` (in 1/255), `max_l2` (the longest
    difference of a picture as a 2-norm in [0,1] pixel units) and `psnr` compare the written
    pictures with the originals and are None when no source was given.
    """

    pictures: int = 0
    checked: int = 0
    source_checked: bool = False
    levels: int = 0
    budget: Budget = Budget(8 / 255)
    max_levels: int | None = None
    max_l2: float | None = None
    psnr: float | None = None
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    wrong_size: list[str] = field(default_factory=list)
    lossy: list[str] = field(default_factory=list)
    over_budget: list[str] = field(default_factory=list)
    wrong_label: list[str] = field(default_factory=list)
    not_in_source: list[str] = field(default_factory=list)
    store: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """One line for each kind of thing that is wrong, with the first few names."""
        kinds = {
            "missing": self.missing,
            "cannot be read": self.unreadable,
            "not written by this run": self.extra,
            "pixels differ from what was written": self.changed,
            "wrong size": self.wrong_size,
            "not PNG files any more (encoded again?)": self.lossy,
            f"over the budget of {self._limit()}": self.over_budget,
            "label differs": self.wrong_label,
            "not in the source": self.not_in_source,
        }
        lines = [
            f"{len(names)} pictures {kind}: {some(names)}" for kind, names in kinds.items() if names
        ]
        return lines + self.store

    @property
    def ok(self) -> bool:
        return not self.problems()

    def text(self) -> str:
        """The report as printed."""
        lines = [f"{self.checked} of {self.pictures} pictures decoded, budget {self._limit()}"]
        if self.source_checked:
            psnr = "none changed" if self.psnr == math.inf else f"PSNR {self.psnr:.2f} dB"
            largest = f"{self.max_levels}/255"
            if self.budget.norm == "l2":
                largest += f", largest 2-norm {self.max_l2:.4g}"
            lines.append(f"against the source: largest difference {largest}, {psnr}")
        else:
            lines.append(
                "no source given: pixels checked against the hashes of this run, "
                "not against the originals"
            )
        lines += [f"WRONG: {line}" for line in self.problems()] or ["ok: nothing is wrong"]
        return "\n".join(lines)

    def _limit(self) -> str:
        return f"{self.levels}/255" if self.budget.norm == "linf" else self.budget.text()


def open_protected(directory: str | os.PathLike[str]) -> ImageDataset:
    """The pictures as written, decoded from their files, with the ids, labels and classes of the
    manifest.

    Pictures that were written at their own size are resized and cut out as protect did. The noise
    itself is not needed. Raises DataError when the run is unfinished or files are missing,
    unreadable or of another size.
    """
    directory = Path(directory)
    manifest = NoiseStore.open(directory, shards=False).manifest
    pictures = manifest["pictures"]
    if pictures is None:
        raise DataError(f"{directory}: holds noise only; no pictures were written")
    if pictures["kind"] == "npz":
        dataset = open_npz(directory / pictures["files"][0])
        if dataset.ids != manifest["ids"] or dataset.labels.tolist() != manifest["labels"]:
            raise DataError(
                f"{directory / pictures['files'][0]}: its ids or labels are "
                "not those of the manifest"
            )
        return dataset
    files = pictures["files"]
    absent = [name for name in files if not (directory / name).is_file()]
    if absent:
        raise DataError(
            f"{directory}: {len(absent)} of {len(files)} written pictures are missing: "
            f"{some(absent)}"
        )
    notes: list[str] = []
    size = manifest.get("size")
    pixels, _ = read_pictures(directory, files, size=size, on_error="stop", notes=notes)
    if list(pixels.shape[1:]) != _hwc(manifest["shape"]):
        raise DataError(
            f"{directory}: pictures are {list(pixels.shape[1:])}, "
            f"the manifest says {manifest['shape']}"
        )
    return ImageDataset(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2),
        labels=torch.tensor(manifest["labels"], dtype=torch.int64),
        ids=manifest["ids"],
        classes=manifest["classes"],
        source=str(directory),
        notes=notes,
    )


def verify(
    directory: str | os.PathLike[str],
    source: str | os.PathLike[str] | ImageDataset | None = None,
    *,
    labels: str | os.PathLike[str] | None = None,
) -> VerifyResult:
    """Decode every written picture again and compare it with what it has to be.

    With `source` (an open data set, or what open_dataset takes) every pixel must equal clip(x +
    noise, 0, 255) for the original of the same id, recomputed here; without it, pixels are compared
    with the hashes taken when they were written. Pictures that were written at their own size are
    compared with those in the files of `source`, their noise enlarged. Shards are hashed and held
    to the budget in both cases. Raises DataError when there is nothing to check.
    """
    directory = Path(directory)
    store = NoiseStore.open(directory, shards=False)
    manifest = store.manifest
    pictures = manifest["pictures"]
    result = VerifyResult(
        pictures=len(manifest["ids"]),
        levels=manifest["levels"],
        budget=store.budget,
        store=store.shard_problems(),
    )
    if pictures is None:
        return result
    hashes = _hashes(directory, manifest, result)
    originals = None
    if source is not None:
        if not isinstance(source, ImageDataset):
            height, width = manifest["shape"][1:]
            size = height if height == width else None
            source = open_dataset(source, size=size, labels=labels, on_error="skip")
        originals = _Originals(source, manifest, result)
    if pictures["kind"] == "npz":
        blocks = _decoded_npz(directory / pictures["files"][0], manifest, result)
        names = manifest["ids"]
    else:
        blocks = _decoded_files(directory, manifest, result)
        names = pictures["files"]
        _check_labels(names, manifest, result)
        result.extra = _extra(directory, names)
    check = _Check(store, names, hashes, originals, result)
    for rows, pixels in blocks:
        check.block(rows, pixels)
    check.done()
    return result


class _Originals:
    """Row of the source for each row of the manifest, by id; -1 where there is none."""

    def __init__(self, source: ImageDataset, manifest: dict, result: VerifyResult):
        self.source = source
        self.root = files_of(source) if manifest.get("full_size") else None
        place = {name: row for row, name in enumerate(source.ids)}
        self.rows = np.array([place.get(name, -1) for name in manifest["ids"]], dtype=np.int64)
        result.not_in_source = [
            name for name, row in zip(manifest["ids"], self.rows, strict=True) if row < 0
        ]
        if list(source.shape) != manifest["shape"]:
            raise DataError(
                f"{source.source}: pictures are {list(source.shape)}, "
                f"protected were {manifest['shape']}"
            )
        names = [source.classes[label] for label in source.labels.tolist()]
        for name, label, row in zip(manifest["ids"], manifest["labels"], self.rows, strict=True):
            if row >= 0 and names[row] != manifest["classes"][label]:
                result.wrong_label.append(name)
        if source.fingerprint() != manifest["source_fingerprint"]:
            result.store.append(
                f"{source.source}: not the data set that was protected (fingerprint differs)"
            )

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The originals of these rows of the manifest, uint8 [B,H,W,C]; at full size, of one."""
        wanted = torch.from_numpy(self.rows[rows])
        x = self.source.take(wanted).permute(0, 2, 3, 1).cpu().numpy()
        if self.root is None:
            return x
        return original(self.root / self.source.ids[int(wanted)], x[0])[None]


class _Check:
    """Compares blocks of decoded pictures with what they have to be; sums up the differences."""

    def __init__(
        self,
        store: NoiseStore,
        names: list[str],
        hashes: np.ndarray | None,
        originals: _Originals | None,
        result: VerifyResult,
    ):
        self.store, self.names, self.hashes = store, names, hashes
        self.originals, self.result = originals, result
        self.readable = not result.store or not store.shard_problems(checksums=False)
        self.squares, self.values, self.strongest, self.longest = 0, 0, 0, 0.0

    def block(self, rows: np.ndarray, pixels: np.ndarray) -> None:
        """rows int64 [B], pixels uint8 [B,H,W,C]"""
        result, changed = self.result, set()
        result.checked += len(rows)
        if self.hashes is not None:
            actual = np.stack([pixel_hash(picture) for picture in pixels])
            changed |= set(rows[(actual != self.hashes[rows]).any(1)].tolist())
        if self.originals is not None:
            there = self.originals.rows[rows] >= 0
            rows, pixels = rows[there], pixels[there]
            if len(rows):
                changed |= self._compare(self.originals, rows, pixels)
        result.changed += [self.names[row] for row in sorted(changed)]

    def _compare(self, originals: _Originals, rows: np.ndarray, pixels: np.ndarray) -> set[int]:
        x = originals.take(rows)
        if x.shape != pixels.shape:
            self.result.wrong_size += [self.names[row] for row in rows]
            return set()
        change = pixels.astype(np.int16) - x
        strongest = np.abs(change).max((1, 2, 3))
        squares = np.square(change, dtype=np.int64).sum((1, 2, 3))
        lengths = np.sqrt(squares)  # in 1/255
        self.squares += int(squares.sum())
        self.values += change.size
        self.strongest = max(self.strongest, int(strongest.max()))
        self.longest = max(self.longest, float(lengths.max()))
        over = strongest > self.result.levels
        if self.result.budget.norm == "l2":
            over |= ~within_length(lengths, self.result.budget.eps)
        self.result.over_budget += [self.names[row] for row in rows[over]]
        if not self.readable:  # the damaged shard is reported; its noise says nothing
            return set()
        noise, way = self.store.rows(rows), self.store.change
        if originals.root is not None:
            expected = protected_original(x[0], noise[0], change=way)[None]
        else:
            clean = torch.from_numpy(x).permute(0, 3, 1, 2)
            expected = protected_pictures(clean, noise, torch.arange(len(rows)), change=way)
            expected = expected.permute(0, 2, 3, 1).numpy()
        wrong = (expected != pixels).any((1, 2, 3))
        return set(rows[wrong].tolist())

    def done(self) -> None:
        if self.originals is None:
            return
        self.result.source_checked = True
        self.result.max_levels, self.result.max_l2 = self.strongest, self.longest / 255
        error = self.squares / self.values if self.values else 0
        self.result.psnr = 10 * math.log10(255**2 / error) if error else math.inf


def _hashes(directory: Path, manifest: dict, result: VerifyResult) -> np.ndarray | None:
    path = directory / manifest["pictures"]["hashes"]
    try:
        hashes = read_tensors(path)[0]["sha256"].numpy()
        if file_sha256(path) != manifest["pictures"]["hashes_sha256"] or hashes.shape != (
            len(manifest["ids"]),
            32,
        ):
            raise DataError(f"{path}: changed: its sha256 is not the one in the manifest")
    except (DataError, KeyError) as error:
        result.store.append(str(error))
        return None
    return hashes


def _decoded_files(
    directory: Path, manifest: dict, result: VerifyResult
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Blocks of pictures; at full size a block is one, since no two need have one size."""
    files, size = manifest["pictures"]["files"], tuple(_hwc(manifest["shape"]))
    any_size = bool(manifest.get("full_size"))

    def work(block: range) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
        rows, pictures, wrong = [], [], {}
        for row in block:
            path = directory / files[row]
            if not path.is_file():
                wrong[row] = "missing"
                continue
            try:
                pixels, _ = decode(path)
            except PictureError:
                wrong[row] = "unreadable"
                continue
            if not is_png(path):
                wrong[row] = "lossy"
            if pixels.shape[2] != size[2] or (pixels.shape != size and not any_size):
                wrong[row] = "wrong_size"
                continue
            rows.append(row)
            pictures.append(pixels)
        stacked = np.stack(pictures) if pictures else np.empty(0)
        return np.array(rows, dtype=np.int64), stacked, wrong

    for rows, pixels, wrong in map_blocks(work, len(files), 1 if any_size else _BLOCK):
        for row, kind in wrong.items():
            getattr(result, kind).append(files[row])
        if len(rows):
            yield rows, pixels


def _decoded_npz(
    path: Path, manifest: dict, result: VerifyResult
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    try:
        dataset = open_npz(path)
    except DataError as error:
        result.store.append(str(error))
        return
    place = {name: row for row, name in enumerate(dataset.ids)}
    rows = np.array([place.get(name, -1) for name in manifest["ids"]], dtype=np.int64)
    result.missing = [name for name, row in zip(manifest["ids"], rows, strict=True) if row < 0]
    result.extra = sorted(set(dataset.ids) - set(manifest["ids"]))
    labels = dataset.labels.tolist()
    for name, label, row in zip(manifest["ids"], manifest["labels"], rows, strict=True):
        if row >= 0 and labels[row] != label:
            result.wrong_label.append(name)
    if list(dataset.shape) != manifest["shape"]:
        result.wrong_size = list(dataset.ids)
        return
    pixels = dataset.images.permute(0, 2, 3, 1).numpy()
    there = np.flatnonzero(rows >= 0)
    for start in range(0, len(there), _BLOCK):
        part = there[start : start + _BLOCK]
        yield part, pixels[rows[part]]


def _check_labels(files: list[str], manifest: dict, result: VerifyResult) -> None:
    for name, label in zip(files, manifest["labels"], strict=True):
        if name.split("/")[1] != manifest["classes"][label]:
            result.wrong_label.append(name)


def _extra(directory: Path, files: list[str]) -> list[str]:
    names = set(files)
    top = files[0].split("/")[0] if files else "images"
    there = (
        path.relative_to(directory).as_posix()
        for path in (directory / top).rglob("*")
        if path.is_file()
    )
    return sorted(
        name
        for name in there
        if name not in names and os.path.splitext(name)[1].lower() in EXTENSIONS
    )


def _hwc(shape: list[int]) -> list[int]:
    c, h, w = shape
    return [h, w, c]
