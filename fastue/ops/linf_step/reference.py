"""linf_step in plain PyTorch: the definition."""

import torch

from fastue.ops import _checks, _grain, _keyed
from fastue.ops._pixels import normalised, unit_pixels


def linf_step(
    noise, grad, x, index, step, eps, ascend, scale, mask, out, mean, std,
    ids, seed, epoch, pad, flip, grain,
):  # fmt: skip
    """n = clamp(clamp(n -/+ step*sign(g), -eps, eps), -x/255, 1 - x/255) on n = noise[index]; see
    fastue.ops."""
    _checks.rows("linf_step", "index", index, len(noise))
    work = torch.float64 if noise.dtype == torch.float64 else torch.float32
    crop = (ids, seed, epoch, pad, flip)
    n = stepped(noise, grad, x, index, step, eps, ascend, scale, crop, grain, work)
    if mask is not None:
        n = torch.where(mask, n, 0)
    if noise.dtype == torch.int8:
        stored = (n * (1 / scale)).round().clamp(-127, 127)  # to nearest, ties to even
        noise[index] = stored.to(torch.int8)
        n = stored * scale
    else:
        noise[index] = n
    if out is not None:
        picture = unit_pixels(x, work) + _grain.spread(n, grain, *x.shape[2:])
        out.copy_(normalised(_keyed.cropped(picture.clamp(0, 1), *crop), mean, std))


def stepped(noise, grad, x, index, step, eps, ascend, scale, crop, grain, work):
    """The noise after the step, in the dtype `work`, before a mask and before an int8 bank rounds
    it."""
    n = noise[index].to(work)
    if noise.dtype == torch.int8:
        n = n * scale
    grad = _grain.block_sum(_keyed.uncropped(grad.to(work), *crop), grain)
    sign = (grad > 0).to(work) - (grad < 0).to(work)  # a NaN moves nothing
    n = n + step * sign if ascend else n - step * sign
    pixel = unit_pixels(x, work)
    darker, brighter = (_grain.block_most(room, grain) for room in (pixel, 1 - pixel))
    return n.clamp(-eps, eps).clamp(-darker, brighter)
