"""The cosine of two lists of gradients where it matters: close to parallel, through a network that
is differentiated twice, and whatever the threads."""

import pytest
import torch

import fastue.ops
from fastue.core import opspec

from . import checks

OP = opspec.registry()["grad_cosine"]
SIDES = [side for side in checks.tested(OP) if side.device == "cpu"]


def one_minus_cos(triple):
    """In the difference form, from (n, q, m)."""
    n, q, m = triple
    g, h = n.sqrt(), (n + 2 * q + m).sqrt()
    return (m - ((2 * q + m) / (g + h)) ** 2) / (2 * g * h)


def pair(apart, scale=1.0):
    g = torch.Generator().manual_seed(1)
    target = [torch.randn(shape, generator=g) * scale for shape in ((64, 27), (1000,), (3, 3))]
    return target, [t + apart * scale * torch.randn(t.shape, generator=g) for t in target]


@pytest.mark.parametrize("side", SIDES, ids=str)
@pytest.mark.parametrize("apart, size", [(1.4e-1, 1e-2), (1.4e-3, 1e-6), (1.4e-5, 1e-10)])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e15])
def test_close_to_parallel(side, apart, size, scale):
    """1 - cos is right to 1e-3 of itself."""
    g, h = pair(apart, scale)
    with opspec.use_backend(side.backend):
        found = one_minus_cos(fastue.ops.grad_cosine(g, h))
    wide = [torch.cat([t.double().flatten() for t in tensors]) for tensors in (g, h)]
    u, w = (t / t.norm() for t in wide)
    exact = (u - w).square().sum() / 2
    assert size / 3 < exact < size * 3 and abs(found - exact) < 1e-3 * exact


@pytest.mark.parametrize("side", SIDES, ids=str)
def test_a_nan_anywhere_is_seen(side):
    g, h = pair(0.1)
    h[1][123] = torch.nan
    with opspec.use_backend(side.backend):
        n, q, m = fastue.ops.grad_cosine(g, h)
    assert n.isfinite() and q.isnan() and m.isnan()


def test_the_same_bits_with_any_number_of_threads():
    g, h = pair(0.1)
    g, h = ([*tensors, t.repeat(70)] for tensors, t in ((g, g[1]), (h, h[1])))
    grad, before = torch.rand(3, dtype=torch.float64), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            v = fastue.ops.grad_cosine_backward(g, h, grad)
            found.append([fastue.ops.grad_cosine(g, h), *v])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_strided_and_transposed_gradients_are_copied():
    g, h = pair(0.1)
    wide = [torch.stack([t, t], -1)[..., 0] for t in h]
    turned = [t.t().contiguous().t() if t.dim() == 2 else t for t in g]
    assert torch.equal(fastue.ops.grad_cosine(turned, wide), fastue.ops.grad_cosine(g, h))
    expanded = fastue.ops.grad_cosine([torch.ones(1).expand(5)], [torch.zeros(5)])
    assert expanded.tolist() == [5, -5, 5]


def test_of_nothing_it_is_zero():
    assert fastue.ops.grad_cosine([], []).tolist() == [0, 0, 0]
    assert fastue.ops.grad_cosine_backward([], [], torch.ones(3, dtype=torch.float64)) == []
    with pytest.raises(ValueError, match="shorter|longer"):
        fastue.ops.grad_cosine([torch.ones(1)], [])


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-11), (torch.float32, 1e-4)])
def test_through_the_gradient_of_a_network(dtype, bound):
    """As a search for noise uses it: the derivative in the picture is that of the plain formula."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.Softplus(), torch.nn.Flatten(), torch.nn.Linear(288, 4)
    ).to(dtype)
    x, y = torch.rand(5, 3, 8, 8, dtype=dtype), torch.arange(5) % 4

    def gradient(net, x, **more):
        loss = torch.nn.functional.cross_entropy(net(x), y)
        return torch.autograd.grad(loss, list(net.parameters()), **more)

    def found(net, x, form):
        noise = (torch.linspace(-0.03, 0.03, x.numel(), dtype=x.dtype)).view_as(x).requires_grad_()
        h = gradient(net, x + noise, create_graph=True)
        return torch.autograd.grad(form(gradient(net, x), h), noise)[0]

    def plain(g, h):
        product = sum((a * b).sum() for a, b in zip(g, h, strict=True))
        sizes = [sum(t.square().sum() for t in tensors).sqrt() for tensors in (g, h)]
        return 1 - product / (sizes[0] * sizes[1])

    own = found(net, x, lambda g, h: one_minus_cos(fastue.ops.grad_cosine(g, h)))
    exact = found(net.double(), x.double(), plain)
    assert (own - exact).norm() < bound * exact.norm()


@pytest.mark.parametrize("of", [0, 1])
def test_a_second_derivative_raises(of):
    lists = pair(0.1)
    for t in lists[of]:
        t.requires_grad_()
    first = torch.autograd.grad(fastue.ops.grad_cosine(*lists).sum(), lists[of], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(first[0].sum(), lists[of], allow_unused=True)


@pytest.mark.parametrize("wrong", [(1, 0, 0), (0, 0, 1), (0, 1, 0.5), (0, -1, 1)])
def test_a_wrong_backward_is_noticed(wrong):
    """The gradient in h is that of (n, q, m) = (0, 1, 1) weights, and of no others."""
    g, h = ([t.double() for t in tensors] for tensors in pair(0.5))
    leaves = [t.clone().requires_grad_() for t in h]
    _, q, m = fastue.ops.grad_cosine(g, leaves)
    right = torch.autograd.grad(q + m, leaves)
    expected = [2 * b - a for a, b in zip(g, h, strict=True)]
    off = fastue.ops.grad_cosine_backward(g, h, torch.tensor(wrong, dtype=torch.float64))
    for v, w, o in zip(right, expected, off, strict=True):
        assert (v - w).abs().max() < 1e-12 < (o - w).abs().max()
