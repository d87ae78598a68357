"""grad_cosine: how two lists of gradients compare, all their tensors in one pass."""

from collections.abc import Sequence

import torch

from fastue.core import opspec
from fastue.ops import _lists
from fastue.ops._once import once
from fastue.ops.grad_cosine import cases, reference
from fastue.ops.grad_cosine_backward import grad_cosine_backward

NAME = "grad_cosine"


def grad_cosine(g: Sequence[torch.Tensor], h: Sequence[torch.Tensor]) -> torch.Tensor:
    """float64 [3]: n = |g|^2, q = <g, h - g>, m = |h - g|^2, each over all tensors of the lists.

    g, h   tensors of the same shapes, float32, bfloat16, float16 or float64, all of one dtype and
           device; empty tensors and empty lists count 0
    So <g, h> = n + q and |h|^2 = n + 2q + m; and nothing cancels where h is close to g, as long as
    it is these three that are worked with (fastue.matching has 1 - cos from them). The
    differences are float32 (float64 of float64), products and sums float64, in an order that does
    not depend on the number of threads. Nothing waits for a GPU.

    Differentiable once, in g and in h, which may be results of torch.autograd.grad with
    create_graph; a second derivative raises RuntimeError. A pair of tensors that are not both
    contiguous or both channels_last is copied. Errors: ValueError, TypeError for lists that differ
    in length, shapes, dtypes or devices (RuntimeError from compiled code).
    """
    return OP.call(*_lists.alike(g, h))


def check(g, h):
    _lists.check(NAME, g=g, h=h)


def fake(g, h):
    return torch.empty(3, dtype=torch.float64, device=g[0].device if g else None)


def traffic(g, h):
    """Bytes: both lists read."""
    return sum(t.nbytes for t in (*g, *h))


def setup_context(ctx, inputs, output):
    g, h = inputs
    ctx.save_for_backward(*g, *h)


def backward(ctx, grad):
    """The gradient in g and that in h, each where it is wanted."""
    tensors = ctx.saved_tensors
    g, h = list(tensors[: len(tensors) // 2]), list(tensors[len(tensors) // 2 :])
    lists = []
    for needed, targets in zip(ctx.needs_input_grad, (True, False), strict=True):
        found = [None] * len(g)
        if any(needed):
            found = once(NAME, grad_cosine_backward(g, h, grad, targets=targets), (grad, *tensors))
        lists.append(found)
    return tuple(lists)


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor[] g, Tensor[] h) -> Tensor",
        reference=reference.grad_cosine,
        check=check,
        fake=fake,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        band=cases.band,
        traffic=traffic,
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        atol=0.0,  # what a sum in another order loses is the band
        backward=backward,
        setup_context=setup_context,
        backends=(
            opspec.cuda(opspec.FLOATS),
            opspec.triton(opspec.FLOATS),
            opspec.cpp(opspec.FLOATS),
        ),
    )
)
