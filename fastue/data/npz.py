"""Pictures and labels as arrays: .npz files, and what torchvision's data sets hold."""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastue.core.errors import DataError
from fastue.data.dataset import ImageDataset
from fastue.data.folder import check_memory, some
from fastue.data.pictures import fit

_X = ("x", "data", "images")
_Y = ("y", "targets", "labels")


def open_npz(path: Path, *, size: int | None = None) -> ImageDataset:
    """A data set from a .npz file; object arrays (pickles) are never loaded.

    x (or data, images) uint8 [N,H,W,C], [N,C,H,W] or [N,H,W]; y (or targets, labels) integers [N];
    optionally ids [N] and classes [K] as strings. Without them ids are row numbers and classes are
    numbers.
    """
    arrays = _load(path)
    x, y = _one_of(path, arrays, _X), _one_of(path, arrays, _Y)
    names = {}
    for key in ("ids", "classes"):
        if key in arrays:
            if arrays[key].dtype.kind != "U" or arrays[key].ndim != 1:
                raise DataError(
                    f"{path}: {key} must be a 1-d array of strings, not {arrays[key].dtype}"
                )
            names[key] = arrays[key].tolist()
    return from_arrays(x, y, source=str(path), size=size, **names)


def from_arrays(
    x: np.ndarray,
    y: np.ndarray,
    *,
    source: str,
    size: int | None = None,
    ids: list[str] | None = None,
    classes: list[str] | None = None,
) -> ImageDataset:
    """An ImageDataset from arrays as open_npz describes them; DataError says what does not fit."""
    notes: list[str] = []
    x = _check_pictures(x, source)
    y = _check_labels(y, len(x), source)
    if classes is None:
        top = int(y.max()) if len(y) else -1
        if top >= len(y):
            raise DataError(
                f"{source}: label {top} for {len(y)} pictures; labels must be 0 .. classes - 1"
            )
        classes = [str(label) for label in range(top + 1)]
    elif len(y) and int(y.max()) >= len(classes):
        raise DataError(
            f"{source}: label {int(y.max())}, but only {len(classes)} classes are named"
        )
    absent = sorted(set(range(len(classes))) - set(np.unique(y).tolist()))
    if absent:
        notes.append(
            f"{len(absent)} classes without a picture: {some(classes[label] for label in absent)}"
        )
    if ids is None:
        width = max(5, len(str(len(x))))
        ids = [f"{row:0{width}d}" for row in range(len(x))]
    if size is not None and x.shape[1:3] != (size, size):
        notes.append(f"{len(x)} pictures resized from {x.shape[2]}x{x.shape[1]} to {size}x{size}")
        x = _resize(x, size, source)
    return ImageDataset(
        images=torch.from_numpy(x).permute(0, 3, 1, 2),
        labels=torch.from_numpy(y),
        ids=ids,
        classes=classes,
        source=source,
        notes=notes,
    )


def _resize(x: np.ndarray, size: int, source: str) -> np.ndarray:
    """uint8 [N,size,size,C]."""
    channels = x.shape[3]
    check_memory(source, len(x) * size * size * channels)
    resized = np.empty((len(x), size, size, channels), dtype=np.uint8)
    for row, pixels in enumerate(x):
        picture = Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)
        resized[row] = np.asarray(fit(picture, size)).reshape(size, size, channels)
    return resized


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            check_memory(str(path), sum(member.file_size for member in archive.infolist()))
        with np.load(path, allow_pickle=False) as file:
            keys = [key for key in file.files if key in (*_X, *_Y, "ids", "classes")]
            return {key: file[key] for key in keys}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except PermissionError as error:
        raise DataError(f"{path}: no permission to read it") from error
    except ValueError as error:
        if "pickle" in str(error):
            raise DataError(
                f"{path}: holds pickled objects, which are never loaded; save plain arrays"
            ) from error
        raise DataError(f"{path}: damaged .npz file: {error}") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        KeyError,
        NotImplementedError,
    ) as error:
        raise DataError(f"{path}: damaged, or not an .npz file: {error}") from error


def _one_of(path: Path, arrays: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise DataError(f"{path}: no array named {' or '.join(names)}")


def _check_pictures(x: np.ndarray, source: str) -> np.ndarray:
    """uint8 [N,H,W,C], contiguous."""
    if x.dtype != np.uint8:
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            raise DataError(
                f"{source}: pictures hold NaN or infinite values; they must be uint8, 0 to 255"
            )
        advice = ""
        if x.dtype.kind == "f":
            advice = " (for values in 0 .. 1: (x * 255).round().astype(numpy.uint8))"
        raise DataError(f"{source}: pictures are {x.dtype}; they must be uint8, 0 to 255{advice}")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or 0 in x.shape:
        raise DataError(
            f"{source}: pictures have shape {list(x.shape)}; "
            "expected [N,H,W,C], [N,C,H,W] or [N,H,W]"
        )
    if x.shape[3] in (1, 3):
        return np.ascontiguousarray(x)
    if x.shape[1] in (1, 3):
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    raise DataError(
        f"{source}: pictures have shape {list(x.shape)}; one or three channels are needed"
    )


def _check_labels(y: np.ndarray, n: int, source: str) -> np.ndarray:
    """int64 [N]."""
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise DataError(
            f"{source}: labels have shape {list(y.shape)}; expected [N], one whole number a picture"
        )
    if y.dtype.kind not in "iu":
        if y.dtype.kind == "f" and not np.isfinite(y).all():
            row = int(np.flatnonzero(y != y)[0])
            raise DataError(f"{source}: labels hold NaN: a label is missing at row {row}")
        raise DataError(f"{source}: labels are {y.dtype}; they must be whole numbers (int64)")
    if len(y) != n:
        raise DataError(f"{source}: {n} pictures and {len(y)} labels")
    if len(y) and int(y.min()) < 0:
        rows = np.flatnonzero(y < 0)
        raise DataError(
            f"{source}: {len(rows)} negative labels, the first at row {int(rows[0])}; "
            "labels begin at 0"
        )
    if len(y) and int(y.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{source}: label {int(y.max())} is too large")
    return y.astype(np.int64)


def is_npz(path: str | os.PathLike[str]) -> bool:
    """Whether a name ends in .npz."""
    return os.fspath(path).lower().endswith(".npz")
