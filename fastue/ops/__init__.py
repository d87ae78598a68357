"""The ops, for people: shapes, defaults, and the buffers an op writes. Methods call these and name no backend.

Importing this module registers `torch.ops.fastue.*`; it loads neither Triton nor the compiled library.

Layouts: every picture-shaped tensor may be contiguous or channels_last, each on its own; when all have the same layout
nothing is rearranged. Banks and outputs of any other layout are an error, inputs of any other layout are copied.
"""

from collections.abc import Sequence

import torch

from fastue.core.opspec import BackendError, use_backend
from fastue.ops import apply_noise as _apply_noise
from fastue.ops import class_step as _class_step
from fastue.ops import l2_step as _l2_step
from fastue.ops import linf_step as _linf_step
from fastue.ops._checks import is_dense

__all__ = ["BackendError", "apply_noise", "class_step", "l2_step", "linf_step", "use_backend"]

_ROOMS = (_apply_noise, _class_step, _l2_step, _linf_step)


def apply_noise(
    x: torch.Tensor,
    noise: torch.Tensor,
    index: torch.Tensor,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    scale: float = 1.0,
    ids: torch.Tensor | None = None,
    seed: int = 0,
    epoch: int = 0,
    pad: int = 0,
    flip: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Model input (clamp(x/255 + noise[index], 0, 1) - mean) / std, float [B, C, H, W].

    x        uint8 [B, C, H, W], C = 1 or 3
    noise    bank [M, C, H, W]: float32 in pixel units (8/255), or int8 with `scale` pixel units for each integer
             (eps/127 for the compact state, 1/255 for final noise)
    index    int64 [B], row of the bank for each picture: a sample's row or its class; repeats are fine
    mean, std  one number a channel, or None for pixels in [0, 1]
    dtype, channels_last  of the result: float32, bfloat16 or float16
    ids      int64 [B], stable sample ids: also crop from a border of `pad` black pixels and (flip) mirror half of the
             pictures, drawn from (seed, epoch, id) alone. The noise moves with its picture.
    out      [B, C, H, W] to write instead of a new tensor; its dtype and layout win
    Not differentiable: take the gradient with respect to the result. Errors: ValueError, TypeError, IndexError
    (RuntimeError from compiled code) for wrong shapes, dtypes and rows; on a GPU a row out of range gives NaN.
    """
    if out is None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=layout)
    ids = ids if ids is None else ids.contiguous()
    torch.ops.fastue.apply_noise(
        _dense(x), noise.detach(), index.contiguous(), out.detach(), _numbers(mean), _numbers(std), scale,
        ids, seed, epoch, pad, flip,
    )  # fmt: skip
    return out


def linf_step(
    noise: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor,
    *,
    step: float,
    eps: float,
    ascend: bool = False,
    scale: float = 1.0,
    mask: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """One signed-gradient step on noise[index], in place, kept within the budget and within valid pixels:

        n = clamp(n - step*sign(grad), -eps, eps);  n = clamp(n, -x/255, 1 - x/255)        (ascend: + step*sign)

    noise    bank [M, C, H, W], float32 in pixel units or int8 with `scale` (see apply_noise); an int8 bank stores the
             float32 result rounded to the nearest multiple of scale, ties to even, and is stepped from what it stores
    grad     [B, C, H, W] float32, bfloat16 or float16; zero and NaN move nothing
    x        uint8 [B, C, H, W];  index  int64 [B], rows of the bank, each at most once
    step, eps  pixel units
    mask     bool [B, 1, H, W] or [1, 1, H, W]: where False the noise becomes 0 (patch noise)
    out      float [B, C, H, W]: also write the next model input there, as apply_noise would, with `mean` and `std`
    std is positive, so the sign of the gradient is the same before and after normalisation.
    Errors as apply_noise; on a GPU rows out of range are skipped.
    """
    mask = mask if mask is None else mask.contiguous()
    torch.ops.fastue.linf_step(
        noise.detach(), _dense(grad.detach()), _dense(x), index.contiguous(), step, eps, ascend, scale,
        mask, out if out is None else out.detach(), _numbers(mean), _numbers(std),
    )  # fmt: skip


def l2_step(
    noise: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    index: torch.Tensor,
    *,
    step: float,
    eps: float,
    ascend: bool = False,
    out: torch.Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """One step along the normalised gradient on noise[index], in place, within an l2 ball and within valid pixels:

        n = n - step*grad/|grad|;  n = n * min(1, eps/|n|);  n = clamp(n, -x/255, 1 - x/255)       (ascend: +)

    |.| is the 2-norm of one sample; step and eps are such norms, in pixel units. A sample whose gradient is zero or
    not finite does not move. noise is float32 [M, C, H, W]; the rest is as in linf_step.
    """
    torch.ops.fastue.l2_step(
        noise.detach(), _dense(grad.detach()), _dense(x), index.contiguous(), step, eps, ascend,
        out if out is None else out.detach(), _numbers(mean), _numbers(std),
    )  # fmt: skip


def class_step(
    noise: torch.Tensor,
    grad: torch.Tensor,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    step: float,
    eps: float,
    ascend: bool = False,
) -> None:
    """The class-wise update, in place on the bank: for each class k in y

        e_i = clamp(clamp(x_i/255 + noise_k, 0, 1) - step*sign(grad_i) - x_i/255, -eps, eps)     (ascend: + step*sign)
        noise_k = clamp(mean of e_i over the batch's samples of class k, -eps, eps)

    noise    float32 [K, C, H, W] in pixel units; classes absent from the batch are not touched
    grad     [B, C, H, W] float32, bfloat16 or float16;  x  uint8 [B, C, H, W];  y  int64 [B] in [0, K)
    Summed in batch order, so the bits do not depend on threads or backend. Errors as linf_step.
    """
    torch.ops.fastue.class_step(
        noise.detach(), _dense(grad.detach()), _dense(x), y.contiguous(), step, eps, ascend
    )  # fmt: skip


def _dense(t: torch.Tensor) -> torch.Tensor:
    return t if is_dense(t) else t.contiguous()


def _numbers(values: Sequence[float] | None) -> list[float]:
    return [] if values is None else [float(v) for v in values]
