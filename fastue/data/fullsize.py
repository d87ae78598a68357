"""Pictures of any size: noise is made for the S x S view of a picture that pictures.fit shows, and
enlarged here to the picture's own size.

Outside the view, where a victim may crop as well, the noise is mirrored at the view's edges.

Pillow's box filter does it: a pixel repeats the noise value it lies on, and where a picture is
smaller than its view it gets the mean of those it covers. A mean stays within the budget. How much
of noise of +-8 comes back in the view of the enlarged picture (its projection; 1 is all) was
measured with S = 64 and sides from 32 to 500 (`python -m bench.fullsize --filters`): with signs in
4 x 4 squares 0.90 to 1.00, where bicubic has 0.79 to 0.90 and bilinear 0.72 to 0.89; with a sign a
pixel 0.70 to 0.73 above S, where bicubic has 0.62. Below S little of that is left, whatever the
filter (0.19 at half of S). The nearest value does as the box above S; below it what comes back
resembles the noise less (correlation 0.23 for 0.46 at half of S).
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastue.core.errors import DataError
from fastue.data.dataset import ImageDataset
from fastue.data.pictures import PictureError, decode, dimensions, fit, placed

FILTER = Image.Resampling.BOX
_SAMPLE = 64  # pictures whose size is looked up for an estimate


def policy(size: int) -> dict[str, Any]:
    """What a manifest says of pictures that are written at their own size."""
    return {
        "full_size": True,
        "size": size,
        "resize": "bicubic, the shorter side to size",
        "crop": "centre",
        "noise_resize": "box, mirrored outside the crop",
    }


def enlarge(noise: np.ndarray, height: int, width: int) -> np.ndarray:
    """noise int8 [C,S,S] in 1/255, made for the view of a picture of `height` x `width`, at the
    size of that picture: int8 [C,H,W], nowhere stronger than the strongest of `noise`.
    """
    side = noise.shape[1]
    w, h, left, top = placed(width, height, side)
    rows, columns = _mirrored(side, h, top), _mirrored(side, w, left)
    # As a picture around grey: Pillow's arithmetic on bytes is in whole numbers, on every machine.
    canvas = (noise.view(np.uint8) ^ 128)[:, rows[:, None], columns]
    planes = [
        np.asarray(Image.fromarray(plane).resize((width, height), FILTER)) for plane in canvas
    ]
    return (np.stack(planes) ^ 128).view(np.int8)


def view(pixels: np.ndarray, size: int) -> np.ndarray:
    """What decode(…, size) shows of a picture uint8 [H,W,C]: uint8 [size,size,C]."""
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    return np.asarray(fit(picture, size)).reshape(size, size, -1)


def original(path: Path, seen: np.ndarray) -> np.ndarray:
    """A picture decoded again, upright and at its own size, uint8 [H,W,C].

    `seen` uint8 [S,S,C] is its view that the noise was made for. Raises DataError, naming the file,
    where it has changed since or is gone.
    """
    again = "restore it, and the same command goes on"
    try:
        pixels, _ = decode(path)
    except PictureError as error:
        raise DataError(f"{path}: {error}; it was there when the run began: {again}") from error
    channels = seen.shape[2]
    if pixels.shape[2] > channels or not (view(pixels, len(seen)) == seen).all():
        raise DataError(f"{path}: has changed since the run began: {again}")
    return pixels.repeat(channels // pixels.shape[2], axis=2)


def files_of(dataset: ImageDataset) -> Path:
    """The folder that the ids of a data set are files in. Raises DataError where there is none."""
    if dataset.root is None:
        raise DataError(
            f"{dataset.source}: pictures at full size come from a folder of files; name that folder"
        )
    return dataset.root


def mean_pixels(dataset: ImageDataset) -> int:
    """About how many pixels a picture has in its file, from some of them."""
    root, step = files_of(dataset), max(1, len(dataset) // _SAMPLE)
    sizes = [dimensions(root / name) for name in dataset.ids[::step]]
    return sum(width * height for width, height in sizes) // max(1, len(sizes))


def _mirrored(side: int, length: int, begin: int) -> np.ndarray:
    """Where each of `length` places looks into `side` values that lie at `begin`, int64 [length]:
    forwards, and mirrored at both ends as often as it takes.
    """
    place = (np.arange(length) - begin) % (2 * side)
    return np.where(place < side, place, 2 * side - 1 - place)
