"""What is left of the noise after the pictures are handled as the web handles pictures.

Measured as T(protected) - T(original): what T does to the picture itself is in both and cancels.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from fastue.data import visibility
from fastue.data.dataset import ImageDataset


def _file(kind: str, **options) -> Callable[[Image.Image], Image.Image]:
    def through(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        return Image.open(file)

    return through


def _halved(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    small = picture.resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BICUBIC)
    return small.resize((width, height), Image.Resampling.BICUBIC)


HANDLINGS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "PNG": _file("PNG"),
    **{
        f"JPEG {quality}, {chroma}": _file("JPEG", quality=quality, subsampling=chroma)
        for quality in (95, 75, 50)
        for chroma in ("4:4:4", "4:2:0")
    },
    "half the size and back": _halved,
}


def survival(originals: ImageDataset, protected: ImageDataset) -> list[dict]:
    """One dict for each of HANDLINGS, over a keyed sample of at most 64 pictures:

    handling     its name
    energy       of the noise's energy, the share in what is left along the noise (its projection):
                 1 is all of it, and JPEG may round noise that is one of its waves up to more
    correlation  of what is left with the noise: 1 is the noise itself or a part of it, 0 is
                 something else altogether. None where nothing is left

    Nothing where the pictures do not differ.
    """
    rows = visibility.sample(len(originals), 0)
    clean, written = (data.take(rows).permute(0, 2, 3, 1) for data in (originals, protected))
    clean, written = clean.cpu().numpy(), written.cpu().numpy()
    noise = written.astype(np.float64) - clean
    energy = np.square(noise).sum()
    if not energy:
        return []
    card = []
    for name, handle in HANDLINGS.items():
        left = _handled(written, handle) - _handled(clean, handle)
        along, length = (left * noise).sum(), np.sqrt(np.square(left).sum())
        card.append(
            {
                "handling": name,
                "energy": round(float((along / energy) ** 2), 4),
                "correlation": round(float(along / length / np.sqrt(energy)), 4)
                if length
                else None,
            }
        )
    return card


def _handled(pixels: np.ndarray, handle: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """uint8 [N,H,W,1 or 3] -> float64 of the same shape."""
    grey = pixels.shape[3] == 1
    pictures = (Image.fromarray(one[:, :, 0] if grey else one) for one in pixels)
    return np.stack([np.asarray(handle(one), np.float64) for one in pictures]).reshape(pixels.shape)
