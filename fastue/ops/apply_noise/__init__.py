"""apply_noise: uint8 pictures + noise rows -> model input, in one pass."""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops.apply_noise import cases
from fastue.ops.apply_noise.reference import apply_noise

NAME = "apply_noise"


def check(x, noise, index, out, mean, std, scale, ids, seed, epoch, pad, flip):
    _checks.tensor(NAME, "x", x, ("B", "C", "H", "W"), (torch.uint8,), x.device)
    b, c, h, w = x.shape
    _checks.channels(NAME, c, mean, std)
    _checks.tensor(NAME, "noise", noise, ("M", c, h, w), (torch.float32, torch.int8, torch.float64), x.device)
    _checks.tensor(NAME, "index", index, (b,), (torch.int64,), x.device)
    _checks.tensor(NAME, "out", out, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)
    _checks.scale(NAME, noise, scale)
    if ids is not None:
        _checks.tensor(NAME, "ids", ids, (b,), (torch.int64,), x.device)
    if not 0 <= pad < 2**15:
        raise ValueError(f"{NAME}: pad must be between 0 and 32767 pixels, got {pad}")


def traffic(x, noise, index, out, *_):
    """Bytes: pictures and noise read, result written, once each."""
    return x.nbytes + x.numel() * noise.element_size() + out.nbytes


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor x, Tensor noise, Tensor index, Tensor(a!) out, float[] mean, float[] std, float scale,"
        " Tensor? ids, int seed, int epoch, int pad, bool flip) -> ()",
        reference=apply_noise,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        atol=2e-7,  # one rounding of a value near 1; mean and std are applied after it and scale it with the value
        bitwise=True,
        backends=(opspec.cuda(opspec.FLOATS), opspec.triton(opspec.FLOATS), opspec.cpp(opspec.FLOATS)),
    )
)
