"""ghost_pair_backward: the gradient of ghost_pair, by Gram products as well."""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops._arguments import plain
from fastue.ops.ghost_pair_backward import cases, reference

NAME = "ghost_pair_backward"
ROUNDING = 2.0**-20  # of float32 sums, of the most that numbers of these sizes allow


def ghost_pair_backward(
    grad: torch.Tensor, a: torch.Tensor, e: torch.Tensor, a2: torch.Tensor, e2: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What autograd calls for `ghost_pair`: the gradients of a2 [B, d, T] and e2 [B, p, T]

    grad   float64 [B, 3], of (|G|^2, <G, D>, |D|^2); the first column does not matter: |G|^2 does
           not depend on a2 and e2
    a, e, a2, e2   as there
    With V = grad[1] G + 2 grad[2] D, which is never made, they are V^T e2 and V a2, written such
    that nothing cancels where D is small. Not differentiable. Errors as there.
    """
    return OP.call(*(plain(t).contiguous() for t in (grad, a, e, a2, e2)))


def check_pair(op, a, e, a2, e2):
    _checks.tensor(op, "a", a, ("B", "d", "T"), (torch.float32, torch.float64), a.device)
    b, _, t = a.shape
    _checks.tensor(op, "e", e, (b, "p", t), (a.dtype,), a.device)
    _checks.tensor(op, "a2", a2, a.shape, (a.dtype,), a.device)
    _checks.tensor(op, "e2", e2, e.shape, (a.dtype,), a.device)


def check(grad, a, e, a2, e2):
    check_pair(NAME, a, e, a2, e2)
    _checks.tensor(NAME, "grad", grad, (len(a), 3), (torch.float64,), a.device)


def scales(a, e, a2, e2):
    """Lengths [B, T] of the columns of a, a2 - a, e, e2, e2 - e, for the bands of both ops."""
    a, e, a2, e2 = a.double(), e.double(), a2.double(), e2.double()
    return [t.norm(dim=1) for t in (a, a2 - a, e, e2, e2 - e)]


def band(exact, grad, a, e, a2, e2):
    """Rounding: of what |a|, |e| and the other side's lengths alone allow."""
    na, nda, ne, ne2, nde = scales(a, e, a2, e2)
    na2 = a2.double().norm(dim=1)
    q, m2 = grad[:, 1, None].abs(), 2 * grad[:, 2, None].abs()

    def side(x, x2, y, dy, y2):
        near, far = (q * y + m2 * dy)[:, :, None], (m2 * y2)[:, :, None]
        size = (x.double().abs() @ near + (x2.double() - x.double()).abs() @ far) * y2[:, None]
        size = size.nan_to_num(0.0)
        return torch.ones_like(size, dtype=torch.bool), ROUNDING * size

    return {"result0": side(a, a2, ne, nde, ne2), "result1": side(e, e2, na, nda, na2)}


def traffic(grad, a, e, a2, e2):
    """Bytes: each tensor once, of a2 and e2 the gradients as well."""
    return grad.nbytes + a.nbytes + e.nbytes + 2 * a2.nbytes + 2 * e2.nbytes


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor grad, Tensor a, Tensor e, Tensor a2, Tensor e2) -> (Tensor, Tensor)",
        reference=reference.ghost_pair_backward,
        check=check,
        fake=lambda grad, a, e, a2, e2: (torch.empty_like(a2), torch.empty_like(e2)),
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        band=band,
        atol=0.0,
        wide=("grad",),
        backends=(
            opspec.cuda(opspec.FLOAT32),
            opspec.triton(opspec.FLOAT32),
            opspec.cpp(opspec.FLOAT32),
        ),
    )
)
