"""The noise store: int8 noise in 1/255 in sharded safetensors files, and a manifest that is written
last.

    OUT/noise/unfinished.json            what is being made here; gone when the manifest stands
    OUT/noise/shard-00000.safetensors    noise int8 [rows, C, h, w]: at the grain it was made at, a
                                     value for each square of so many pixels
    OUT/noise/pictures.safetensors       sha256 of each written picture's pixels, uint8 [N, 32]
    OUT/manifest.json                    everything needed to look the noise up and to check the
                                         pictures

The shard is the unit of commit: it is there whole or not at all. No file holds a time or a host
name, so equal runs give equal bytes.
"""

import functools
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastue import __version__
from fastue.core.errors import DataError, UsageError
from fastue.data.atomic import (
    atomic_write_json,
    canonical_json,
    free_space_check,
    make_folder,
    remove_stale,
    writing,
)
from fastue.data.budget import CHANGES, Budget, change_of, lengths, within_length
from fastue.data.dataset import ImageDataset
from fastue.data.layout import MANIFEST
from fastue.data.tensorfile import TensorFile, file_sha256, read_header, read_tensors, write_tensors
from fastue.ops._grain import bank_shape, spread

FORMAT = 1

_UNFINISHED = "noise/unfinished.json"
_PICTURES = "noise/pictures.safetensors"
_SHARD_ROWS = 4096
_SHARD_BYTES = 64 << 20
# What the noise is a function of, as far as the store can tell; a run that differs in one of these
# is another run.
_IDENTITY = (
    "method",
    "config",
    "compat",
    "seed",
    "eps",
    "levels",
    "per",
    "shape",
    "shard_rows",
    "source_fingerprint",
)
# The same for what came later. Named only where it is not what it always was, so that old stores
# stay as they are.
_LATER = {"norm": "linf", "change": "additive", "grain": 1, "full_size": False}
_REQUIRED = (
    *_IDENTITY,
    "format",
    "ids",
    "labels",
    "classes",
    "rows",
    "shards",
    "pictures",
    "version",
)


@dataclass(frozen=True)
class WrittenPictures:
    """What a writer wrote: file names relative to the run's directory, in row order (or one .npz),
    and pixel hashes.
    """

    kind: str  # "png" or "npz"
    files: list[str]
    sha256: np.ndarray  # uint8 [N, 32], of the pixels [H, W, C]
    notes: tuple[str, ...] = ()


class NoiseStore:
    """Noise of one data set in a directory; made by `create`, read by `open`.

    `header` (while it grows) and `manifest` (once it is finished) are plain dicts; `per` is
    "sample" or "class".
    """

    def __init__(self, directory: Path, header: dict[str, Any], *, finished: bool):
        self.directory = directory
        self.header = header
        self.finished = finished
        self._digest = _digest(header)

    @classmethod
    def create(
        cls,
        directory: str | os.PathLike[str],
        dataset: ImageDataset,
        *,
        per: str,
        eps: float,
        header: dict[str, Any],
        norm: str = "linf",
        change: str | None = None,
        grain: int = 1,
        levels: int | None = None,
        shard_rows: int | None = None,
    ) -> "NoiseStore":
        """Begin a store for the noise of `dataset`, or go on with one that a killed run left in
        `directory`.

        `eps` is the budget in [0,1] pixel units and `norm` what it bounds ("linf": each value,
        "l2": a picture's 2-norm); `levels` is the largest value in whole steps of 1/255 (default:
        what the budget allows, rounded down), `grain` the side of the squares of pixels that share
        a value. `change` says how noise becomes a picture (see
        fastue.data.budget; default: what the header's `compat` stands for). `header` holds `method`
        and `config`, optionally `seed` (else the config's), `compat`, and anything else that can be
        JSON. Raises UsageError when the directory holds another run or other files, DataError when
        the disk is too small.
        """
        directory = Path(directory)
        full = _full_header(dataset, per, eps, norm, change, grain, levels, shard_rows, header)
        for name in (MANIFEST, _UNFINISHED):
            if (directory / name).exists():
                header_there = _read_json(directory / name)
                _check_same(directory, header_there, full)
                store = cls(directory, header_there, finished=name == MANIFEST)
                tidy(directory)
                return store
        for name in ("noise", "images"):
            remove_stale(directory / name)
            if (directory / name).is_dir() and any((directory / name).iterdir()):
                raise UsageError(
                    f"{directory / name}: holds files that no fastue run here wrote; "
                    "choose another --out"
                )
        stored = bank_shape(full["shape"], full.get("grain", 1))
        free_space_check(directory, full["rows"] * math.prod(stored) + (1 << 20))
        make_folder(directory / "noise")
        atomic_write_json(directory / _UNFINISHED, full)
        return cls(directory, full, finished=False)

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], *, checksums: bool = True, shards: bool = True
    ) -> "NoiseStore":
        """A finished store. Raises DataError that names the file at fault.

        The manifest must hold together and every shard must be there, whole and within the budget.
        checksums=False leaves out reading the shards' contents; shards=False asks for the manifest
        only (the noise may be elsewhere).
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise DataError(f"{directory}: no such directory")
        if not (directory / MANIFEST).exists():
            if (directory / _UNFINISHED).exists():
                raise DataError(
                    f"{directory}: the run here is unfinished; "
                    "start it again with the same arguments"
                )
            raise DataError(f"{directory}: not made by fastue protect (no {MANIFEST})")
        manifest = _read_json(directory / MANIFEST)
        _check_manifest(directory / MANIFEST, manifest)
        store = cls(directory, manifest, finished=True)
        if shards:
            for problem in store.shard_problems(checksums=checksums):
                raise DataError(problem)
        return store

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of a finished store."""
        if not self.finished:
            raise DataError(
                f"{self.directory}: the run here is unfinished; "
                "start it again with the same arguments"
            )
        return self.header

    @property
    def budget(self) -> Budget:
        return Budget.of(self.header)

    @property
    def change(self) -> str:
        """How noise becomes a picture: one of fastue.data.budget.CHANGES."""
        return change_of(self.header)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.header["shape"]
        return c, h, w

    @property
    def grain(self) -> int:
        """Side of the squares of pixels that share a noise value."""
        return self.header.get("grain", _LATER["grain"])

    @property
    def stored(self) -> tuple[int, int, int]:
        """(C, h, w) of the noise in the shards."""
        return bank_shape(self.shape, self.grain)

    @property
    def shard_count(self) -> int:
        return -(-self.header["rows"] // self.header["shard_rows"])

    def shard_slice(self, shard: int) -> slice:
        """The rows of the bank that a shard holds."""
        if not 0 <= shard < self.shard_count:
            raise IndexError(f"shard {shard} of {self.shard_count}")
        start = shard * self.header["shard_rows"]
        return slice(start, min(start + self.header["shard_rows"], self.header["rows"]))

    def shard_path(self, shard: int) -> Path:
        return self.directory / _shard_name(shard)

    def missing_shards(self) -> list[int]:
        """Shards that are not there, or are damaged or another run's, and have to be written."""
        return [
            shard for shard in range(self.shard_count) if self._shard_problem(shard, checksums=True)
        ]

    def write_shard(self, shard: int, noise: Tensor) -> None:
        """Commit int8 noise [rows, C, h, w] of one shard. Raises DataError when it breaks the type
        or the budget.
        """
        rows = self.shard_slice(shard)
        expected = (rows.stop - rows.start, *self.stored)
        if noise.dtype != torch.int8 or tuple(noise.shape) != expected:
            kind = f"{str(noise.dtype).removeprefix('torch.')} {list(noise.shape)}"
            raise DataError(
                f"shard {shard}: noise must be int8 {list(expected)} in 1/255, not {kind}"
            )
        if excess := _over_budget(noise, self.header):
            raise DataError(f"shard {shard}: {excess}")
        write_tensors(
            self.shard_path(shard), {"noise": noise.contiguous()}, self._shard_state(shard)
        )

    def finish(self, pictures: WrittenPictures | None = None) -> dict[str, Any]:
        """Write the manifest, after which the store is complete; returns it. All shards have to be
        there.
        """
        if self.finished:
            return self.header
        if missing := self.missing_shards():
            raise DataError(
                f"{self.directory}: {len(missing)} shards are not written yet, "
                f"the first is {missing[0]}"
            )
        manifest = dict(self.header)
        manifest["shards"] = [
            {
                "file": _shard_name(shard),
                "rows": self.shard_slice(shard).stop - self.shard_slice(shard).start,
                "sha256": file_sha256(self.shard_path(shard)),
            }
            for shard in range(self.shard_count)
        ]
        manifest["pictures"] = None
        if pictures is not None:
            hashes = torch.from_numpy(pictures.sha256)
            digest = write_tensors(
                self.directory / _PICTURES, {"sha256": hashes}, {"run": self._digest}
            )
            manifest["pictures"] = {
                "kind": pictures.kind,
                "files": pictures.files,
                "hashes": _PICTURES,
                "hashes_sha256": digest,
                "notes": list(pictures.notes),
            }
        atomic_write_json(self.directory / MANIFEST, manifest)
        tidy(self.directory)
        self.header, self.finished = manifest, True
        return manifest

    def rows(self, index: Tensor | np.ndarray | Sequence[int] | Sequence[str]) -> Tensor:
        """Noise int8 [B, C, H, W] of data set rows, given by number or by id; class-wise noise by
        the row's label.

        Only the rows asked for are read. Raises DataError for an id or a row that is not in the
        store.
        """
        numbers = self._numbers(index)
        if self.header["per"] == "class":
            numbers = self._labels[numbers]
        out = np.empty((len(numbers), *self.stored), dtype=np.int8)
        shards = numbers // self.header["shard_rows"]
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            out[places] = self._read(
                int(shard), numbers[places] - int(shard) * self.header["shard_rows"]
            )
        return self._shown(out)

    @functools.cached_property
    def _labels(self) -> np.ndarray:
        return np.asarray(self.header["labels"], dtype=np.int64)

    def _shown(self, noise: np.ndarray) -> Tensor:
        """At the size of the pictures."""
        return spread(torch.from_numpy(noise), self.grain, *self.shape[1:])

    def bank(self) -> Tensor:
        """All noise in memory: int8 [N, C, H, W], or [K, C, H, W] when it is class-wise."""
        return torch.cat([self._shown(self.coarse(shard)) for shard in range(self.shard_count)])

    def coarse(self, shard: int) -> np.ndarray:
        """The noise of a shard as it is stored, int8 [rows, C, h, w]."""
        rows = self.shard_slice(shard)
        return self._read(shard, np.arange(rows.stop - rows.start))

    def shard_problems(self, *, checksums: bool = True) -> list[str]:
        """What is wrong with the shards of a finished store, one line each."""
        problems = []
        for shard, entry in enumerate(self.manifest["shards"]):
            problem = self._shard_problem(shard, checksums=checksums)
            if not problem and checksums and file_sha256(self.shard_path(shard)) != entry["sha256"]:
                problem = (
                    f"{self.shard_path(shard)}: changed: its sha256 is not the one in the manifest"
                )
            if problem:
                problems.append(problem)
        return problems

    def _shard_state(self, shard: int) -> dict[str, Any]:
        return {"run": self._digest, "shard": shard}

    def _shard_problem(self, shard: int, *, checksums: bool) -> str | None:
        path, rows = self.shard_path(shard), self.shard_slice(shard)
        try:
            head = read_header(path)
            if head.state != self._shard_state(shard):
                return f"{path}: belongs to another run"
            entry = head.entries.get("noise")
            if entry is None or entry[:2] != ("I8", (rows.stop - rows.start, *self.stored)):
                return f"{path}: does not hold int8 noise of the right shape"
            if checksums:
                noise = read_tensors(path)[0]["noise"]
                if excess := _over_budget(noise, self.header):
                    return f"{path}: {excess}"
        except DataError as error:
            return str(error)
        return None

    def _read(self, shard: int, rows: np.ndarray) -> np.ndarray:
        """int8 [B, C, h, w] of these rows of a shard."""
        path = self.shard_path(shard)
        out = np.empty((len(rows), *self.stored), dtype=np.int8)
        _header(path, path.stat().st_mtime_ns).read_rows("noise", rows, out)
        return out

    def _numbers(self, index: Tensor | np.ndarray | Sequence[int] | Sequence[str]) -> np.ndarray:
        if isinstance(index, Tensor):
            index = index.cpu().numpy()
        if len(index) and isinstance(index[0], str):
            place = _places(tuple(self.header["ids"]))
            ids = [str(name) for name in index]
            unknown = [name for name in ids if name not in place]
            if unknown:
                raise DataError(
                    f"{self.directory}: no noise for {unknown[0]!r} ({len(unknown)} unknown ids)"
                )
            return np.array([place[name] for name in ids], dtype=np.int64)
        numbers = np.asarray(index, dtype=np.int64).reshape(-1)
        if numbers.size and not 0 <= numbers.min() <= numbers.max() < len(self.header["ids"]):
            raise DataError(f"{self.directory}: rows run from 0 to {len(self.header['ids']) - 1}")
        return numbers


def tidy(directory: Path) -> None:
    """Remove what a kill may have left: temporary files, and beside a manifest the mark of an
    unfinished run.
    """
    remove_stale(directory)
    if (directory / MANIFEST).exists():
        with writing(directory):
            (directory / _UNFINISHED).unlink(missing_ok=True)


@functools.lru_cache(maxsize=64)
def _header(path: Path, _changed: int) -> TensorFile:
    return read_header(path)


@functools.lru_cache(maxsize=2)
def _places(ids: tuple[str, ...]) -> dict[str, int]:
    return {name: row for row, name in enumerate(ids)}


def _shard_name(shard: int) -> str:
    return f"noise/shard-{shard:05d}.safetensors"


def _strongest(noise: Tensor) -> int:
    """The largest absolute value; int8 -128 has none of its own and counts as 128."""
    return max(int(noise.max()), -int(noise.min())) if noise.numel() else 0


def _over_budget(noise: Tensor, header: dict[str, Any]) -> str | None:
    """In words, how int8 noise breaks the budget of its store."""
    strongest, budget = _strongest(noise), Budget.of(header)
    if strongest > header["levels"]:
        return f"noise of {strongest}/255 is over the budget {header['levels']}/255"
    if budget.norm == "l2" and len(noise):
        longest = float(lengths(noise).max())
        if not within_length(longest, budget.eps):
            return f"noise of 2-norm {longest / 255:.4g} is over the budget {budget.eps:.4g}"
    return None


def _full_header(
    dataset: ImageDataset,
    per: str,
    eps: float,
    norm: str,
    change: str | None,
    grain: int,
    levels: int | None,
    shard_rows: int | None,
    header: dict[str, Any],
) -> dict[str, Any]:
    if per not in ("sample", "class"):
        raise UsageError(f'noise is per "sample" or per "class", not {per!r}')
    if change not in (None, *CHANGES):
        raise UsageError(f"change {change!r}: use one of {', '.join(CHANGES)}")
    most = Budget(eps, norm).levels
    # The length of a picture's noise is not that of its coarse form.
    if norm == "l2" and grain != 1:
        raise UsageError("noise in l2 is stored at the size of the pictures: grain 1")
    if levels is None:
        levels = most
    if not 1 <= levels <= most:
        raise UsageError(f"levels {levels}: eps {eps:g} allows 1 to {most} steps of 1/255")
    pixels = math.prod(bank_shape(dataset.shape, grain))
    if shard_rows is None:
        shard_rows = max(1, min(_SHARD_ROWS, _SHARD_BYTES // pixels))
    config = header.get("config", {})
    full = {
        "compat": "none",
        "seed": config.get("seed", 0),
        **header,
        "config": config,
        "format": FORMAT,
        "version": __version__,
        "per": per,
        "eps": float(eps),
        "levels": int(levels),
        "shape": list(dataset.shape),
        "rows": len(dataset) if per == "sample" else dataset.num_classes,
        "shard_rows": int(shard_rows),
        "ids": dataset.ids,
        "labels": dataset.labels.tolist(),
        "classes": dataset.classes,
        "source": dataset.source,
        "source_fingerprint": dataset.fingerprint(),
    }
    if norm != _LATER["norm"]:
        full["norm"] = norm
    if grain != _LATER["grain"]:
        full["grain"] = grain
    if change not in (None, change_of(full)):
        full["change"] = change
    if "method" not in full:
        raise UsageError("the header of a store needs the name of its method")
    try:
        # Tuples become lists here, as they will when the file is read again.
        return json.loads(canonical_json(full))
    except (TypeError, ValueError) as error:
        raise UsageError(f"the header of a store must be plain JSON values: {error}") from error


def _digest(header: dict[str, Any]) -> str:
    identity = {name: header.get(name) for name in _IDENTITY}
    identity |= {name: header[name] for name in _LATER if name in header}
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()


def _check_same(directory: Path, there: dict[str, Any], header: dict[str, Any]) -> None:
    names = (*_IDENTITY, *_LATER)
    different = [name for name in names if there.get(name) != header.get(name)]
    if not different:
        return
    name = different[0]
    before, now = there.get(name), header.get(name)
    if isinstance(before, dict) and isinstance(now, dict):
        name = next(key for key in sorted({*before, *now}) if before.get(key) != now.get(key))
        before, now = before.get(name), now.get(name)
    raise UsageError(
        f"{directory}: holds a run with another {name} ({before!r}, now {now!r}); "
        "repeat its arguments to go on with it, or choose another --out"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged: not JSON") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: damaged: not a JSON object")
    return value


def _check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{path}: format {manifest.get('format')!r}, "
            f"this version of fastue reads format {FORMAT}"
        )
    missing = [name for name in _REQUIRED if name not in manifest]
    if missing:
        raise DataError(f"{path}: damaged: no {', '.join(missing)}")
    try:
        n, classes = len(manifest["ids"]), len(manifest["classes"])
        good = (
            len(manifest["labels"]) == n
            and len(set(manifest["ids"])) == n
            and all(isinstance(name, str) for name in (*manifest["ids"], *manifest["classes"]))
            and all(type(label) is int and 0 <= label < classes for label in manifest["labels"])
            and manifest["per"] in ("sample", "class")
            and manifest["rows"] == (n if manifest["per"] == "sample" else classes)
            and len(manifest["shape"]) == 3
            and all(type(side) is int and side > 0 for side in manifest["shape"])
            and type(manifest.get("grain", 1)) is int
            and manifest.get("grain", 1) > 0
            and (not manifest.get("full_size") or manifest["shape"][1:] == [manifest["size"]] * 2)
            and type(manifest["shard_rows"]) is int
            and manifest["shard_rows"] > 0
            and type(manifest["levels"]) is int
            and 1 <= manifest["levels"] <= Budget.of(manifest).levels
            and [entry["file"] for entry in manifest["shards"]]
            == [_shard_name(k) for k in range(-(-manifest["rows"] // manifest["shard_rows"]))]
        )
        pictures = manifest["pictures"]
        if pictures is not None:
            good = (
                good and pictures["hashes"] == _PICTURES and all(map(is_inside, pictures["files"]))
            )
            good = good and len(pictures["files"]) == (n if pictures["kind"] == "png" else 1)
    except (KeyError, TypeError, UsageError) as error:
        raise DataError(f"{path}: damaged: {error!r}") from error
    if change_of(manifest) not in CHANGES:
        raise DataError(f"{path}: pictures changed by {manifest['change']!r}: needs a newer fastue")
    if not good:
        raise DataError(f"{path}: damaged: its entries do not fit together")


def is_inside(name: object) -> bool:
    """Whether a relative file name stays below the folder it is relative to."""
    if not isinstance(name, str) or not name or name.startswith("/") or "\0" in name:
        return False
    return not any(part in ("", ".", "..") for part in name.split("/"))
