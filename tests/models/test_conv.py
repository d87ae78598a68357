"""Convolutions of the networks against float64, live and frozen, forward and backward.

Where an op of fastue has a kernel (its own cases are in tests/ops), and where torch's is taken.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastue import ops
from fastue.core.opspec import use_backend
from fastue.models.conv import Conv, FoldedConv, _kernel, add_relu, is_plain

# channels in, out, picture side, the convolution's arguments; its op in float32 and in bfloat16
CASES = {
    "3x3": (6, 10, 9, dict(padding=1), "conv3x3", "conv"),
    "one pixel": (6, 10, 1, dict(padding=1), None, "conv"),
    "3x3, stride 2": (34, 40, 9, dict(padding=1, stride=2), None, "conv"),
    "1x1, stride 2": (16, 8, 7, dict(kernel_size=1, stride=2), None, "conv"),
    "no padding": (64, 32, 5, dict(), None, "conv"),
    "grouped, dilated": (8, 16, 11, dict(padding=2, dilation=2, groups=4), None, None),
    "asymmetric stride": (16, 8, 6, dict(padding=1, stride=(1, 2)), None, None),
    "asymmetric padding": (16, 8, 6, dict(padding=(0, 1)), None, None),
    "same": (8, 8, 6, dict(padding="same"), None, None),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("end", ["", "relu", "residual, relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_frozen_convolution(case, backend, layout, dtype, end):
    cin, cout, side, arguments, *op_of_dtype = CASES[case]
    op = op_of_dtype[dtype == torch.bfloat16]
    conv = nn.Conv2d(cin, cout, **{"kernel_size": 3, **arguments})
    folded = FoldedConv(conv, end == "relu").to(dtype, memory_format=torch.channels_last)
    folded.weight.copy_(normal(*folded.weight.shape) * (folded.weight[0].numel() ** -0.5))
    folded.bias.data = normal(cout, seed=1)
    x = normal(5, cin, side, side, seed=2).to(dtype)
    x = x.contiguous(memory_format=layout).requires_grad_()
    exact_x = x.detach().double().requires_grad_()
    exact = F.conv2d(exact_x, folded.weight.double(), folded.bias.double(), *folded.settings)
    residual = None
    if "residual" in end:
        residual = normal(*exact.shape, seed=3).to(dtype).requires_grad_()
        exact_residual = residual.detach().double().requires_grad_()
        exact = exact + exact_residual
    exact = exact.relu() if "relu" in end else exact
    with use_backend(backend):
        here = op is not None and ops.has_kernel(op, x.device, dtype)
        assert _kernel(x, dtype, folded.weight, folded.settings) == (op if here else None)
        if residual is None:
            y = folded(x)
        else:
            y = add_relu(nn.Sequential(folded), x, residual, nn.ReLU())
    assert y.dtype == dtype and y.shape == exact.shape
    sum_eps = folded.weight[0].numel() ** 0.5 * torch.finfo(torch.float32).eps
    eps = max(torch.finfo(dtype).eps, sum_eps)
    assert (y - exact).abs().max() <= 3 * eps * exact.abs().max()

    along = normal(*exact.shape, seed=4).to(dtype)
    # a ReLU within rounding of its corner may go either way: no gradient is asked for there
    along = along * (exact.detach().abs() > 8 * eps).to(dtype) if "relu" in end else along
    exact.backward(along.double())
    if not end:
        y += 0  # another sum writes in place
    y.backward(along)
    assert folded.weight.grad is None and x.grad.dtype == dtype
    assert (x.grad - exact_x.grad).abs().max() <= 4 * eps * exact_x.grad.abs().max()
    if residual is not None:
        assert torch.equal(residual.grad.double(), exact_residual.grad)


@pytest.mark.parametrize(
    "cin, cout, side, stride", [(24, 40, 9, 1), (3, 64, 8, 1), (64, 96, 8, 2), (8, 8, 4, 1)]
)
def test_live_convolution_under_autocast(cin, cout, side, stride):
    """Output and both gradients of bf16 autocast, as close to float64 as nn.Conv2d's own."""
    conv = Conv(cin, cout, 3, stride, 1, bias=False).to(memory_format=torch.channels_last)
    plain = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
    plain.load_state_dict(conv.state_dict())
    pictures, results = normal(6, cin, side, side), {}
    for name, module in {"exact": plain, "own": conv, "torch": plain}.items():
        module.double() if name == "exact" else module.float()
        x = pictures.to(module.weight.dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=name != "exact"):
            y = module(x)
        module.weight.grad = None
        y.backward(normal(*y.shape, seed=1).to(y.dtype))
        results[name] = y.detach(), x.grad, module.weight.grad
        assert name == "exact" or y.dtype == torch.bfloat16
    for exact, own, torchs in zip(*results.values(), strict=True):
        assert own.shape == exact.shape
        allowed = 3 * (torchs - exact).abs().max() + 1e-6
        assert (own - exact).abs().max() <= allowed


def test_a_convolution_that_does_more_is_left_alone():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean())

    assert is_plain(nn.Conv2d(3, 3, 3)) and is_plain(Conv(3, 3, 3))
    assert not is_plain(Standardised(3, 3, 3))
    assert not is_plain(nn.Conv2d(3, 3, 3, padding_mode="reflect"))


def test_tiles_are_shared_with_torch():
    """Both set the CPU's tiles to shapes of their own, in the same threads."""
    conv = nn.Conv2d(40, 72, 3, padding=1)
    folded = FoldedConv(conv, True).to(torch.bfloat16, memory_format=torch.channels_last)
    x = normal(33, 40, 7, 7).to(torch.bfloat16)
    a, b = normal(50, 70).to(torch.bfloat16), normal(70, 30).to(torch.bfloat16)
    y, product = folded(x), a @ b
    error = (product.float() - a.float() @ b.float()).abs().max()
    assert error < 0.01 * product.float().abs().max()
    for _ in range(3):
        assert torch.equal(a @ b, product)
        assert torch.equal(folded(x), y)
