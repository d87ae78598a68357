"""A folder of PNG, one sub-folder a class."""

from pathlib import Path

from fastue.data.dataset import ImageDataset
from fastue.data.formats import _folders
from fastue.data.formats._folders import check as check
from fastue.data.formats._folders import read as read
from fastue.data.writers import encode_png


def write(path: Path, dataset: ImageDataset) -> None:
    _folders.write(path, dataset, ".png", encode_png)


def stored(dataset: ImageDataset) -> ImageDataset:
    return _folders.stored(dataset, ".png")
