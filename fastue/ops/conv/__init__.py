"""conv: a convolution with what stands around it in a network, or the gradient of its input.

bfloat16 only: oneDNN's float32 convolutions are near what a CPU can do. No kernel for a GPU: there cuDNN is one, and
nothing calls this.
"""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops.conv import cases
from fastue.ops.conv.reference import conv

NAME = "conv"
DTYPES = (torch.bfloat16, torch.float64)


def check(x, weight, bias, gate, residual, out, stride, padding, transposed, relu):
    for name, t, shape in (("x", x, "BCHW"), ("weight", weight, "OIhw"), ("out", out, "BOHW")):
        _checks.tensor(NAME, name, t, tuple(shape), (x.dtype,) if name != "x" else DTYPES, x.device)
    if 0 in weight.shape:
        raise ValueError(f"{NAME}: weight is empty, {list(weight.shape)}")
    wide, deep = (out, x) if transposed else (x, out)
    channels, outputs = weight.shape[1], weight.shape[0]
    _checks.tensor(NAME, "out" if transposed else "x", wide, ("B", channels, "H", "W"), (x.dtype,), x.device)
    size = _checks.conv_size(NAME, wide.shape[2:], weight.shape[2:], stride, padding)
    _checks.tensor(NAME, "x" if transposed else "out", deep, (len(wide), outputs, *size), (x.dtype,), x.device)
    for name, t, like in (("gate", gate, x), ("residual", residual, out)):
        if t is not None:
            _checks.tensor(NAME, name, t, like.shape, (x.dtype,), x.device)
    for name, t in (("x", x), ("gate", gate), ("residual", residual), ("out", out)):
        if t is not None:
            _checks.interleaved(NAME, name, t)
    if bias is not None:
        wanted = torch.float64 if x.dtype == torch.float64 else torch.float32
        _checks.tensor(NAME, "bias", bias, (out.shape[1],), (wanted,), x.device)


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
