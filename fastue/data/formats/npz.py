"""One .npz of x uint8 [N,H,W,C], y int64 [N], ids and classes as strings."""

import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from fastue.core.errors import DataError
from fastue.data.atomic import atomic_write, make_folder
from fastue.data.dataset import ImageDataset
from fastue.data.formats._pictures import blocks
from fastue.data.npz import open_npz


def check(dataset: ImageDataset) -> None:
    for name in (*dataset.ids, *dataset.classes):
        if name.endswith("\0"):
            raise DataError(f"{dataset.source}: {name!r} cannot be held by an array; rename it")


def write(path: Path, dataset: ImageDataset) -> None:
    write_arrays(
        path,
        dataset,
        "x",
        y=dataset.labels.cpu().numpy(),
        ids=np.array(dataset.ids),
        classes=np.array(dataset.classes),
    )


def read(path: Path, size: int | None = None) -> ImageDataset:
    return open_npz(path, size=size)


def write_arrays(path: Path, dataset: ImageDataset, pictures: str, **others: np.ndarray) -> None:
    """The pictures as an array of this name, a block at a time, and others. Equal content gives
    equal bytes."""
    c, h, w = dataset.shape
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(dataset), h, w, c)}

    def fill(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with archive.open(zipfile.ZipInfo(f"{pictures}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for pixels in blocks(dataset):
                    member.write(pixels.data)
            for name, array in others.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    make_folder(path.parent)
    atomic_write(path, fill)
