"""Tiny picture folders and data sets, made on the spot."""

from pathlib import Path

import pytest
import torch
from data_helpers import colour_picture

from fastue.data.dataset import ImageDataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes with three PNG pictures of 8x8 each."""
    root = tmp_path / "pictures"
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for number in range(3):
            colour_picture(10 * label + number).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def dataset() -> ImageDataset:
    """Ten 6x5 pictures in three classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    classes = ["ant", "bee", "cow"]
    return ImageDataset(
        images=torch.randint(0, 256, (10, 3, 6, 5), dtype=torch.uint8, generator=generator),
        labels=labels,
        ids=[f"{classes[label]}/{row}.jpg" for row, label in enumerate(labels.tolist())],
        classes=classes,
        source="fixture",
    )
