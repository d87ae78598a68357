"""The embedded data set: 32x32 crops of the photographs in scikit-image's wheel, each a class."""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastue.core.errors import DataError, UsageError
from fastue.data.dataset import ImageDataset
from fastue.data.keyed import keyed_generator

PHOTOGRAPHS = (
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
)
PER_CLASS = {"train": 300, "test": 60}


def demo_dataset(
    split: str,
    *,
    photographs: tuple[str, ...] = PHOTOGRAPHS,
    per_class: int | None = None,
    size: int = 32,
    shrink: float = 1.0,
    cell: int = 64,
    contrast: float = 44.0,
    colour: float = 0.0,
    seed: int = 0,
) -> ImageDataset:
    """Crops uint8 [N,3,size,size] of each photograph: a function of wheel and arguments.

    The photograph is cut into square cells of `cell` pixels, every fifth of which belongs to the
    test split; a train crop touches no test cell and a test crop lies inside one, so no pixel is
    shared. Crops are brought to mean 128 and standard deviation `contrast` in grey; `colour` in
    [0, 1] is how much of a crop's own colour (less its mean colour) stays. None does by default:
    five of the photographs are grey, and the amount of colour alone would tell them apart (66 % of
    the test crops at 0.5). So texture and shape tell the class.
    """
    if split not in PER_CLASS:
        raise UsageError(f"demo has the splits train and test, not {split!r}")
    count = PER_CLASS[split] if per_class is None else per_class
    folder = _folder()
    crops = np.empty((len(photographs) * count, size, size, 3), dtype=np.uint8)
    ids = []
    for label, name in enumerate(photographs):
        pixels = _load(folder / name, shrink)
        generator = keyed_generator(seed, f"demo {name} {split}")
        rows, columns = _positions(pixels, split, count, size, cell, generator)
        stem = Path(name).stem
        for number, (top, left) in enumerate(zip(rows, columns, strict=True)):
            crop = pixels[top : top + size, left : left + size]
            crops[label * count + number] = _level(crop, contrast, colour)
            ids.append(f"{stem}/{split}-{top:04d}-{left:04d}")
    return ImageDataset(
        images=torch.from_numpy(crops).permute(0, 3, 1, 2),
        labels=torch.arange(len(photographs)).repeat_interleave(count),
        ids=ids,
        classes=[Path(name).stem for name in photographs],
        source=f"demo:{split}",
    )


def _folder() -> Path:
    # find_spec does not import scikit-image, and reading the files directly never starts a
    # download.
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise DataError(
            "the demo data set needs the photographs in scikit-image's wheel: "
            "pip install scikit-image"
        )
    return Path(spec.origin).parent / "data"


def _load(path: Path, shrink: float) -> np.ndarray:
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except OSError as error:
        raise DataError(
            f"{path}: the demo photograph cannot be read; install scikit-image again"
        ) from error
    if shrink != 1.0:
        size = round(picture.width / shrink), round(picture.height / shrink)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _positions(
    pixels: np.ndarray, split: str, count: int, size: int, cell: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Top-left corners of `count` different crops that are of the split and not flat."""
    height, width = pixels.shape[:2]
    rows, columns = np.arange(height) // cell, np.arange(width) // cell
    test = (rows[:, None] + 2 * columns[None, :]) % 5 == 0
    inside = _window_sums(test if split == "train" else ~test, size) == 0
    grey = pixels.astype(np.float64).mean(2)
    mean, square = _window_sums(grey, size) / size**2, _window_sums(grey**2, size) / size**2
    usable = np.argwhere(inside & (square - mean**2 > 4.0**2))
    if len(usable) < count:
        raise UsageError(
            f"only {len(usable)} {split} crops of {size} pixels fit, {count} were asked for"
        )
    chosen = usable[np.sort(generator.choice(len(usable), count, replace=False))]
    return chosen[:, 0], chosen[:, 1]


def _window_sums(values: np.ndarray, size: int) -> np.ndarray:
    """Sum over every size x size window, [H-size+1, W-size+1], by a summed-area table."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    table[1:, 1:] = values.cumsum(0, dtype=np.float64).cumsum(1)
    return table[size:, size:] - table[:-size, size:] - table[size:, :-size] + table[:-size, :-size]


def _level(crop: np.ndarray, contrast: float, colour: float) -> np.ndarray:
    values = crop.astype(np.float64)
    grey = values.mean(2, keepdims=True)
    tint = values - grey
    tint -= tint.mean((0, 1))
    levelled = (grey - grey.mean() + colour * tint) * (contrast / grey.std()) + 128
    return np.rint(levelled).clip(0, 255).astype(np.uint8)
