"""linf_step in plain PyTorch: the definition."""

import torch

from fastue.ops import _checks
from fastue.ops._pixels import normalised, unit_pixels


def linf_step(noise, grad, x, index, step, eps, ascend, scale, mask, out, mean, std):
    """n = clamp(clamp(n -/+ step*sign(g), -eps, eps), -x/255, 1 - x/255) on n = noise[index]; see
    fastue.ops."""
    _checks.rows("linf_step", "index", index, len(noise))
    work = torch.float64 if noise.dtype == torch.float64 else torch.float32
    n = noise[index].to(work)
    if noise.dtype == torch.int8:
        n = n * scale
    sign = (grad > 0).to(work) - (grad < 0).to(work)  # a NaN moves nothing
    n = n + step * sign if ascend else n - step * sign
    pixel = unit_pixels(x, work)
    n = n.clamp(-eps, eps).clamp(-pixel, 1 - pixel)
    if mask is not None:
        n = torch.where(mask, n, 0)
    if noise.dtype == torch.int8:
        stored = (n * (1 / scale)).round().clamp(-127, 127)  # to nearest, ties to even
        noise[index] = stored.to(torch.int8)
        n = stored * scale
    else:
        noise[index] = n
    if out is not None:
        out.copy_(normalised((pixel + n).clamp(0, 1), mean, std))
