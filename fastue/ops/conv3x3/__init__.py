"""conv3x3: the 3x3 convolution of stride 1 in float32, by Winograd's F(4x4, 3x3), with a quarter of the products.

The kernel rounds several times more than direct sums do, and hundreds of times less than TF32, which is what GPUs call
float32; `band` is the limit. No kernel for a GPU: there cuDNN is one, and nothing calls this.
"""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops.conv import traffic as conv_traffic
from fastue.ops.conv3x3 import cases
from fastue.ops.conv3x3.reference import conv3x3

NAME = "conv3x3"


def check(x, weight, bias, gate, residual, out, transposed, relu):
    if weight.dim() == 4 and weight.shape[2:] != (3, 3):
        raise ValueError(f"{NAME}: weight must be [O, I, 3, 3], got {list(weight.shape)}")
    dtypes = (torch.float32, torch.float64)
    _checks.convolution(NAME, dtypes, x, weight, bias, gate, residual, out, 1, 1, transposed)


def band(exact, x, weight, bias, gate, residual, out, transposed, relu):
    """The kernel's rounding: four times 2^-23 of the largest output that pixels and weights of this size could give."""
    x, weight = (t.double().nan_to_num(0.0, 0.0, 0.0).abs() for t in (x, weight))
    if x.numel() == 0:
        return {}
    largest = x.amax((1, 2, 3))[:, None] * weight.sum((0 if transposed else 1, 2, 3))
    return {"out": (torch.ones_like(exact["out"], dtype=torch.bool), 2.0**-21 * largest[:, :, None, None])}


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor x, Tensor weight, Tensor? bias, Tensor? gate, Tensor? residual, Tensor(a!) out,"
        " bool transposed, bool relu) -> ()",
        reference=conv3x3,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=conv_traffic,
        band=band,
        atol=1e-6,
        backends=(opspec.cpp(opspec.FLOAT32),),
    )
)
