"""FoldedConv is convolution, bias, ReLU: against float64, in both precisions, forward and backward, every path."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastue.models.conv import Conv, FoldedConv, _as_product, _fold, _unfold

# channels in, out, picture side, and the convolution's arguments; `product`: bf16 takes the matrix product
CASES = {
    "3x3": (6, 10, 9, dict(padding=1), False),
    "grouped, dilated": (8, 16, 11, dict(padding=2, dilation=2, groups=4), False),
    "1x1, stride 2": (16, 8, 7, dict(kernel_size=1, stride=2), False),
    "last stage": (256, 128, 4, dict(padding=1), True),
    "last stage, odd": (512, 512, 3, dict(padding=1), True),
    "into the last stage": (256, 512, 8, dict(padding=1, stride=2), True),
    "into the last stage, odd": (256, 512, 15, dict(padding=1, stride=2), True),
    "wide rows": (256, 128, 5, dict(padding=1), False),
    "few channels": (64, 128, 4, dict(padding=1), False),
    "asymmetric stride": (256, 128, 4, dict(padding=1, stride=(1, 2)), False),
    "no padding": (256, 128, 5, dict(), False),
    "same": (8, 8, 6, dict(padding="same"), False),
}


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("case", CASES)
def test_equals_float64(case, layout, dtype, relu):
    cin, cout, side, arguments, product = CASES[case]
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(cin, cout, **{"kernel_size": 3, **arguments})
    folded = FoldedConv(conv, relu).to(dtype, memory_format=torch.channels_last)
    for p in folded.parameters():
        p.copy_(torch.randn(p.shape, generator=generator) * (p[0].numel() ** -0.5))
    x = torch.randn(5, cin, side, side, generator=generator).to(dtype).contiguous(memory_format=layout).requires_grad_()
    if not isinstance(conv.padding, str):
        assert _as_product(x, folded.weight, folded.settings) == (product and dtype == torch.bfloat16)

    exact_x = x.detach().double().requires_grad_()
    exact = F.conv2d(exact_x, folded.weight.double(), folded.bias.double(), *folded.settings)
    exact = exact.relu() if relu else exact
    found = folded(x)
    assert found.dtype == dtype and found.shape == exact.shape
    terms = folded.weight[0].numel()
    eps = max(torch.finfo(dtype).eps, terms**0.5 * torch.finfo(torch.float32).eps)  # sums are float32
    assert (found - exact).abs().max() <= 2 * eps * exact.abs().max()

    along = torch.randn(exact.shape, generator=generator).to(dtype)
    # a ReLU within rounding of its corner may go either way: no gradient is asked for there
    along = along * (exact.detach().abs() > 4 * eps).to(dtype) if relu else along
    exact.backward(along.double())
    if not relu:
        found += 0  # a residual sum writes in place
    found.backward(along)
    assert folded.weight.grad is None and x.grad.dtype == dtype
    assert (x.grad - exact_x.grad).abs().max() <= 4 * eps * exact_x.grad.abs().max()


def test_unfold_and_fold_are_transposes():
    generator = torch.Generator().manual_seed(0)
    for side, stride in ((4, 1), (5, 2), (8, 2)):
        x = torch.randn(2, 3, side, side, generator=generator)
        rows = _unfold(x, stride)
        other = torch.randn(rows.shape, generator=generator)
        assert torch.allclose((rows * other).sum(), (x * _fold(other, x, stride)).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "cin, cout, side, stride", [(256, 128, 4, 1), (512, 512, 3, 1), (256, 512, 8, 2), (8, 8, 4, 1)]
)
def test_live_convolution_under_autocast(cin, cout, side, stride):
    """Output and both gradients of bf16 autocast, as close to float64 as nn.Conv2d's own."""
    conv = Conv(cin, cout, 3, stride, 1, bias=False).to(memory_format=torch.channels_last)
    plain = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
    plain.load_state_dict(conv.state_dict())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, cin, side, side, generator=generator)
    found = {}
    for name, module in {"exact": plain, "own": conv, "torch": plain}.items():
        module.double() if name == "exact" else module.float()
        given = x.to(module.weight.dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=name != "exact"):
            y = module(given)
        module.weight.grad = None
        along = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        y.backward(along.to(y.dtype))
        found[name] = y.detach(), given.grad, module.weight.grad
        assert name == "exact" or y.dtype == torch.bfloat16
    for exact, own, torch_s in zip(found["exact"], found["own"], found["torch"], strict=True):
        assert own.shape == exact.shape
        allowed = 3 * (torch_s - exact).abs().max() + 1e-6
        assert (own - exact).abs().max() <= allowed
