"""conv: a convolution with what stands around it in a network, or the gradient of its input.

bfloat16 only; for float32 see conv3x3. No kernel for a GPU: there cuDNN is one, and nothing calls this.
"""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops.conv import cases
from fastue.ops.conv.reference import conv

NAME = "conv"
DTYPES = (torch.bfloat16, torch.float64)


def check(x, weight, bias, gate, residual, out, stride, padding, transposed, relu):
    _checks.convolution(NAME, DTYPES, x, weight, bias, gate, residual, out, stride, padding, transposed)


def traffic(x, weight, bias, gate, residual, out, *_):
    """Bytes: each tensor once."""
    return sum(t.nbytes for t in (x, weight, bias, gate, residual, out) if t is not None)


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor x, Tensor weight, Tensor? bias, Tensor? gate, Tensor? residual, Tensor(a!) out, int stride,"
        " int padding, bool transposed, bool relu) -> ()",
        reference=conv,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        dtypes=(torch.bfloat16,),
        atol=2e-6,
        backends=(opspec.cpp(frozenset({torch.float32, torch.bfloat16})),),
    )
)
