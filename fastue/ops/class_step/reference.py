"""class_step in plain PyTorch: the definition."""

import torch

from fastue.ops import _checks
from fastue.ops._pixels import unit_pixels


def class_step(noise, grad, x, y, step, eps, ascend):
    """noise[k] = clamp(mean of the batch's stepped noises of class k, -eps, eps); see
    fastue.ops.class_step."""
    _checks.rows("class_step", "y", y, len(noise))
    if y.numel() == 0:
        return
    sign = (grad > 0).to(noise.dtype) - (grad < 0).to(noise.dtype)
    move = step * sign if ascend else -step * sign
    pixel = unit_pixels(x, noise.dtype)
    stepped = ((pixel + noise[y]).clamp(0, 1) + move - pixel).clamp(-eps, eps)
    total = torch.zeros_like(noise)
    for i, k in enumerate(y.tolist()):  # one by one, in batch order: the same bits everywhere
        total[k] += stepped[i]
    count = torch.bincount(y, minlength=len(noise))
    present = count > 0
    noise[present] = (total[present] / count[present].view(-1, 1, 1, 1)).clamp(-eps, eps)
