"""Convolutions as a CPU likes them.

In bf16 a 3x3 convolution with a small output is one matrix product over unfolded pictures: oneDNN's AMX kernels fill
their 16-row tiles from one picture row, so they are slow where a row has 4 pixels (ResNet's last stage).
`python -m bench.conv` times both. For weights that stand still the BatchNorm is folded in, and the ReLU is applied
where the convolution writes.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Conv(nn.Conv2d):
    """nn.Conv2d, faster under bf16 autocast on a CPU where its output is small. The same up to bf16 rounding."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16 and _onednn_takes(x):
            settings = (self.stride, self.padding, self.dilation, self.groups)
            if self.bias is None and self.padding_mode == "zeros" and _narrow(x, self.weight, settings):
                weight = self.weight.to(torch.bfloat16, memory_format=torch.channels_last)
                return _Fused.apply(x.to(torch.bfloat16), weight, None, settings, False)
        return super().forward(x)


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
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple, relu: bool) -> Tensor:
        stride, padding, dilation, groups = settings
        if _as_product(x, weight, settings):
            rows = _unfold(x, stride[0])
            shape = (len(x), len(weight), *rows.shape[1:3])
            y = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
            flat = y.permute(0, 2, 3, 1).flatten(0, 2)  # a view
            factors = rows.flatten(3).flatten(0, 2), _matrix(weight).t()
            _ = torch.mm(*factors, out=flat) if bias is None else torch.addmm(bias, *factors, out=flat)
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
        product = _as_product(x, weight, ctx.settings)
        of_x, of_weight = None, None
        if product and ctx.needs_input_grad[1]:
            rows = _unfold(x, stride[0]).flatten(3).flatten(0, 2)
            of_weight = gradient.permute(0, 2, 3, 1).flatten(0, 2).t() @ rows
            of_weight = of_weight.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)
        if product and ctx.needs_input_grad[0] and len(weight) >= 512:
            rows = gradient.permute(0, 2, 3, 1)
            rows = (rows.flatten(0, 2) @ _matrix(weight)).view(*rows.shape[:3], 3, 3, -1)
            of_x = _fold(rows, x, stride[0])
        missing = [w and g is None for w, g in zip(ctx.needs_input_grad[:2], (of_x, of_weight), strict=True)]
        if any(missing):
            found = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, stride, padding, dilation, False, (0, 0), groups, (*missing, False)
            )
            of_x, of_weight = (f if m else g for f, m, g in zip(found, missing, (of_x, of_weight), strict=False))
        return of_x, of_weight, None, None, None


def _as_product(x: Tensor, weight: Tensor, settings: tuple) -> bool:
    return x.dtype == torch.bfloat16 and _narrow(x, weight, settings)


def _narrow(x: Tensor, weight: Tensor, settings: tuple) -> bool:
    """Where the matrix product is the faster one, in bf16."""
    stride = settings[0][0]
    width = (x.shape[3] - 1) // stride + 1
    plain = weight.shape[2:] == (3, 3) and settings[1:] == ((1, 1), (1, 1), 1) and settings[0] == (stride, stride)
    wide = weight.shape[0] * weight.shape[1] >= 128 * 256  # channels; below, unfolding costs more than it gains
    return plain and wide and (width <= 4 or (stride == 2 and width <= 8))


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
