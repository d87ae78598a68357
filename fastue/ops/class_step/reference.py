"""class_step in plain PyTorch: the definition."""

import torch

from fastue.ops import _checks, _grain, _keyed
from fastue.ops._pixels import unit_pixels


def class_step(noise, grad, x, y, step, eps, ascend, ids, seed, epoch, pad, flip, grain):
    """noise[k] = clamp(mean of the batch's stepped noises of class k, -eps, eps); see
    fastue.ops.class_step."""
    _checks.rows("class_step", "y", y, len(noise))
    if y.numel() == 0:
        return
    grad = _keyed.uncropped(grad.to(noise.dtype), ids, seed, epoch, pad, flip)
    grad = _grain.block_sum(grad, grain)
    sign = (grad > 0).to(noise.dtype) - (grad < 0).to(noise.dtype)
    move = _grain.spread(step * sign if ascend else -step * sign, grain, *x.shape[2:])
    pixel, noisy = unit_pixels(x, noise.dtype), _grain.spread(noise[y], grain, *x.shape[2:])
    stepped = ((pixel + noisy).clamp(0, 1) + move - pixel).clamp(-eps, eps)
    stepped = _grain.block_sum(stepped, grain)
    total = torch.zeros_like(noise)
    for i, k in enumerate(y.tolist()):  # one by one, in batch order: the same bits everywhere
        total[k] += stepped[i]
    count = torch.bincount(y, minlength=len(noise))
    present = count > 0
    count = count[present].view(-1, 1, 1, 1) * _grain.block_pixels(pixel, grain)
    noise[present] = (total[present] / count).clamp(-eps, eps)
