"""A convolution with its BatchNorm folded in and its ReLU behind it, for weights that stand still.

On a CPU the ReLU is applied where oneDNN writes the output, and in bf16 a 3x3 convolution with a small output is one
matrix product over unfolded pictures: oneDNN's AMX kernels fill their 16-row tiles from one picture row, so they are
slow where a row has 4 pixels (ResNet's last stage). `python -m bench.folded` times both.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class FoldedConv(nn.Module):
    """relu(conv(x, weight) + bias), or without the ReLU, of x [B, C, H, W], float32 or bf16, best channels_last.

    A gradient flows to x only. `weight` and `bias` are filled by FrozenCopy.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool):
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(conv.weight.new_zeros(conv.out_channels), requires_grad=False)
        self.settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        if _onednn_takes(x) and not isinstance(self.settings[1], str):
            return _Fused.apply(x, self.weight, self.bias, self.settings, self.relu)
        y = F.conv2d(x, self.weight, self.bias, *self.settings)
        return F.relu(y, inplace=True) if self.relu else y


def _onednn_takes(x: Tensor) -> bool:
    if x.device.type != "cpu" or torch.compiler.is_compiling() or not torch.backends.mkldnn.is_available():
        return False  # the compiler fuses by itself
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, settings: tuple, relu: bool) -> Tensor:
        stride, padding, dilation, groups = settings
        if _narrow(x, weight, settings):
            rows = _unfold(x, stride[0])
            shape = (len(x), len(weight), *rows.shape[1:3])
            y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
            flat = y.permute(0, 2, 3, 1).flatten(0, 2)  # a view
            torch.addmm(bias, rows.flatten(3).flatten(0, 2), _matrix(weight).t(), out=flat)
            if relu:
                F.relu(y, inplace=True)
        else:
            y = torch.ops.mkldnn._convolution_pointwise(
                x, weight, bias, padding, stride, dilation, groups, "relu" if relu else "none", [], ""
            )  # fmt: skip
        ctx.save_for_backward(x, weight, y if relu else None)
        ctx.settings = settings
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight, y = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        if y is not None:
            gradient = torch.ops.aten.threshold_backward(gradient, y, 0)
        if _narrow(x, weight, ctx.settings) and len(weight) >= 512:
            rows = gradient.permute(0, 2, 3, 1)
            rows = (rows.flatten(0, 2) @ _matrix(weight)).view(*rows.shape[:3], 3, 3, -1)
            return _fold(rows, x, stride[0]), None, None, None, None
        gradient, _, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (True, False, False)
        )
        return gradient, None, None, None, None


def _narrow(x: Tensor, weight: Tensor, settings: tuple) -> bool:
    """Where the matrix product is the faster one."""
    stride = settings[0][0]
    width = (x.shape[3] - 1) // stride + 1
    plain = weight.shape[2:] == (3, 3) and settings[1:] == ((1, 1), (1, 1), 1) and settings[0] == (stride, stride)
    wide = weight.shape[0] * weight.shape[1] >= 128 * 256  # channels; below, unfolding costs more than it gains
    return plain and wide and x.dtype == torch.bfloat16 and (width <= 4 or (stride == 2 and width <= 8))


def _matrix(weight: Tensor) -> Tensor:
    """[O, C, 3, 3] -> [O, 9C], kernel position before channel: a view where the weight is channels_last."""
    return weight.permute(0, 2, 3, 1).flatten(1)


def _unfold(x: Tensor, stride: int) -> Tensor:
    """[B, C, H, W] -> [B, Ho, Wo, 3, 3, C], the 3x3 neighbourhoods of x padded by 1."""
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    return x.unfold(1, 3, stride).unfold(2, 3, stride).permute(0, 1, 2, 4, 5, 3).contiguous()


def _fold(rows: Tensor, x: Tensor, stride: int) -> Tensor:
    """The transpose of _unfold: [B, Ho, Wo, 3, 3, C] summed in float32, in the shape and dtype of x."""
    batch, channels, height, width = x.shape
    _, ho, wo, *_ = rows.shape
    total = torch.zeros(batch, height + 2, width + 2, channels)
    for i in range(3):
        for j in range(3):
            total[:, i : i + stride * ho : stride, j : j + stride * wo : stride] += rows[:, :, :, i, j]
    return total[:, 1:-1, 1:-1].to(x.dtype).permute(0, 3, 1, 2)
