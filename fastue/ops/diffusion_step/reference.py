"""diffusion_step in plain PyTorch: the definition."""

import math

from fastue.ops import _keyed
from fastue.ops._pixels import unit_pixels


def diffusion_step(
    x, eps, y, grad, ids, alpha_bar, c0, cx, pull, noisy, push, sigma, seed, iteration, t
):  # fmt: skip
    """x = c0 x0 + cx x + guidance + sigma z + push grad; see fastue.ops.diffusion_step."""

    def normals(purpose):
        return _keyed.picture_normals(x, ids, seed, purpose, iteration, t)

    aim = None if y is None else unit_pixels(y, x.dtype) * 2 - 1
    mean = cx * x
    if eps is not None:
        a, b = math.sqrt(1 / alpha_bar), math.sqrt(1 / alpha_bar - 1)
        x0 = (a * x - b * eps.to(x.dtype)).clamp(-1, 1)
        if aim is not None and not noisy:
            x0 = x0 + pull * (aim - x0)
        mean = c0 * x0 + mean
    if noisy:
        keep, spread = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        copy = keep * aim + spread * normals(_keyed.DIFFUSION_COPY)
        mean = mean + pull * (copy - x)
    if sigma > 0:
        purpose = _keyed.DIFFUSION_START if eps is None else _keyed.DIFFUSION_STEP
        mean = mean + sigma * normals(purpose)
    if grad is not None:
        mean = mean + push * grad
    x.copy_(mean)
