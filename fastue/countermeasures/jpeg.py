"""JPEG (Liu et al. 2023, Image Shortcut Squeezing): quality 10, 4:2:0, training side only.

Coarse quantisation removes noise of high frequency; clean pictures lose a few points too. jpeg-30
has quality 30; 1 to 95 can be had.
"""

import functools
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastue.countermeasures.base import Countermeasure, number
from fastue.data.parallel import map_blocks

QUALITY = 10


def jpeg(images: Tensor, labels: Tensor | None, seed: int, *, quality: int = QUALITY) -> Tensor:
    """images uint8 [N,C,H,W] -> each encoded and decoded again, by threads."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.empty(pixels.shape, np.uint8)

    def work(rows: range) -> None:
        for row in rows:
            decoded[row] = reencoded(pixels[row], quality)

    for _ in map_blocks(work, len(pixels)):
        pass
    return torch.from_numpy(decoded).permute(0, 3, 1, 2)


def reencoded(pixels: np.ndarray, quality: int) -> np.ndarray:
    """uint8 [H,W,1 or 3] through a JPEG file in memory."""
    file = io.BytesIO()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return np.asarray(Image.open(file)).reshape(pixels.shape)


@functools.cache  # of one strength there is one object: equal names, equal countermeasures
def at(quality: int) -> Countermeasure:
    name = "jpeg" if quality == QUALITY else f"jpeg-{quality}"
    return Countermeasure(name, pictures=functools.partial(jpeg, quality=quality))


def variant(strength: str) -> Countermeasure:
    return at(number(strength, 1, 95))


COUNTERMEASURE = at(QUALITY)
