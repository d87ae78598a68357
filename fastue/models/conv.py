"""Convolutions of the networks here: the same modules everywhere, fast where a CPU has AMX (fastue.ops.conv).

For weights that stand still BatchNorm, ReLU and the sum of a residual block are part of the convolution.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fastue import ops


class Conv(nn.Conv2d):
    """nn.Conv2d, up to rounding, and faster under bf16 autocast on a CPU with AMX."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type) and torch.get_autocast_dtype(x.device.type) == torch.bfloat16:
            low = x.to(torch.bfloat16)
            if self.bias is None and self.padding_mode == "zeros" and _takes(low, low, _settings(self)):
                return _Convolution.apply(low, self.weight, None, None, self.stride[0], self.padding[0], False)
        return super().forward(x)


class FoldedConv(nn.Module):
    """relu(conv(x, weight) + bias + residual), or without the ReLU, of x [B, C, H, W], best channels_last.

    A gradient flows to x and residual only. `weight` and `bias` are filled by FrozenCopy; `bias` stays float32.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool):
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.settings = _settings(conv)
        self.relu = relu

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool | None = None) -> Tensor:
        relu = self.relu if relu is None else relu
        if _takes(x, self.weight, self.settings):
            stride, padding = self.settings[0][0], self.settings[1][0]
            return _Convolution.apply(x, self.weight, self.bias, residual, stride, padding, relu)
        y = F.conv2d(x, self.weight, self.bias.to(x.dtype), *self.settings)
        if residual is not None:
            y += residual
        return F.relu(y, inplace=True) if relu else y


def add_relu(last: nn.Sequential, x: Tensor, residual: Tensor, relu: nn.ReLU) -> Tensor:
    """relu(last(x) + residual): how a residual block ends. One pass where `last` is a frozen convolution."""
    if isinstance(last[0], FoldedConv):
        return last[0](x, residual, relu=True)
    y = last(x)
    y += residual
    return relu(y)


def _settings(conv: nn.Conv2d) -> tuple:
    return conv.stride, conv.padding, conv.dilation, conv.groups


def _takes(x: Tensor, weight: Tensor, settings: tuple) -> bool:
    """Whether fastue.ops.conv is the way: it has a kernel here for a convolution like this."""
    stride, padding, dilation, groups = settings
    plain = groups == 1 and dilation == (1, 1) and not isinstance(padding, str)
    plain = plain and stride[0] == stride[1] and padding[0] == padding[1]
    return plain and not torch.compiler.is_compiling() and ops.conv_is_fast(x, weight)


def is_plain(part: nn.Module) -> bool:
    """A convolution and nothing more: libraries have subclasses that do something to the weight first."""
    return type(part) in (nn.Conv2d, Conv) and part.padding_mode == "zeros"


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, stride, padding, relu):
        weight = weight.to(x.dtype, memory_format=torch.channels_last)
        y = ops.conv(x, weight, bias, residual=residual, stride=stride, padding=padding, relu=relu)
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, y if relu else None)
        ctx.given = stride, padding, x.shape[2:]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, y = ctx.saved_tensors
        stride, padding, size = ctx.given
        of_x, of_weight, _, of_residual = ctx.needs_input_grad[:4]
        if y is not None and (of_weight or of_residual):
            gradient, y = torch.ops.aten.threshold_backward(gradient, y, 0), None
        found: list = [None] * 7
        if of_x:
            found[0] = ops.conv(
                gradient, weight, gate=y, stride=stride, padding=padding, transposed=True, size=size
            )  # fmt: skip
        if of_weight:
            found[1] = ops.conv_weights(x, gradient, torch.empty_like(weight, dtype=torch.float32), stride, padding)
        found[3] = gradient if of_residual else None
        return tuple(found)
