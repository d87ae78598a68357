"""Grayscale (Liu et al. 2023, Image Shortcut Squeezing): luma in all channels, training side only.

Noise that tells the classes apart by colour is gone with it. Test pictures keep their colour, as
published.
"""

import torch
from torch import Tensor

from fastue.countermeasures.base import Countermeasure

# ITU-R 601-2 in 16-bit fixed point, as Pillow's convert("L"): the weights add up to 2**16.
RED, GREEN, BLUE = 19595, 38470, 7471


def grayscale(images: Tensor, labels: Tensor | None, seed: int) -> Tensor:
    """images uint8 [N,C,H,W] -> luma, the same in every channel. One channel stays as it is."""
    if images.shape[1] == 1:
        return images
    # Per channel: an int32 copy of a whole data set would be four times its size, three times over.
    luma = torch.full_like(images[:, :1], 0, dtype=torch.int32) + (1 << 15)
    for channel, weight in enumerate((RED, GREEN, BLUE)):
        luma += images[:, channel : channel + 1].to(torch.int32) * weight
    return (luma >> 16).to(torch.uint8).expand_as(images)


COUNTERMEASURE = Countermeasure("grayscale", pictures=grayscale)
