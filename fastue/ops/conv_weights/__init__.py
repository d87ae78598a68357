"""conv_weights: the gradient of a convolution's weight. No kernel for a GPU, for the reason conv
has none."""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops._arguments import interleaved, plain
from fastue.ops.conv_weights import cases, reference

NAME = "conv_weights"


def conv_weights(
    x: torch.Tensor, grad: torch.Tensor, out: torch.Tensor, stride: int = 1, padding: int = 0
) -> torch.Tensor:
    """out = the gradient of the weight of conv2d(x, weight, stride, padding) whose output has the
    gradient `grad`.

    x     bfloat16 [B, C, H, W];  grad  bfloat16 [B, O, H', W'], both best channels_last
    out   float32 [O, C, h, w], any of the two layouts, written and returned; its h and w are the
          kernel's
    Sums are float32, their order does not depend on the number of threads. Errors as for conv.
    """
    OP.call(interleaved(x), interleaved(grad), plain(out), stride, padding)
    return out


def check(x, grad, out, stride, padding):
    _checks.tensor(NAME, "x", x, tuple("BCHW"), (torch.bfloat16, torch.float64), x.device)
    wanted = torch.float64 if x.dtype == torch.float64 else torch.float32
    _checks.tensor(NAME, "out", out, ("O", x.shape[1], "h", "w"), (wanted,), x.device)
    size = _checks.conv_size(NAME, x.shape[2:], out.shape[2:], stride, padding)
    _checks.tensor(NAME, "grad", grad, (len(x), len(out), *size), (x.dtype,), x.device)
    _checks.interleaved(NAME, "x", x)
    _checks.interleaved(NAME, "grad", grad)


def traffic(x, grad, out, *_):
    """Bytes: each tensor once."""
    return x.nbytes + grad.nbytes + out.nbytes


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor x, Tensor grad, Tensor(a!) out, int stride, int padding) -> ()",
        reference=reference.conv_weights,
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
