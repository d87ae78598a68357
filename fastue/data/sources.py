"""open_dataset: whatever the user names, as an ImageDataset."""

import csv
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastue.core.errors import DataError, UsageError
from fastue.data.beton import is_beton, open_beton
from fastue.data.dataset import ImageDataset
from fastue.data.demo import demo_dataset
from fastue.data.folder import open_folder, sample_folder
from fastue.data.formats import FORMATS, of_name
from fastue.data.keyed import keyed_generator
from fastue.data.npz import is_npz, open_npz
from fastue.data.torchvision_sets import open_torchvision


def open_dataset(
    source: str | os.PathLike[str],
    *,
    size: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    on_error: str = "stop",
    cache: str | os.PathLike[str] | None = None,
    limit: int = 0,
) -> ImageDataset:
    """Read a data set into memory, or for a folder of pictures into a file.

    source    a folder with one sub-folder a class (PNG, JPEG, WebP, BMP), a .npz file with x and y,
              a .beton, a .tar (WebDataset), a .parquet with pictures, a folder with labels.csv,
              torchvision:NAME:FOLDER[:train|test], or demo:train, demo:test
    size      resize the shorter side to this and cut out the centre; without it all pictures must
              have one size
    labels    a CSV table `file,class` for a folder that is not sorted into classes
    on_error  "stop" (default) or "skip": what to do with pictures that cannot be read
    cache     a folder for decoded pictures: those of a folder or .beton that take more than `limit`
              bytes are kept there, and mapped into memory; the next call finds them

    What was converted or left out is listed in `.notes`. Raises UsageError for an argument that
    makes no sense and DataError for pictures or labels that cannot be used; nothing is written in
    either case.
    """
    if on_error not in ("stop", "skip"):
        raise UsageError(f'on_error must be "stop" or "skip", not {on_error!r}')
    name = os.fspath(source)
    path = Path(name)
    kept = {"cache": None if cache is None else Path(cache), "limit": limit}
    table = _checked(name, size, labels)
    if name.startswith("demo:"):
        if size not in (None, 32):
            raise UsageError(
                f"--size {size} does not go with the demo data set, whose pictures are 32x32"
            )
        dataset = demo_dataset(name.removeprefix("demo:"))
    elif name.startswith("torchvision:"):
        dataset = open_torchvision(name, size=size)
    elif labels is None and _has_table(path):
        dataset = FORMATS["csv"].load().read(path, size)
    elif name.lower().endswith((".tar", ".parquet")):
        dataset = FORMATS[of_name(name)].load().read(path, size)
    elif path.is_dir():
        dataset = open_folder(path, size=size, table=table, on_error=on_error, **kept)
    elif is_npz(path):
        dataset = open_npz(path, size=size)
    elif not path.exists():
        raise DataError(f"{name}: no such file or folder")
    elif is_beton(path):
        dataset = open_beton(path, size=size, **kept)
    else:
        raise DataError(f"{name}: not a folder of pictures and not an .npz or .beton file")
    _refuse_single(name, dataset.labels, dataset.classes)
    return dataset


@dataclass(frozen=True)
class Survey:
    """A data set by a sample of it: for what has to be known before all of it is decoded.

    data    the sample; its classes are those of all
    labels  of all pictures, int64 [N]
    seconds that opening all of them takes, with a fingerprint of their pixels
    """

    data: ImageDataset
    labels: Tensor
    seconds: float

    def __len__(self) -> int:
        return len(self.labels)


def survey(
    source: str | os.PathLike[str] | ImageDataset,
    *,
    size: int | None = None,
    labels: str | os.PathLike[str] | None = None,
    count: int = 512,
) -> Survey:
    """`count` pictures of a source, drawn by key. Of a folder no others are decoded; other sources
    are opened whole. Arguments and errors as of open_dataset; files that cannot be read are left
    out.
    """

    scanned = start = time.perf_counter()

    def draw(n: int) -> np.ndarray:
        nonlocal scanned
        rows = np.sort(keyed_generator(0, "survey").permutation(n)[:count])
        scanned = time.perf_counter()  # a folder is listed by now, and that was all of it
        return rows

    if isinstance(source, ImageDataset):
        whole = source
    elif (path := Path(os.fspath(source))).is_dir() and (labels or not _has_table(path)):
        table = _checked(os.fspath(source), size, labels)
        data, every = sample_folder(path, draw, size=size, table=table)
        data.fingerprint()
        decoding = (time.perf_counter() - scanned) * len(every) / len(data)
        _refuse_single(os.fspath(source), every, data.classes)
        return Survey(data, torch.from_numpy(every), scanned - start + decoding)
    else:
        whole = open_dataset(source, size=size, labels=labels)
    data = whole.subset(draw(len(whole)))
    data.fingerprint()
    return Survey(data, whole.labels.cpu(), time.perf_counter() - start)


def _has_table(path: Path) -> bool:
    """Whether a folder has pictures and labels.csv in it, and no class folders."""
    folders = (entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else ()
    return (path / "labels.csv").is_file() and all(f.name.startswith(".") for f in folders)


def _checked(name: str, size: int | None, labels) -> dict[str, str] | None:
    """The label table, once the arguments are known to make sense."""
    if size is not None and not 1 <= size <= 8192:
        raise UsageError(f"--size must be between 1 and 8192, not {size}")
    if labels is not None and not Path(name).is_dir():
        raise UsageError(f"--labels goes with a folder of pictures; {name} has its own labels")
    return None if labels is None else _read_table(Path(labels))


def _refuse_single(name: str, labels: Tensor | np.ndarray, classes: list[str]) -> None:
    present = np.unique(np.asarray(labels))
    if len(present) < 2:
        only = classes[int(present[0])] if len(present) else "none"
        raise DataError(
            f"{name}: a single class ({only}): there is nothing to learn, and nothing to protect"
        )


def _read_table(path: Path) -> dict[str, str]:
    """Relative path -> class name from a CSV file; a first line `file,class` is a header."""
    table: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, line in enumerate(csv.reader(file), 1):
                cells = [cell.strip() for cell in line]
                header = number == 1 and [cell.lower() for cell in cells] == ["file", "class"]
                if not cells or header:
                    continue
                if len(cells) != 2 or not all(cells):
                    raise DataError(
                        f"{path}, line {number}: expected `file,class`, found {','.join(line)!r}"
                    )
                name, label = cells
                if name in table:
                    raise DataError(f"{path}, line {number}: a second label for {name}")
                table[name] = label
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a UTF-8 CSV table: {error}") from error
    if not table:
        raise DataError(f"{path}: the label table is empty")
    return table
