"""Convolutions and BatchNorms as what they are while the weights stand still: linear maps.

The second derivative of torch's own convolution makes a gradient of the weight even where nothing
needs it, and that of BatchNorm treats it as if the statistics moved. The values are the same, those
of BatchNorm up to rounding.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue.matching.layers import BATCH_NORMS, CONVOLUTIONS


@contextlib.contextmanager
def linear(model: nn.Module) -> Iterator[None]:
    """Meanwhile its convolutions and BatchNorms in eval mode are the functions below."""
    changed = []
    for module in model.modules():
        function = None
        if type(module) in CONVOLUTIONS:
            function = convolve
        elif type(module) in BATCH_NORMS and not module.training:
            function = affine if module.running_mean is not None else None
        if function and "forward" not in vars(module):  # one that somebody else put there stays
            module.forward = function.__get__(module)
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    padding = conv.padding
    if conv.padding_mode != "zeros" or isinstance(padding, str):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
        padding = (0,) * len(conv.stride)
    return _Convolve.apply(
        x, conv.weight, conv.bias, (conv.stride, padding, conv.dilation, conv.groups)
    )


def affine(norm: nn.Module, x: Tensor) -> Tensor:
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = -norm.running_mean * scale
    if norm.bias is not None:
        shift = norm.bias + shift
    shape = (1, -1, *[1] * (x.dim() - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape))


class _Convolve(torch.autograd.Function):
    """Differentiable in x, twice. The parameters are in the graph, where they can be counted."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple) -> Tensor:
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
            weight = weight.contiguous(memory_format=torch.channels_last)  # once for three uses
        ctx.save_for_backward(x, weight.detach())
        ctx.settings = settings
        return _forward(x, weight, bias, settings)

    @staticmethod
    def backward(ctx, outer: Tensor) -> tuple:
        of_x = None
        if ctx.needs_input_grad[0]:
            x, weight = ctx.saved_tensors
            of_x = _Transposed.apply(outer, x.detach(), weight, ctx.settings)
        return of_x, None, None, None


class _Transposed(torch.autograd.Function):
    """The gradient of x, as a function of that of the output; of x only the shape counts."""

    @staticmethod
    def forward(ctx, outer: Tensor, x: Tensor, weight: Tensor, settings: tuple) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.settings = settings
        return convolution_backward(outer, x, weight, settings, (True, False, False))[0]

    @staticmethod
    def backward(ctx, outer: Tensor) -> tuple:
        (weight,) = ctx.saved_tensors
        return _forward(outer, weight, None, ctx.settings), None, None, None


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, settings: tuple) -> Tensor:
    stride, padding, dilation, groups = settings
    unmoved = (0,) * len(stride)
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, unmoved, groups)


def convolution_backward(
    outer: Tensor, x: Tensor, weight: Tensor, settings: tuple, wanted: tuple
) -> tuple:
    """torch's, of (x, weight, bias): those that are wanted."""
    stride, padding, dilation, groups = settings
    unmoved = (0,) * len(stride)
    return torch.ops.aten.convolution_backward(
        outer, x, weight, None, stride, padding, dilation, False, unmoved, groups, wanted
    )
