"""A folder of lossless WebP, one sub-folder a class."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fastue.core.errors import DataError
from fastue.data.dataset import ImageDataset
from fastue.data.formats import _folders
from fastue.data.formats._folders import read as read
from fastue.data.formats._pictures import refuse_large


def check(dataset: ImageDataset) -> None:
    if dataset.shape[0] != 3:
        raise DataError(f"{dataset.source}: WebP holds no gray pictures; use png")
    refuse_large(dataset, 16383)
    _folders.check(dataset)


def write(path: Path, dataset: ImageDataset) -> None:
    _folders.write(path, dataset, ".webp", _encode)


def stored(dataset: ImageDataset) -> ImageDataset:
    return _folders.stored(dataset, ".webp")


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, exact=True)
    return buffer.getvalue()
