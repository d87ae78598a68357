"""`fastue convert` as a function: a data set from one format to another, or the noise of a protected
directory out of it and back.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastue.core.errors import DataError, UsageError
from fastue.data.dataset import ImageDataset
from fastue.data.formats import FORMATS, of_name
from fastue.data.formats.noise import Noise
from fastue.data.layout import MANIFEST
from fastue.data.preview import preview_of
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.tensorfile import file_sha256
from fastue.data.verify import open_protected
from fastue.data.writers import write_folder
from fastue.methods.base import pixels


@dataclass
class ConvertResult:
    """What a call of `convert` came to."""

    path: Path
    format: str
    rows: int  # pictures, or noises
    bytes: int  # of what was written
    plain: int  # of the same, pixels or int8 noise at the size of the pictures, without any coding
    written: bool = True  # False: it was all there already


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    to: str | None = None,
    *,
    pictures: str | os.PathLike[str] | None = None,
    mode: str | None = None,
    eps: float | str | None = None,
    size: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    skip_bad: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> ConvertResult:
    """Write `source` in another format to `out`; docs/FORMATS.md lists them.

    source    pictures as open_dataset takes them; a directory of `fastue protect`, whose written
              pictures (or, for a format of noise, whose noise) are taken; or a file of noise
    to        the format, where the name of `out` does not say it
    pictures  the originals that a file of noise belongs to: `out` becomes a directory like that of
              `fastue protect`
    mode      of a file of noise: "sample" or "class", where the number of rows leaves it open
    eps       its budget in [0,1] pixel units (default: the smallest whole level that holds it)
    size, labels, skip_bad  as for open_dataset

    `out` is whole or not there. Pictures that are there already stay if they are the same; anything
    else that is there is a UsageError.
    Raises DataError for what the format cannot hold, before anything is written.
    """
    source, out = Path(source), Path(out)
    opened = {"size": size, "labels": labels, "on_error": "skip" if skip_bad else "stop"}
    told = next((f for f in FORMATS.values() if f.noise and _named(source, f)), None)
    if told is not None:
        if pictures is None:
            raise UsageError(f"{source}: holds noise; name the originals with --pictures")
        data = open_dataset(pictures, **opened)
        return _import(told.load().read(source), source, out, data, mode, eps)
    if pictures is not None or mode is not None or eps is not None:
        raise UsageError("--pictures, --mode and --eps go with a file of noise")
    name = of_name(str(out), to)
    kind = FORMATS[name]
    protected = source.is_dir() and (source / MANIFEST).exists()
    if kind.noise:
        if not protected:
            raise UsageError(f"{source}: not a directory of fastue protect, so it holds no noise")
        store = NoiseStore.open(source)
        if out.exists():
            raise UsageError(f"{out}: exists; name another, or remove it")
        kind.load().write(out, store)
        rows = store.header["rows"]
        return ConvertResult(out, name, rows, _size(out), rows * int(np.prod(store.shape)))
    data = open_protected(source) if protected else open_dataset(source, **opened)
    for note in data.notes:
        tell(f"note: {note}")
    module = kind.load()
    module.check(data)
    there = module.exists(out) if hasattr(module, "exists") else out.exists()
    if there:
        expected = module.stored(data) if hasattr(module, "stored") else data
        try:
            same = module.read(out).fingerprint() == expected.fingerprint()
        except DataError:
            same = False
        if not same:
            raise UsageError(f"{out}: exists and holds something else; name another, or remove it")
    else:
        module.write(out, data)
    plain = len(data) * int(np.prod(data.shape))
    return ConvertResult(out, name, len(data), _size(out), plain, not there)


def _named(path: Path, kind) -> bool:
    return path.name.lower().endswith(kind.suffixes) and not path.is_dir()


def _import(
    noise: Noise, source: Path, out: Path, data: ImageDataset, mode: str | None, eps
) -> ConvertResult:
    """A protected directory of noise that was made elsewhere."""
    if noise.shape != data.shape:
        raise DataError(
            f"{source}: noise of {list(noise.shape)} for pictures of {list(data.shape)}; "
            "--size S makes pictures square"
        )
    per, rows = _whose(noise, source, data, mode)
    strongest = int(np.abs(noise.levels.astype(np.int16)).max()) if noise.levels.size else 0
    budget = max(strongest, 1) / 255 if eps is None else pixels(str(eps))
    if strongest > budget * 255 + 1e-6:
        raise UsageError(f"--eps {eps}: the noise of {source} goes up to {strongest}/255")
    header = {
        "method": "imported",
        "config": {"mode": per, "file": source.name, "sha256": file_sha256(source)},
    }
    store = NoiseStore.create(
        out, data, per=per, eps=budget, change=noise.change, grain=noise.grain, header=header
    )
    done = store.finished
    if not done:
        for shard in store.missing_shards():
            part = noise.levels[rows[store.shard_slice(shard)]]
            store.write_shard(shard, torch.from_numpy(part))
        store.finish(write_folder(out / "images", data, store.rows, change=noise.change))
    if not (out / "preview.png").exists():
        preview_of(out, data)
    plain = len(noise.levels) * int(np.prod(noise.shape))
    return ConvertResult(out, "protected", len(data), _size(out), plain, not done)


def _whose(
    noise: Noise, source: Path, data: ImageDataset, mode: str | None
) -> tuple[str, np.ndarray]:
    """ "sample" or "class", and the row of the noise for each picture or class."""
    count, sets = len(noise.levels), {"sample": data.ids, "class": data.classes}
    fits = [per for per, names in sets.items() if len(names) == count]
    per = noise.per or mode or (fits[0] if len(fits) == 1 else None)
    if per is None and fits:
        raise UsageError(f"{source}: {count} rows may be pictures or classes; say which: --mode")
    if per not in (None, *sets) or noise.per and mode not in (None, noise.per):
        raise UsageError(f"--mode {mode}: {source} holds noise for each {noise.per or 'row'}")
    if per not in fits:
        raise DataError(
            f"{source}: {count} rows of noise for {len(data)} pictures of {data.num_classes} "
            "classes; are these the pictures it was made for?"
        )
    if noise.names is None:
        return per, np.arange(count)
    place = {name: row for row, name in enumerate(noise.names)}
    missing = [name for name in sets[per] if name not in place]
    if missing:
        raise DataError(
            f"{source}: no noise for {len(missing)} of the pictures, the first is {missing[0]!r}"
        )
    return per, np.array([place[name] for name in sets[per]], dtype=np.int64)


def _size(path: Path) -> int:
    """Bytes on the disk; of a pattern of shards, all of them."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if path.exists():
        return path.stat().st_size
    from fastue.data.formats import tar

    return sum(file.stat().st_size for file in tar.files(path))
