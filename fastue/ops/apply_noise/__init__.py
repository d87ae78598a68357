"""apply_noise: uint8 pictures + noise rows -> model input, in one pass."""

from collections.abc import Sequence

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops._arguments import dense, numbers, plain
from fastue.ops.apply_noise import cases, reference

NAME = "apply_noise"


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
    grain: int = 1,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Model input (clamp(x/255 + noise[index], 0, 1) - mean) / std, float [B, C, H, W].

    x        uint8 [B, C, H, W], C = 1 or 3
    noise    bank [M, C, h, w] with h = ceil(H/grain), w = ceil(W/grain), each value shown on
             grain x grain pixels: float32 in pixel units (8/255), or int8 with `scale` pixel units for
             each integer (eps/127 for the compact state, 1/255 for final noise)
    index    int64 [B], row of the bank for each picture: a sample's row or its class; repeats are
             fine
    mean, std  one number a channel, or None for pixels in [0, 1]
    dtype, channels_last  of the result: float32, bfloat16 or float16
    ids      int64 [B], stable sample ids: also crop from a border of `pad` black pixels and (flip)
             mirror half of the pictures, drawn from (seed, epoch, id) alone. The noise moves with
             its picture.
    out      [B, C, H, W] to write instead of a new tensor; its dtype and layout win
    Not differentiable: take the gradient with respect to the result. Errors: ValueError, TypeError,
    IndexError (RuntimeError from compiled code) for wrong shapes, dtypes and rows; on a GPU a row
    out of range gives NaN.
    """
    if out is None:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        out = torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=layout)
    ids = ids if ids is None else ids.contiguous()
    OP.call(
        dense(x), plain(noise), index.contiguous(), plain(out), numbers(mean), numbers(std), scale,
        ids, seed, epoch, pad, flip, grain,
    )  # fmt: skip
    return out


def check(x, noise, index, out, mean, std, scale, ids, seed, epoch, pad, flip, grain):
    _checks.tensor(NAME, "x", x, ("B", "C", "H", "W"), (torch.uint8,), x.device)
    b, c, h, w = x.shape
    _checks.channels(NAME, c, mean, std)
    _checks.bank(NAME, "M", noise, x, grain, (torch.float32, torch.int8, torch.float64))
    _checks.tensor(NAME, "index", index, (b,), (torch.int64,), x.device)
    _checks.tensor(NAME, "out", out, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)
    _checks.scale(NAME, noise, scale)
    _checks.crop(NAME, ids, x, pad)


def traffic(x, noise, index, out, *_):
    """Bytes: pictures and noise read, result written, once each."""
    return x.nbytes + len(x) * noise[0].nbytes + out.nbytes


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor x, Tensor noise, Tensor index, Tensor(a!) out, float[] mean, float[] std, float scale,"
        " Tensor? ids, int seed, int epoch, int pad, bool flip, int grain) -> ()",
        reference=reference.apply_noise,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        # one rounding of a value near 1; mean and std are applied after it and scale it with the
        # value
        atol=2e-7,
        bitwise=True,
        backends=(
            opspec.cuda(opspec.FLOATS),
            opspec.triton(opspec.FLOATS),
            opspec.cpp(opspec.FLOATS),
        ),
    )
)
