"""apply_noise in plain PyTorch: the definition."""

import torch

from fastue.ops import _checks, _keyed
from fastue.ops._pixels import normalised, unit_pixels


def apply_noise(x, noise, index, out, mean, std, scale, ids, seed, epoch, pad, flip):
    """out[i] = crop_flip((clamp(x[i]/255 + scale*noise[index[i]], 0, 1) - mean) / std); see
    fastue.ops.apply_noise."""
    _checks.rows("apply_noise", "index", index, len(noise))
    work = torch.float64 if torch.float64 in (noise.dtype, out.dtype) else torch.float32
    rows = noise[index].to(work)
    if noise.dtype == torch.int8:
        rows = rows * scale
    picture = (unit_pixels(x, work) + rows).clamp(0, 1)
    if ids is not None:
        picture = _keyed.crop_flip(picture, ids, seed, epoch, pad, flip)
    out.copy_(normalised(picture, mean, std))
