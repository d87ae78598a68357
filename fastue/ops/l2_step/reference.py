"""l2_step in plain PyTorch: the definition."""

import torch

from fastue.ops import _checks
from fastue.ops._pixels import normalised, unit_pixels


def l2_step(noise, grad, x, index, step, eps, ascend, out, mean, std):
    """n = n -/+ step*g/|g|, shrunk to |n| <= eps, clamped to valid pixels; |.| is a sample's 2-norm; see fastue.ops."""
    _checks.rows("l2_step", "index", index, len(noise))
    work = noise.dtype
    g = grad.to(work)
    length = grad.double().pow(2).sum((1, 2, 3), keepdim=True).sqrt()
    usable = (length > 0) & length.isfinite()  # no direction, no move
    factor = torch.where(usable, (step if ascend else -step) / length, 0.0).to(work)
    n = noise[index] + torch.where(usable, g * factor, 0.0)
    length = n.double().pow(2).sum((1, 2, 3), keepdim=True).sqrt()
    n = n * torch.where(length > eps, eps / length, 1.0).to(work)
    pixel = unit_pixels(x, work)
    n = n.clamp(-pixel, 1 - pixel)
    noise[index] = n
    if out is not None:
        out.copy_(normalised((pixel + n).clamp(0, 1), mean, std))
