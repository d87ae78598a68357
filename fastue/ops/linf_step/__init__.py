"""linf_step: one signed step on noise rows, projected to the budget and to valid pixels, in place, in one pass."""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops.linf_step import cases
from fastue.ops.linf_step.reference import linf_step

NAME = "linf_step"


def check(noise, grad, x, index, step, eps, ascend, scale, mask, out, mean, std):
    _checks.tensor(NAME, "x", x, ("B", "C", "H", "W"), (torch.uint8,), x.device)
    b, c, h, w = x.shape
    _checks.channels(NAME, c, mean, std)
    _checks.tensor(NAME, "noise", noise, ("M", c, h, w), (torch.float32, torch.int8, torch.float64), x.device)
    _checks.tensor(NAME, "grad", grad, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)
    _checks.tensor(NAME, "index", index, (b,), (torch.int64,), x.device)
    _checks.budget(NAME, step, eps)
    _checks.scale(NAME, noise, scale)
    if mask is not None:
        _checks.mask(NAME, mask, b, h, w, x.device)
    if out is not None:
        _checks.tensor(NAME, "out", out, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)


def band(exact, noise, grad, x, index, step, eps, ascend, scale, mask, out, mean, std):
    """An int8 bank rounds to nearest: within 1e-3 of a tie either neighbour is right, and the input made of it."""
    if noise.dtype != torch.int8:
        return None
    n = noise[index].double() * scale
    sign = (grad > 0).double() - (grad < 0).double()
    pixel = x.double() / 255
    n = (n + step * sign if ascend else n - step * sign).clamp(-eps, eps).clamp(-pixel, 1 - pixel) * (1 / scale)
    tie = ((n - n.floor()) - 0.5).abs() < 1e-3
    rows = torch.zeros_like(noise, dtype=torch.bool)
    rows[index] = tie
    return {"noise": (rows, 1.0), "out": (tie, scale / min(std, default=1.0))}


def traffic(noise, grad, x, index, step, eps, ascend, scale, mask, out, mean, std):
    """Bytes: gradient and pictures read, noise read and written, next input and mask where there are any."""
    more = sum(t.nbytes for t in (mask, out) if t is not None)
    return grad.nbytes + x.nbytes + 2 * x.numel() * noise.element_size() + more


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor(a!) noise, Tensor grad, Tensor x, Tensor index, float step, float eps, bool ascend,"
        " float scale, Tensor? mask, Tensor(b!)? out, float[] mean, float[] std) -> ()",
        reference=linf_step,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        band=band,
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        atol=2e-7,  # one rounding of a value near 1
        bitwise=True,
        backends=(opspec.cuda(opspec.FLOATS), opspec.triton(opspec.FLOATS), opspec.cpp(opspec.FLOATS)),
    )
)
