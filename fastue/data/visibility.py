"""How visible a change of the pictures is: PSNR, SSIM, and LPIPS where it is at hand.

Noise of one budget may be more or less visible; the budget alone does not say.
"""

import functools
import importlib.util
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastue.core import vision
from fastue.data.keyed import keyed_generator

SAMPLE = 64  # pictures that are measured, at most
_WINDOW = 7  # side of SSIM's window
_LPIPS_SIDE = 32  # of the smallest pictures that LPIPS' network takes
_LPIPS_WEIGHTS = "alexnet-owt-7be5be79.pth"  # as torchvision keeps them, once it has them


def sample(n: int, seed: int) -> Tensor:
    """Rows of the pictures to measure, int64."""
    order = keyed_generator(seed, "visibility").permutation(n)
    return torch.from_numpy(np.sort(order[:SAMPLE]))


def measure(clean: Tensor, protected: Tensor) -> dict[str, float | None]:
    """All measures of uint8 pictures [N,C,H,W]; None where one says nothing."""
    values = {
        "psnr_db": psnr(clean, protected),
        "ssim": ssim(clean, protected),
        "lpips": lpips(clean, protected),
    }
    return {
        name: None if value is None or math.isinf(value) else round(value, 4)
        for name, value in values.items()
    }


def text(values: dict[str, float | None]) -> str:
    """For people, in one line."""
    formats = {"psnr_db": "PSNR {:.1f} dB", "ssim": "SSIM {:.3f}", "lpips": "LPIPS {:.3f}"}
    known = {name: values[name] for name in formats if values.get(name) is not None}
    parts = [formats[name].format(value) for name, value in known.items()]
    return "visibility: " + (", ".join(parts) or "not measured")


def psnr(clean: Tensor, protected: Tensor) -> float:
    """Peak signal to noise ratio over all values, in dB; infinite where nothing is changed."""
    error = float((clean.cpu().double() - protected.cpu().double()).square().mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(clean: Tensor, protected: Tensor) -> float | None:
    """Structural similarity (Wang et al. 2004), mean over pictures and channels: windows of 7 x 7,
    equal weights, unbiased variances. None for pictures smaller than a window.
    """
    from scipy.ndimage import uniform_filter

    if min(clean.shape[2:]) < _WINDOW:
        return None
    x, y = (pictures.cpu().numpy().astype(np.float64) for pictures in (clean, protected))
    mean = functools.partial(uniform_filter, size=(1, 1, _WINDOW, _WINDOW))
    mx, my = mean(x), mean(y)
    unbiased = _WINDOW**2 / (_WINDOW**2 - 1)
    vx, vy, vxy = (
        unbiased * (mean(a * b) - ma * mb)
        for a, b, ma, mb in ((x, x, mx, mx), (y, y, my, my), (x, y, mx, my))
    )
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = ((2 * mx * my + c1) * (2 * vxy + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    inner = slice(_WINDOW // 2, -(_WINDOW // 2))  # where no window reaches beyond the picture
    return float(value[:, :, inner, inner].mean())


def lpips(clean: Tensor, protected: Tensor) -> float | None:
    """Learned perceptual similarity (Zhang et al. 2018), mean over pictures; None where the package
    `lpips` or its network's weights are not on this machine: nothing is ever downloaded.
    """
    weights = Path(torch.hub.get_dir()) / "checkpoints" / _LPIPS_WEIGHTS
    if not weights.exists() or min(clean.shape[2:]) < _LPIPS_SIDE:
        return None
    if any(importlib.util.find_spec(name) is None for name in ("lpips", "torchvision")):
        return None
    vision.prepare()
    try:
        network = importlib.import_module("lpips").LPIPS(net="alex", verbose=False)
    except (ImportError, OSError, RuntimeError):  # a broken package is no reason to end a run
        return None
    x, y = (
        pictures.cpu().float().div(255).expand(-1, 3, -1, -1) for pictures in (clean, protected)
    )
    with torch.no_grad():
        return float(network(x, y, normalize=True).mean())
