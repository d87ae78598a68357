"""torchvision's classification sets by name, from files that are there; downloads nothing."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np

from fastue.core.errors import DataError, UsageError
from fastue.core.vision import import_torchvision
from fastue.data.dataset import ImageDataset
from fastue.data.npz import from_arrays
from fastue.data.pictures import fit


def open_torchvision(source: str, *, size: int | None = None) -> ImageDataset:
    """`torchvision:NAME:FOLDER`, with `:train` (default) or `:test`. Ids are row numbers."""
    parts = source.split(":", 2)
    if len(parts) != 3 or not parts[1] or not parts[2]:
        raise UsageError(
            f"{source}: expected torchvision:NAME:FOLDER or torchvision:NAME:FOLDER:test"
        )
    name, folder, split = parts[1], parts[2], "train"
    for ending in ("train", "test", "val"):
        if folder.endswith(f":{ending}"):
            folder, split = folder.removesuffix(f":{ending}"), ending
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: no such folder (from {source})")
    kind = getattr(import_torchvision("datasets"), name, None)
    if not inspect.isclass(kind) or name.startswith("_"):
        raise UsageError(f"{source}: torchvision has no data set named {name}")
    data = _construct(kind, source, folder, split)
    classes = [str(label) for label in getattr(data, "classes", [])] or None
    pixels, labels = _arrays(data, source, size)
    return from_arrays(pixels, labels, source=source, size=size, classes=classes)


def _construct(kind: type, source: str, folder: str, split: str) -> Any:
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"root": folder}
    if "download" in parameters:
        options["download"] = False
    if "split" in parameters:
        options["split"] = split
    elif "train" in parameters:
        options["train"] = split == "train"
    elif split != "train":
        raise UsageError(f"{source}: this data set has no split {split}")
    try:
        return kind(**options)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{source}: files not found or damaged in {folder} ({error}). fastue downloads nothing."
        ) from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{source}: {error}") from error


def _arrays(data: Any, source: str, size: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Pictures and labels: the arrays that the small sets hold, else picture by picture."""
    pixels = getattr(data, "data", None)
    labels = next((getattr(data, key) for key in ("targets", "labels") if hasattr(data, key)), None)
    if pixels is not None and labels is not None and np.asarray(pixels).dtype == np.uint8:
        return np.asarray(pixels), np.asarray(labels)
    rows, labels = [], []
    for row in range(len(data)):
        picture, label = data[row]
        picture = picture.convert("RGB")
        rows.append(np.asarray(picture if size is None else fit(picture, size)))
        labels.append(label)
    shapes = sorted({pixels.shape[:2] for pixels in rows})
    if len(shapes) != 1:
        raise DataError(
            f"{source}: the pictures have {len(shapes)} different sizes. Pass --size S."
        )
    return np.stack(rows), np.asarray(labels)
