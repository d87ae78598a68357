"""What the definitions share: pixels in [0, 1], and a model's normalisation of them."""

from collections.abc import Sequence

import torch


def unit_pixels(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x/255 in `dtype`. By a tensor: for a number CUDA multiplies by 1/255, which rounds
    otherwise."""
    return x.to(dtype) / torch.full((), 255.0, dtype=dtype, device=x.device)


def normalised(picture: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(picture - mean) * (1/std), one number a channel of picture [B, C, H, W]; unchanged where
    mean is empty."""
    if not mean:
        return picture
    factors = [[*mean], [1 / s for s in std]]
    shift, factor = torch.tensor(factors, dtype=picture.dtype, device=picture.device)[
        :, None, :, None, None
    ]
    return (picture - shift) * factor
