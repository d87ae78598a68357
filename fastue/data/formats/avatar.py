"""One .npz of data uint8 [N,H,W,C] and targets int64 [N], the form of the AVATAR code."""

from dataclasses import replace
from pathlib import Path

from fastue.data.dataset import ImageDataset
from fastue.data.formats.npz import read as read
from fastue.data.formats.npz import write_arrays


def check(dataset: ImageDataset) -> None:
    """Holds every data set."""


def write(path: Path, dataset: ImageDataset) -> None:
    write_arrays(path, dataset, "data", targets=dataset.labels.cpu().numpy())


def stored(dataset: ImageDataset) -> ImageDataset:
    """As it comes back: rows and labels are numbered."""
    width = max(5, len(str(len(dataset))))
    return replace(
        dataset,
        ids=[f"{row:0{width}d}" for row in range(len(dataset))],
        classes=[str(label) for label in range(int(dataset.labels.max()) + 1)],
    )
