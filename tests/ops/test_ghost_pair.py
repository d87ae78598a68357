"""What ghost_pair promises beyond its cases: it is what its name says, keeps the digits of a small
difference, and knows nothing of other rows."""

import pytest
import torch

import fastue.ops
from fastue.core import opspec
from fastue.ops import ghost_pair
from fastue.ops.ghost_pair.cases import case

from . import checks

OP = opspec.registry()["ghost_pair"]
SIDES = [pytest.param(side, id=str(side)) for side in checks.tested(OP)]


def given(*shape, near=0.1, seed=5):
    return case(torch.Generator().manual_seed(seed), *shape, near)


def run(side, args) -> torch.Tensor:
    checks.need(OP, side, args)
    with opspec.use_backend(side.backend):
        return ghost_pair(*checks.moved(args, side.device)).cpu()


def gradients(a, e, a2, e2):
    """G and D [B, p, d], made."""
    a, e, a2, e2 = (t.double() for t in (a, e, a2, e2))
    return e @ a.mT, e2 @ a2.mT - e @ a.mT


def one_minus_cosine(n, q, m):
    """By the difference form, in float64."""
    long, longer = n.sqrt(), (n + 2 * q + m).sqrt()
    return (m - ((2 * q + m) / (long + longer)) ** 2) / (2 * long * longer)


def test_it_compares_weight_gradients():
    """To the rounding of float64: 1e-13 of |G|^2."""
    args = given(3, 13, 8, 9)
    g, d = (v.flatten(1) for v in gradients(**args))
    wanted = torch.stack([(g * g).sum(1), (g * d).sum(1), (d * d).sum(1)], 1)
    error = run(checks.Side("reference", "cpu"), args) - wanted
    assert (error.abs() <= 1e-13 * wanted[:, :1]).all()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(4, 60, 30, 40), (4, 600, 90, 1)], ids=["places", "linear"])
@pytest.mark.parametrize("near", [1e-3, 1e-5])
def test_one_minus_the_cosine_keeps_its_digits(side, shape, near):
    """Relative error at most 1e-3 where float32 gradients have none left: 1 - cos is near^2."""
    args = given(*shape, near=near)
    g, d = (v.flatten(1) for v in gradients(**args))
    wanted = one_minus_cosine((g * g).sum(1), (g * d).sum(1), (d * d).sum(1))
    assert (wanted < 4 * near**2).all()
    error = one_minus_cosine(*run(side, args).T) / wanted - 1
    assert (error.abs() <= 1e-3).all()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(5, 40, 9, 70), (5, 300, 20, 1)], ids=["places", "linear"])
def test_a_row_is_its_own(side, shape):
    """Bit for bit, whatever stands in other rows; forward and backward."""
    if side.backend == "reference":
        pytest.skip("torch's batched products promise no bits")
    args, other = given(*shape), given(*shape, seed=6)
    mixed = {
        k: torch.where(torch.arange(5)[:, None, None] == 2, t, other[k]) for k, t in args.items()
    }
    assert torch.equal(run(side, args)[2], run(side, mixed)[2])
    grad = torch.randn((5, 3), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for these in (args, mixed):
        with opspec.use_backend(side.backend):
            found.append(
                fastue.ops.ghost_pair_backward(
                    grad.to(side.device), *checks.moved(these, side.device)
                )
            )
    for one, two in zip(*found, strict=True):
        assert torch.equal(one[2], two[2])


def test_bits_do_not_depend_on_threads():
    args, before, found = given(6, 90, 20, 140), torch.get_num_threads(), []
    side = checks.Side("cpp", "cpu")
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(run(side, args))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_constants_get_no_gradient_and_a_second_derivative_is_refused():
    args = {k: t.requires_grad_() for k, t in given(2, 5, 4, 3).items()}
    loss = ghost_pair(**args)[:, 2].sum()
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, args["a2"], create_graph=True, retain_graph=True)
    loss.backward()
    assert args["a"].grad is None and args["e"].grad is None
    assert args["a2"].grad.abs().sum() > 0 and args["e2"].grad.abs().sum() > 0


def test_any_strides():
    """Transposed and expanded tensors give what copies of them give, gradients too."""
    args = given(2, 6, 5, 4)
    crooked = {k: t.mT.contiguous().mT for k, t in args.items()}
    crooked["e"] = args["e"][:, :1].expand(-1, 5, -1)
    args["e"] = crooked["e"].contiguous()
    found = []
    for these in (args, crooked):
        leaf = these["a2"].detach().requires_grad_()
        out = ghost_pair(**{**these, "a2": leaf})
        found.append((out.detach(), *torch.autograd.grad(out[:, 1:].sum(), leaf)))
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
