"""l2_step: one step along the normalised gradient, projected to an l2 ball a sample and to valid pixels, in place."""

import math

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops.l2_step import cases
from fastue.ops.l2_step.reference import l2_step

NAME = "l2_step"


def check(noise, grad, x, index, step, eps, ascend, out, mean, std):
    _checks.tensor(NAME, "x", x, ("B", "C", "H", "W"), (torch.uint8,), x.device)
    b, c, h, w = x.shape
    _checks.channels(NAME, c, mean, std)
    _checks.tensor(NAME, "noise", noise, ("M", c, h, w), (torch.float32, torch.float64), x.device)
    _checks.tensor(NAME, "grad", grad, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)
    _checks.tensor(NAME, "index", index, (b,), (torch.int64,), x.device)
    if not (0 <= step < math.inf and 0 <= eps < math.inf):
        raise ValueError(f"{NAME}: step and eps are finite 2-norms of a sample's noise, got {step} and {eps}")
    if out is not None:
        _checks.tensor(NAME, "out", out, (b, c, h, w), _checks.FLOAT_DTYPES, x.device)


def traffic(noise, grad, x, index, step, eps, ascend, out, mean, std):
    """Bytes: gradient and pictures read, noise read and written, next input where there is one."""
    return grad.nbytes + x.nbytes + 2 * x.numel() * noise.element_size() + (0 if out is None else out.nbytes)


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor(a!) noise, Tensor grad, Tensor x, Tensor index, float step, float eps, bool ascend,"
        " Tensor(b!)? out, float[] mean, float[] std) -> ()",
        reference=l2_step,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        atol=2e-7,  # one rounding of a value near 1; the norms are summed in float64, in any order
        backends=(opspec.cuda(opspec.FLOATS), opspec.triton(opspec.FLOATS), opspec.cpp(opspec.FLOATS)),
    )
)
