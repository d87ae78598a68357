"""Tiny picture folders, made on the spot."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastue.data.dataset import ImageDataset


def colour_picture(seed: int, width: int = 8, height: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


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
