"""conv: a convolution with what stands around it in a network, or the gradient of its input.

bfloat16 only; for float32 see conv3x3. No kernel for a GPU: there cuDNN is one, and nothing calls
this.
"""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops._arguments import interleaved, plain
from fastue.ops.conv import cases, reference

NAME = "conv"
DTYPES = (torch.bfloat16, torch.float64)


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
    """relu(conv2d(x', weight) + bias + residual), x' = x where not gate <= 0, else 0. With
    `transposed` the gradient:

    conv_transpose2d, which turns the gradient of a convolution's output into that of its input.
    `gate` is then the convolution's output after its ReLU: the ReLU's own backward.

    x         bfloat16 [B, C, H, W], best channels_last, as are gate, residual and out
    weight    [O, C, h, w], with `transposed` [C, O, h, w]: in both cases the convolution's own;
              bfloat16
    bias      float32 [O];  gate  as x;  residual  as out
    out       [B, O, H', W'] to write instead of a new tensor
    stride, padding  the convolution's, the same in both directions
    size      with `transposed` and without `out`: (H', W'), the size of the convolution's input
    Sums are float32, rounded once; kernels may take numbers below 1e-38 for zero. Not
    differentiable. Errors: ValueError, TypeError (RuntimeError from compiled code) for wrong
    shapes, dtypes and layouts.
    """
    if out is None:
        channels = weight.shape[1] if transposed else weight.shape[0]
        if not transposed:
            size = tuple(_checks.conv_size("conv", x.shape[2:], weight.shape[2:], stride, padding))
        if size is None:
            raise ValueError(
                "conv: transposed needs out or size, the height and width of the convolution's input"
            )
        out = torch.empty(
            (len(x), channels, *size),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
    OP.call(
        interleaved(x), plain(weight), plain(bias), interleaved(gate),
        interleaved(residual), plain(out), stride, padding, transposed, relu,
    )  # fmt: skip
    return out


def check(x, weight, bias, gate, residual, out, stride, padding, transposed, relu):
    _checks.convolution(
        NAME, DTYPES, x, weight, bias, gate, residual, out, stride, padding, transposed
    )


def traffic(x, weight, bias, gate, residual, out, *_):
    """Bytes: each tensor once."""
    return sum(t.nbytes for t in (x, weight, bias, gate, residual, out) if t is not None)


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor x, Tensor weight, Tensor? bias, Tensor? gate, Tensor? residual, Tensor(a!) out, int stride,"
        " int padding, bool transposed, bool relu) -> ()",
        reference=reference.conv,
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
