"""ghost_pair: a layer's gradient for each picture and its change, compared by Gram products alone.

The backward is an op of its own, ghost_pair_backward.
"""

import torch

from fastue.core import opspec
from fastue.ops._arguments import plain
from fastue.ops.ghost_pair import cases, reference
from fastue.ops.ghost_pair_backward import OP as BACKWARD
from fastue.ops.ghost_pair_backward import ROUNDING as GRADIENT_ROUNDING
from fastue.ops.ghost_pair_backward import check_pair, scales

NAME = "ghost_pair"
ROUNDING = 2.0**-22  # of float32 Gram products, of the most that columns of these lengths allow


def ghost_pair(
    a: torch.Tensor, e: torch.Tensor, a2: torch.Tensor, e2: torch.Tensor
) -> torch.Tensor:
    """float64 [B, 3]: (|G|^2, <G, D>, |D|^2) for each sample, D = G2 - G, G = e a^T, G2 = e2 a2^T

    G and G2 [p, d] are the gradients of one layer's weight for one sample and are never made.

    a    [B, d, T] float32 or float64: the layer's inputs, unfolded: T places of d numbers
    e    [B, p, T]: the back-propagated errors of its outputs, at the same places
    a2, e2   the same for another input, as a rule one that is a little different
    Nothing cancels where it is: with da = a2 - a and de = e2 - e, D = e2 da^T + de a^T, so that all
    three are sums of products of Gram matrices [T, T], and <G, D> and |D|^2 keep their digits
    however small D is. Gram products are sums in float32 (on the reference in float64), everything
    else is float64. It costs 4 T^2 (d + p) products at most, the weight gradients 2 T d p. Sums are
    in a fixed order: the result does not depend on the number of threads or on other rows.
    Differentiable once in a2 and e2; a and e are constants and get no gradient. A second derivative
    is a RuntimeError. Tensors that are not contiguous are copied. Errors: ValueError, TypeError
    (RuntimeError from compiled code) for wrong shapes and dtypes.
    Per-sample norms by Gram products are of Goodfellow (2015, arXiv:1510.01799) for T = 1 and of Bu
    et al. (2022, arXiv:2205.10683) for convolutions, the use for matching gradients of Ye & Wang
    (CVPR 2024); the form that does not cancel is ours.
    """
    return OP.call(plain(a).contiguous(), plain(e).contiguous(), a2.contiguous(), e2.contiguous())


def check(a, e, a2, e2):
    check_pair(NAME, a, e, a2, e2)


def band(exact, a, e, a2, e2):
    """Rounding: of what the columns' lengths alone allow."""
    a, da, e, e2, de = scales(a, e, a2, e2)
    g, d = (a * e).sum(1), (da * e2 + a * de).sum(1)
    size = torch.stack([g * g, g * d, d * d], 1).nan_to_num(0.0)
    return {"result0": (torch.ones_like(size, dtype=torch.bool), ROUNDING * size)}


def traffic(a, e, a2, e2):
    """Bytes: each tensor once."""
    return a.nbytes + e.nbytes + a2.nbytes + e2.nbytes


def setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.backend = opspec.chosen_backend()


def backward(ctx, grad):
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{NAME} is differentiable once: its backward was asked for with create_graph=True"
        )
    with opspec.use_backend(ctx.backend):  # CUDA's runs in a thread of its own
        return None, None, *BACKWARD(grad.contiguous(), *ctx.saved_tensors)


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor a, Tensor e, Tensor a2, Tensor e2) -> Tensor",
        reference=reference.ghost_pair,
        check=check,
        fake=lambda a, e, a2, e2: a.new_empty((len(a), 3), dtype=torch.float64),
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        band=band,
        atol=0.0,
        constant=("a", "e"),
        backward=backward,
        setup_context=setup_context,
        gradient_tolerance=GRADIENT_ROUNDING,
        backends=(
            opspec.cuda(opspec.FLOAT32),
            opspec.triton(opspec.FLOAT32),
            opspec.cpp(opspec.FLOAT32),
        ),
    )
)
