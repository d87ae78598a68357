"""apply_noise in plain PyTorch: the definition."""

import torch

from fastue.ops import _checks, _grain, _keyed
from fastue.ops._pixels import normalised, unit_pixels


def apply_noise(x, noise, index, out, mean, std, scale, ids, seed, epoch, pad, flip, grain):
    """out[i] = crop_flip((clamp(x[i]/255 + scale*spread(noise[index[i]]), 0, 1) - mean) / std); see
    fastue.ops.apply_noise."""
    _checks.rows("apply_noise", "index", index, len(noise))
    work = torch.float64 if torch.float64 in (noise.dtype, out.dtype) else torch.float32
    rows = noise[index].to(work)
    if noise.dtype == torch.int8:
        rows = rows * scale
    picture = (unit_pixels(x, work) + _grain.spread(rows, grain, *x.shape[2:])).clamp(0, 1)
    picture = _keyed.cropped(picture, ids, seed, epoch, pad, flip)
    out.copy_(normalised(picture, mean, std))
