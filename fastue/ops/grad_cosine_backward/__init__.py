"""grad_cosine_backward: the gradient of grad_cosine, all tensors in one pass."""

from collections.abc import Sequence

import torch

from fastue.core import opspec
from fastue.ops import _checks, _lists
from fastue.ops._arguments import plain
from fastue.ops.grad_cosine_backward import cases, reference

NAME = "grad_cosine_backward"


def grad_cosine_backward(
    g: Sequence[torch.Tensor],
    h: Sequence[torch.Tensor],
    grad: torch.Tensor,
    out: Sequence[torch.Tensor] | None = None,
    *,
    targets: bool = False,
) -> list[torch.Tensor]:
    """alpha g + beta (h - g) of each pair of tensors: the gradient of a function of
    fastue.ops.grad_cosine(g, h), whose gradient in (n, q, m) is `grad`.

    g, h      as for grad_cosine
    grad      float64 [3], on their device, where it stays: nothing waits for a GPU
    targets   False: in h, alpha = grad[1], beta = 2 grad[2];
              True: in g, alpha = 2 grad[0] - grad[1], beta = grad[1] - 2 grad[2]
    out       tensors to write instead of new ones, in the order of memory of g and h
    The sum is float64 and rounded once. Not differentiable. Errors as for grad_cosine.
    """
    g, h = _lists.alike([plain(t) for t in g], [plain(t) for t in h])
    if out is None:
        out = [torch.empty_like(t) for t in h]
    OP.call(g, h, plain(grad).contiguous(), [plain(t) for t in out], targets)
    return out


def check(g, h, grad, out, targets):
    _lists.check(NAME, g=g, h=h, out=out)
    device = g[0].device if g else grad.device
    _checks.tensor(NAME, "grad", grad, (3,), (torch.float64,), device)


def traffic(g, h, grad, out, *_):
    """Bytes: both lists read, the gradients written."""
    return sum(t.nbytes for t in (*g, *h, *out))


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor[] g, Tensor[] h, Tensor grad, Tensor(a!)[] out, bool targets) -> ()",
        reference=reference.grad_cosine_backward,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        wide=("grad",),
        atol=0.0,
        bitwise=True,
        backends=(
            opspec.cuda(opspec.FLOATS),
            opspec.triton(opspec.FLOATS),
            opspec.cpp(opspec.FLOATS),
        ),
    )
)
