"""conv_weights: the gradient of a convolution's weight. No kernel for a GPU, for the reason conv has none."""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops.conv import out_size
from fastue.ops.conv_weights import cases
from fastue.ops.conv_weights.reference import conv_weights

NAME = "conv_weights"


def check(x, grad, out, stride, padding):
    _checks.tensor(NAME, "x", x, tuple("BCHW"), (torch.bfloat16, torch.float64), x.device)
    wanted = torch.float64 if x.dtype == torch.float64 else torch.float32
    _checks.tensor(NAME, "out", out, ("O", x.shape[1], "h", "w"), (wanted,), x.device)
    if stride < 1 or padding < 0 or 0 in out.shape[2:]:
        raise ValueError(f"{NAME}: needs stride >= 1, padding >= 0 and a kernel that is not empty")
    if any(n + 2 * padding < k for n, k in zip(x.shape[2:], out.shape[2:], strict=True)):
        raise ValueError(f"{NAME}: the kernel {list(out.shape[2:])} is larger than the padded picture")
    size = [out_size(n, k, stride, padding) for n, k in zip(x.shape[2:], out.shape[2:], strict=True)]
    _checks.tensor(NAME, "grad", grad, (len(x), len(out), *size), (x.dtype,), x.device)
    for name, t in (("x", x), ("grad", grad)):
        if not t.is_contiguous(memory_format=torch.channels_last):
            raise ValueError(f"{NAME}: {name} must be channels_last, got strides {t.stride()}")


def traffic(x, grad, out, *_):
    """Bytes: each tensor once."""
    return x.nbytes + grad.nbytes + out.nbytes


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor x, Tensor grad, Tensor(a!) out, int stride, int padding) -> ()",
        reference=conv_weights,
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
