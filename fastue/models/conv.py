"""Convolutions of the networks here: the same modules everywhere, fast on CPUs.

In bf16 on a CPU with AMX they are fastue.ops.conv. For weights that stand still BatchNorm, ReLU and the sum of a
residual block are part of the convolution: of ours (in float32 fastue.ops.conv3x3 where it fits) or of oneDNN's.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fastue import ops


class Conv(nn.Conv2d):
    """nn.Conv2d, up to rounding, and faster under bf16 autocast on a CPU with AMX."""

    def forward(self, x: Tensor) -> Tensor:
        if (
            torch.is_autocast_enabled(x.device.type)
            and torch.get_autocast_dtype(x.device.type) == torch.bfloat16
        ):
            plain = self.bias is None and self.padding_mode == "zeros"
            own = _kernel(x, torch.bfloat16, self.weight, _settings(self)) if plain else None
            if own:
                low = x.to(torch.bfloat16)
                return _Convolution.apply(low, self.weight, None, None, _settings(self), False, own)
        return super().forward(x)


class FoldedConv(nn.Module):
    """relu(conv(x, weight) + bias + residual), or without the ReLU, of x [B, C, H, W], best channels_last.

    A gradient flows to x and residual only. `weight` and `bias` are filled by FrozenCopy; `bias` stays float32.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool):
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        bias = (
            conv.weight.new_zeros(conv.out_channels)
            if conv.bias is None
            else conv.bias.detach().clone()
        )
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.settings = _settings(conv)
        self.relu = relu

    def forward(
        self, x: Tensor, residual: Tensor | None = None, relu: bool | None = None
    ) -> Tensor:
        relu = self.relu if relu is None else relu
        own = _kernel(x, x.dtype, self.weight, self.settings)
        if own or _onednn_takes(x, self.settings, residual):
            return _Convolution.apply(x, self.weight, self.bias, residual, self.settings, relu, own)
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


def _kernel(x: Tensor, dtype: torch.dtype, weight: Tensor, settings: tuple) -> str | None:
    """Which op is the way for x in this dtype: one that has a kernel here for a convolution like this, or none."""
    stride, padding, dilation, groups = settings
    if (
        groups != 1
        or dilation != (1, 1)
        or isinstance(padding, str)
        or torch.compiler.is_compiling()
    ):
        return None
    if stride[0] != stride[1] or padding[0] != padding[1]:
        return None
    if ops.has_kernel("conv", x.device, dtype):
        return "conv"
    fits = weight.shape[2:] == (3, 3) and stride[0] == padding[0] == 1 and min(x.shape[2:]) > 1
    return "conv3x3" if fits and ops.has_kernel("conv3x3", x.device, dtype) else None


def _ours(
    kernel: str, x: Tensor, weight: Tensor, settings: tuple, size: tuple | None = None, **given
) -> Tensor:
    """`size` is that of the input, for the way back."""
    (stride, *_), (padding, *_), _, _ = settings
    if kernel == "conv3x3":
        return ops.conv3x3(x, weight, transposed=size is not None, **given)
    return ops.conv(
        x, weight, stride=stride, padding=padding, transposed=size is not None, size=size, **given
    )


def is_plain(part: nn.Module) -> bool:
    """A convolution and nothing more: libraries have subclasses that do something to the weight first."""
    return type(part) in (nn.Conv2d, Conv) and part.padding_mode == "zeros"


def _onednn_takes(x: Tensor, settings: tuple, residual: Tensor | None) -> bool:
    if (
        x.device.type != "cpu"
        or torch.compiler.is_compiling()
        or not torch.backends.mkldnn.is_available()
    ):
        return False  # the compiler fuses by itself
    if isinstance(settings[1], str) or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    if x.dtype == torch.bfloat16:  # torch 2.13 raises an internal error for some bf16 sums
        return residual is None and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return x.dtype == torch.float32


def _onednn(x, weight, bias, residual, settings, relu):
    stride, padding, dilation, groups = settings
    bias = bias.to(x.dtype)
    if residual is None:
        end = "relu" if relu else "none"
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, padding, stride, dilation, groups, end, [], ""
        )  # fmt: skip
    end = "relu" if relu else None
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, residual, weight, bias, padding, stride, dilation, groups, "add", 1.0, end, [], ""
    )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, settings, relu, own):
        few = (
            own == "conv3x3" and x.shape[1] < 16
        )  # not worth transforming, on the way back they are
        if own and not few:
            weight = weight.to(x.dtype, memory_format=torch.channels_last)
            bias = bias if bias is None else bias.float()
            y = _ours(own, x, weight, settings, bias=bias, residual=residual, relu=relu)
        else:
            y = _onednn(x, weight, bias, residual, settings, relu)
        kept = x if ctx.needs_input_grad[1] or not own else None
        ctx.save_for_backward(kept, weight, y if relu else None)
        ctx.given = settings, own, x.shape[2:]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, y = ctx.saved_tensors
        settings, own, size = ctx.given
        (stride, *_), (padding, *_), _, groups = settings
        of_x, of_weight, _, of_residual = ctx.needs_input_grad[:4]
        if y is not None and (of_weight or of_residual or not own):
            gradient, y = torch.ops.aten.threshold_backward(gradient, y, 0), None
        found: list = [None] * 7
        if of_x and own:
            found[0] = _ours(own, gradient, weight, settings, size, gate=y)
        elif of_x:
            found[0] = torch.ops.aten.convolution_backward(
                gradient,
                x,
                weight,
                None,
                *settings[:3],
                False,
                (0, 0),
                groups,
                (True, False, False),
            )[0]
        if of_weight:
            found[1] = ops.conv_weights(
                x, gradient, torch.empty_like(weight, dtype=torch.float32), stride, padding
            )
        found[3] = gradient if of_residual else None
        return tuple(found)
