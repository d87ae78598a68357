"""The ops, for people: shapes, defaults, and the buffers an op writes. Methods call these and name no backend.

Importing this module registers `torch.ops.fastue.*`; it loads neither Triton nor the compiled library.

Layouts: every picture-shaped tensor may be contiguous or channels_last, each on its own; when all have the same layout
nothing is rearranged. Banks and outputs of any other layout are an error, inputs of any other layout are copied.
"""

from collections.abc import Sequence

import torch

from fastue.core import opspec
from fastue.core.opspec import BackendError, use_backend
from fastue.ops import _checks
from fastue.ops import apply_noise as _apply_noise
from fastue.ops import class_step as _class_step
from fastue.ops import conv as _conv
from fastue.ops import conv3x3 as _conv3x3
from fastue.ops import conv_weights as _conv_weights
from fastue.ops import count_correct as _count_correct
from fastue.ops import l2_step as _l2_step
from fastue.ops import linf_step as _linf_step
from fastue.ops import weight_noise as _weight_noise
from fastue.ops._checks import is_dense
from fastue.ops._keyed import (
    WEIGHTS_ATTACK,
    WEIGHTS_CERTIFY,
    WEIGHTS_NOISE_STEP,
    WEIGHTS_STATISTICS,
    WEIGHTS_TRAIN,
)

__all__ = [
    "WEIGHTS_ATTACK", "WEIGHTS_CERTIFY", "WEIGHTS_NOISE_STEP", "WEIGHTS_STATISTICS", "WEIGHTS_TRAIN", "BackendError",
    "apply_noise", "class_step", "conv", "conv3x3", "conv_weights", "count_correct", "has_kernel", "l2_step",
    "linf_step", "use_backend", "weight_noise",
]  # fmt: skip

_ROOMS = (
    _apply_noise, _class_step, _conv, _conv3x3, _conv_weights, _count_correct, _l2_step, _linf_step, _weight_noise
)  # fmt: skip


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
    _apply_noise.OP.call(
        _dense(x), _plain(noise), index.contiguous(), _plain(out), _numbers(mean), _numbers(std), scale,
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
    _linf_step.OP.call(
        _plain(noise), _dense(grad), _dense(x), index.contiguous(), step, eps, ascend, scale,
        mask, _plain(out), _numbers(mean), _numbers(std),
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
    _l2_step.OP.call(
        _plain(noise), _dense(grad), _dense(x), index.contiguous(), step, eps, ascend,
        _plain(out), _numbers(mean), _numbers(std),
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
    _class_step.OP.call(
        _plain(noise), _dense(grad), _dense(x), y.contiguous(), step, eps, ascend
    )  # fmt: skip


def conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
    relu: bool = False,
    size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """relu(conv2d(x', weight) + bias + residual), x' = x where not gate <= 0, else 0.  With `transposed` the gradient:

    conv_transpose2d, which turns the gradient of a convolution's output into that of its input. `gate` is then the
    convolution's output after its ReLU: the ReLU's own backward.

    x         bfloat16 [B, C, H, W], best channels_last, as are gate, residual and out
    weight    [O, C, h, w], with `transposed` [C, O, h, w]: in both cases the convolution's own; bfloat16
    bias      float32 [O];  gate  as x;  residual  as out
    out       [B, O, H', W'] to write instead of a new tensor
    stride, padding  the convolution's, the same in both directions
    size      with `transposed` and without `out`: (H', W'), the size of the convolution's input
    Sums are float32, rounded once; kernels may take numbers below 1e-38 for zero. Not differentiable.
    Errors: ValueError, TypeError (RuntimeError from compiled code) for wrong shapes, dtypes and layouts.
    """
    if out is None:
        channels = weight.shape[1] if transposed else weight.shape[0]
        if not transposed:
            size = tuple(_checks.conv_size("conv", x.shape[2:], weight.shape[2:], stride, padding))
        if size is None:
            raise ValueError("conv: transposed needs out or size, the height and width of the convolution's input")
        out = torch.empty((len(x), channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _conv.OP.call(
        _interleaved(x), _plain(weight), _plain(bias), _interleaved(gate),
        _interleaved(residual), _plain(out), stride, padding, transposed, relu,
    )  # fmt: skip
    return out


def conv3x3(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    transposed: bool = False,
    relu: bool = False,
) -> torch.Tensor:
    """`conv` in float32 for the commonest convolution: 3x3, stride 1, padding 1. Arguments and errors as there.

    x         float32 [B, C, H, W], best channels_last, as are gate, residual and out [B, O, H, W]
    weight    float32 [O, C, 3, 3], with `transposed` [C, O, 3, 3]: in both cases the convolution's own
    The kernel is Winograd's F(4x4, 3x3) (Lavin & Gray 2016): a rounding error of at most 2^-21 * max |x| * sum |weight|
    in our tests, and a NaN or infinity reaches the whole of its 4x4 tile. Not differentiable.
    """
    if out is None:
        shape = len(x), weight.shape[1] if transposed else weight.shape[0], *x.shape[2:]
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _conv3x3.OP.call(
        _interleaved(x), _plain(weight), _plain(bias), _interleaved(gate),
        _interleaved(residual), _plain(out), transposed, relu,
    )  # fmt: skip
    return out


def conv_weights(
    x: torch.Tensor, grad: torch.Tensor, out: torch.Tensor, stride: int = 1, padding: int = 0
) -> torch.Tensor:
    """out = the gradient of the weight of conv2d(x, weight, stride, padding) whose output has the gradient `grad`.

    x     bfloat16 [B, C, H, W];  grad  bfloat16 [B, O, H', W'], both best channels_last
    out   float32 [O, C, h, w], any of the two layouts, written and returned; its h and w are the kernel's
    Sums are float32, their order does not depend on the number of threads. Errors as for conv.
    """
    _conv_weights.OP.call(_interleaved(x), _interleaved(grad), _plain(out), stride, padding)
    return out


def has_kernel(name: str, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the op of that name has a kernel there for this dtype, and the user has not asked for another backend."""
    op, wanted, probe = opspec.registry()[name], opspec.chosen_backend(), torch.empty(0, dtype=dtype, device=device)
    return dtype in op.dtypes and any(wanted in ("auto", b.name) and not op.why_not(b, (probe,)) for b in op.backends)


def weight_noise(
    base: torch.Tensor,
    table: torch.Tensor,
    draws: torch.Tensor,
    *,
    sigma: float,
    seed: int,
    purpose: int,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gaussian noise on all parameters of a model, several draws in one launch: out[k] = base + sigma * z(draws[k])

    base     float32 [D]: the parameters one after another, each padded to a multiple of 64 elements, which is a block
    table    int64 [D/64]: for each block its parameter << 32 | its number within the parameter, below 2^28
    draws    int64 [K], numbers of the draws, each in [0, 2^32)
    sigma    standard deviation, >= 0; with 0 the result is base
    seed     64 bits;  purpose  in [0, 2^32), one of WEIGHTS_*: keeps the draws of different uses apart
    dtype    of the result, float32 or bfloat16; the sum is float32 and rounded once, so that bfloat16 weights are a
             function of weights with Gaussian noise
    out      [K, D], contiguous, to write instead of a new tensor; its dtype wins
    z is standard normal (tail to |z| = 7.5) and depends on (seed, purpose, draw, parameter, element) alone: a draw can
    be made again at any time, in any company, with the same bits on every backend but the reference, which is the
    exact definition and differs by rounding. Padding gets noise too. Not differentiable.
    Errors: ValueError, TypeError, IndexError (RuntimeError from compiled code) for wrong shapes, dtypes and numbers; on
    a GPU draws and blocks out of range wrap around.
    """
    if out is None:
        out = torch.empty((len(draws), len(base)), dtype=dtype, device=base.device)
    _weight_noise.OP.call(_plain(base), table, draws, _plain(out), sigma, seed, purpose)
    return out


def count_correct(logits: torch.Tensor, y: torch.Tensor, counts: torch.Tensor, slot: int = 0) -> None:
    """counts[slot] += number of rows of logits whose largest entry is that of y, in place, without waiting for a GPU.

    logits   [B, K] float32, bfloat16 or float16
    y        int64 [B]; a class outside of [0, K) is never right
    counts   int64 [S], contiguous, on the device of logits;  slot  in [0, S)
    As torch.argmax has it, of equal entries the first is the largest, and NaN is larger than any number.
    Errors: ValueError, TypeError, IndexError for wrong shapes, dtypes and slots.
    """
    _count_correct.OP.call(_plain(logits).contiguous(), y.contiguous(), counts, slot)


def _plain(t: torch.Tensor | None) -> torch.Tensor | None:
    """Without a gradient: what an op does is not differentiated."""
    return t.detach() if t is not None and t.requires_grad else t


def _dense(t: torch.Tensor) -> torch.Tensor:
    t = _plain(t)
    return t if is_dense(t) else t.contiguous()


def _interleaved(t: torch.Tensor | None) -> torch.Tensor | None:
    return t if t is None else _plain(t).contiguous(memory_format=torch.channels_last)


def _numbers(values: Sequence[float] | None) -> list[float]:
    return [] if values is None else values if type(values) is list else [float(v) for v in values]
