"""Folders <class>/<name>.<extension>, the same but for how a picture is encoded."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fastue.core.errors import DataError
from fastue.data.atomic import atomic_folder, atomic_write_bytes, make_folder
from fastue.data.dataset import ImageDataset
from fastue.data.folder import open_folder
from fastue.data.formats._pictures import encoded, refuse_empty_classes
from fastue.data.writers import picture_names


def check(dataset: ImageDataset) -> None:
    refuse_empty_classes(dataset)
    for name in picture_names(dataset)[0]:
        for part in name.split("/"):
            if part.startswith(".") or len(part.encode()) > 240:
                raise DataError(f"{dataset.source}: {part!r} cannot be a file name; rename it")


def read(path: Path, size: int | None = None) -> ImageDataset:
    return open_folder(path, size=size, table=None, on_error="stop")


def write(
    path: Path, dataset: ImageDataset, suffix: str, encode: Callable[[np.ndarray], bytes]
) -> None:
    names = _names(dataset, suffix)
    with atomic_folder(path) as folder:
        for parent in sorted({os.path.dirname(name) for name in names}):
            make_folder(folder / parent)
        for name, data in zip(names, encoded(dataset, encode), strict=True):
            atomic_write_bytes(folder / name, data, durable=False)


def stored(dataset: ImageDataset, suffix: str) -> ImageDataset:
    """The data set as it comes back: sorted by class and name, named by its files."""
    names, labels = _names(dataset, suffix), dataset.labels.tolist()
    order = sorted(range(len(names)), key=lambda row: (dataset.classes[labels[row]], names[row]))
    classes = sorted(dataset.classes)
    number = torch.tensor([classes.index(name) for name in dataset.classes])
    rows = dataset.subset(order)
    return replace(
        rows, labels=number[rows.labels], ids=[names[row] for row in order], classes=classes
    )


def _names(dataset: ImageDataset, suffix: str) -> list[str]:
    return [name.removesuffix(".png") + suffix for name in picture_names(dataset)[0]]
