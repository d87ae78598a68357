"""Convolutions of the networks here: the same modules everywhere, fast on CPUs.

In bf16 on a CPU with AMX they are fastue.ops.conv. For weights that stand still BatchNorm, ReLU and
the sum of a residual block are part of the convolution: of ours (in float32 fastue.ops.conv3x3
where it fits) or of oneDNN's.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fastue import ops


class Conv(nn.Conv2d):
    """nn.Conv2d, up to rounding, and faster under bf16 autocast on a CPU with AMX."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_plain_bf16(x):
            return super().forward(x)
        settings = _settings(self)
        op = _kernel(x, torch.bfloat16, self.weight, settings)
        if op is None:
            return super().forward(x)
        x = x.to(torch.bfloat16)
        return _Convolution.apply(x, self.weight, None, None, settings, False, op)

    def _is_plain_bf16(self, x: Tensor) -> bool:
        kind = x.device.type
        bf16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.bfloat16
        return bf16 and self.bias is None and self.padding_mode == "zeros"


class FoldedConv(nn.Module):
    """relu(conv(x, weight) + bias + residual), or without the ReLU.

    Of x [B, C, H, W], best channels_last. A gradient flows to x and residual only. `weight` and
    `bias` are filled by FrozenCopy; `bias` stays float32.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool):
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.settings = _settings(conv)
        self.relu = relu

    def forward(
        self, x: Tensor, residual: Tensor | None = None, relu: bool | None = None
    ) -> Tensor:
        relu = self.relu if relu is None else relu
        weight, bias, settings = self.weight, self.bias, self.settings
        op = _kernel(x, x.dtype, weight, settings)
        if op or _onednn_takes(x, settings, residual):
            if not torch.is_grad_enabled():  # autograd's own time counts in small networks
                return _convolved(x, weight, bias, residual, settings, relu, op)[0]
            return _Convolution.apply(x, weight, bias, residual, settings, relu, op)
        y = F.conv2d(x, weight, bias.to(x.dtype), *settings)
        if residual is not None:
            y += residual
        return F.relu(y, inplace=True) if relu else y


def add_relu(last: nn.Sequential, x: Tensor, residual: Tensor, relu: nn.ReLU) -> Tensor:
    """relu(last(x) + residual), the end of a residual block; one pass if `last` is frozen."""
    if isinstance(last[0], FoldedConv):
        return last[0](x, residual, relu=True)
    y = last(x)
    y += residual
    return relu(y)


def _settings(conv: nn.Conv2d) -> tuple:
    return conv.stride, conv.padding, conv.dilation, conv.groups


def _kernel(x: Tensor, dtype: torch.dtype, weight: Tensor, settings: tuple) -> str | None:
    """The op that has a kernel here for x in this dtype and a convolution like this, or None."""
    stride, padding, dilation, groups = settings
    if torch.compiler.is_compiling() or isinstance(padding, str):
        return None
    if groups != 1 or dilation != (1, 1) or stride[0] != stride[1] or padding[0] != padding[1]:
        return None
    if ops.has_kernel("conv", x.device, dtype):
        return "conv"
    fits = weight.shape[2:] == (3, 3) and stride[0] == padding[0] == 1 and min(x.shape[2:]) > 1
    return "conv3x3" if fits and ops.has_kernel("conv3x3", x.device, dtype) else None


def _ours(
    op: str, x: Tensor, weight: Tensor, settings: tuple, size: tuple | None = None, **operands
) -> Tensor:
    """`size` is that of the input, for the way back."""
    (stride, *_), (padding, *_), _, _ = settings
    operands["transposed"] = size is not None
    if op == "conv3x3":
        return ops.conv3x3(x, weight, **operands)
    return ops.conv(x, weight, stride=stride, padding=padding, size=size, **operands)


def is_plain(part: nn.Module) -> bool:
    """A convolution and nothing more: libraries have subclasses that change the weight first."""
    return type(part) in (nn.Conv2d, Conv) and part.padding_mode == "zeros"


def _onednn_takes(x: Tensor, settings: tuple, residual: Tensor | None) -> bool:
    if torch.compiler.is_compiling():
        return False  # the compiler fuses by itself
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
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
        )
    end = "relu" if relu else None
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, residual, weight, bias, padding, stride, dilation, groups, "add", 1.0, end, [], ""
    )


def _convolved(x, weight, bias, residual, settings, relu, op):
    """The output, and the weight as it was taken. By the op of fastue that `op` names, by oneDNN
    where it is None."""
    # Few channels are not worth transforming; on the way back, where they are many, they are.
    few = op == "conv3x3" and x.shape[1] < 16
    if not op or few:
        return _onednn(x, weight, bias, residual, settings, relu), weight
    weight = weight.to(x.dtype, memory_format=torch.channels_last)
    bias = bias if bias is None else bias.float()
    return _ours(op, x, weight, settings, bias=bias, residual=residual, relu=relu), weight


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, settings, relu, op):
        y, weight = _convolved(x, weight, bias, residual, settings, relu, op)
        x_needed = ctx.needs_input_grad[1] or not op
        ctx.save_for_backward(x if x_needed else None, weight, y if relu else None)
        ctx.constants = settings, op, x.shape[2:]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, weight, y = ctx.saved_tensors
        settings, op, size = ctx.constants
        (stride, *_), (padding, *_), _, _ = settings
        needs_x, needs_weight, _, needs_residual = ctx.needs_input_grad[:4]
        # Our op takes the ReLU's gate itself; who else needs the gradient gets it gated.
        if y is not None and (needs_weight or needs_residual or not op):
            gradient, y = torch.ops.aten.threshold_backward(gradient, y, 0), None
        of_x = of_weight = None
        if needs_x and op:
            of_x = _ours(op, gradient, weight, settings, size, gate=y)
        elif needs_x:
            of_x = _input_gradient(gradient, x, weight, settings)
        if needs_weight:
            of_weight = torch.empty_like(weight, dtype=torch.float32)
            of_weight = ops.conv_weights(x, gradient, of_weight, stride, padding)
        of_residual = gradient if needs_residual else None
        return of_x, of_weight, None, of_residual, None, None, None


def _input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, settings: tuple) -> Tensor:
    """By torch's own convolution."""
    stride, padding, dilation, groups = settings
    transposed, output_padding, needed = False, (0, 0), (True, False, False)
    gradients = torch.ops.aten.convolution_backward(
        *(gradient, x, weight, None, stride, padding, dilation),
        *(transposed, output_padding, groups, needed),
    )
    return gradients[0]
