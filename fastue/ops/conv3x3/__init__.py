"""conv3x3: the 3x3 convolution of stride 1 in float32, by Winograd's F(4x4, 3x3), with a quarter of
the products.

The kernel rounds several times more than direct sums do, and hundreds of times less than TF32,
which is what GPUs call float32; `band` is the limit. No kernel for a GPU: there cuDNN is one, and
nothing calls this.
"""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops._arguments import interleaved, plain
from fastue.ops.conv import traffic as conv_traffic
from fastue.ops.conv3x3 import cases, reference

NAME = "conv3x3"


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
    """`conv` in float32 for the commonest convolution: 3x3, stride 1, padding 1. Arguments and
    errors as there.

    x         float32 [B, C, H, W], best channels_last, as are gate, residual and out [B, O, H, W]
    weight    float32 [O, C, 3, 3], with `transposed` [C, O, 3, 3]: in both cases the convolution's
              own
    The kernel is Winograd's F(4x4, 3x3) (Lavin & Gray 2016): a rounding error of at most 2^-21 * max |x| * sum |weight|
    in our tests, and a NaN or infinity reaches the whole of its 4x4 tile. Not differentiable.
    """
    if out is None:
        shape = len(x), weight.shape[1] if transposed else weight.shape[0], *x.shape[2:]
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    OP.call(
        interleaved(x), plain(weight), plain(bias), interleaved(gate),
        interleaved(residual), plain(out), transposed, relu,
    )  # fmt: skip
    return out


def check(x, weight, bias, gate, residual, out, transposed, relu):
    if weight.dim() == 4 and weight.shape[2:] != (3, 3):
        raise ValueError(f"{NAME}: weight must be [O, I, 3, 3], got {list(weight.shape)}")
    dtypes = (torch.float32, torch.float64)
    _checks.convolution(NAME, dtypes, x, weight, bias, gate, residual, out, 1, 1, transposed)


def band(exact, x, weight, bias, gate, residual, out, transposed, relu):
    """The kernel's rounding: four times 2^-23 of the largest output that pixels and weights of this
    size could give."""
    x, weight = (t.double().nan_to_num(0.0, 0.0, 0.0).abs() for t in (x, weight))
    if x.numel() == 0:
        return {}
    largest = x.amax((1, 2, 3))[:, None] * weight.sum((0 if transposed else 1, 2, 3))
    return {
        "out": (
            torch.ones_like(exact["out"], dtype=torch.bool),
            2.0**-21 * largest[:, :, None, None],
        )
    }


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor x, Tensor weight, Tensor? bias, Tensor? gate, Tensor? residual, Tensor(a!) out,"
        " bool transposed, bool relu) -> ()",
        reference=reference.conv3x3,
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
