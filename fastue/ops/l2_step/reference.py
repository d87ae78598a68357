"""l2_step in plain PyTorch: the definition."""

import torch

from fastue.ops import _checks, _grain, _keyed
from fastue.ops._pixels import normalised, unit_pixels


def l2_step(
    noise, grad, x, index, step, eps, ascend, out, mean, std, ids, seed, epoch, pad, flip, grain
):
    """n = n -/+ step*g/|g|, shrunk to |n| <= eps, clamped to valid pixels; |.| is the 2-norm
    of a sample at the size of the picture; see fastue.ops."""
    _checks.rows("l2_step", "index", index, len(noise))
    work = noise.dtype
    crop = (ids, seed, epoch, pad, flip)
    grad = _keyed.uncropped(grad.to(work), *crop)
    pixels = _grain.block_pixels(grad, grain)
    g = _grain.block_sum(grad, grain) / pixels  # the nearest gradient that is even on a block
    length = _length(g, pixels)
    usable = (length > 0) & length.isfinite()  # no direction, no move
    factor = torch.where(usable, (step if ascend else -step) / length, 0.0).to(work)
    n = noise[index] + torch.where(usable, g * factor, 0.0)
    length = _length(n, pixels)
    n = n * torch.where(length > eps, eps / length, 1.0).to(work)
    pixel = unit_pixels(x, work)
    darker, brighter = (_grain.block_most(room, grain) for room in (pixel, 1 - pixel))
    n = n.clamp(-darker, brighter)
    noise[index] = n
    if out is not None:
        picture = pixel + _grain.spread(n, grain, *x.shape[2:])
        out.copy_(normalised(_keyed.cropped(picture.clamp(0, 1), *crop), mean, std))


def _length(n, pixels):
    """2-norm of each sample, float64 [B, 1, 1, 1]; each value counts once a pixel of its block."""
    return (n.double().pow(2) * pixels).sum((1, 2, 3), keepdim=True).sqrt()
