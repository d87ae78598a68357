"""FFCV's .beton: raw pixels, ids and classes in the `.json` beside it. See fastue.data.beton."""

from pathlib import Path

from fastue.data.beton import open_beton, write_beton
from fastue.data.dataset import ImageDataset


def check(dataset: ImageDataset) -> None:
    """Holds every data set; what it cannot is said by write before anything is written."""


def write(path: Path, dataset: ImageDataset) -> None:
    write_beton(path, dataset)


def read(path: Path, size: int | None = None) -> ImageDataset:
    return open_beton(path, size=size)
