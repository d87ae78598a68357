"""A surrogate that stands still: what the noise step differentiates through, cheap and exact.

In eval mode BatchNorm is an affine map, so it is folded into the convolution before it; parameters
need no gradient; in bf16 the weights are cast once instead of at every call. `refresh` takes over
the weights of the live network.
"""

import copy

import torch
from torch import Tensor, nn

from fastue.models.conv import FoldedConv, is_plain


class FrozenCopy:
    """`module` gives the logits of `model.eval()`, up to rounding.

    In float32 for precision="float32", else in bf16: `dtype` is the dtype of the module and of the
    input it takes. A BatchNorm2d right behind a Conv2d in an nn.Sequential is folded, with a ReLU
    behind both; any other (pre-activation networks such as DenseNet, library models) stays as it
    is. Convolutions run as fastue.ops.conv where that has a kernel. compile=True passes the module
    through torch.compile, on a GPU with CUDA graphs ("reduce-overhead").
    """

    def __init__(self, model: nn.Module, precision: str, *, compile: bool = False):
        self.model = model
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        module = copy.deepcopy(model)
        self._pairs = []  # (folded convolution, the live one, its BatchNorm)
        for name, part in model.named_modules():
            if _is_conv_bn(part):
                sequence = module.get_submodule(name)
                sequence[0] = FoldedConv(part[0], relu=len(part) == 3)
                del sequence[1:]
                self._pairs.append((sequence[0], *part[:2]))
        for name, part in list(module.named_modules()):
            if is_plain(part):
                module.set_submodule(name, FoldedConv(part, relu=False))
        module = module.to(self.dtype, memory_format=torch.channels_last)
        for part in module.modules():
            if isinstance(part, FoldedConv):
                part.bias.data = part.bias.data.float()
        self._module = module.eval().requires_grad_(False)
        of_pairs = {id(value) for folded, *_ in self._pairs for value in folded.parameters()}
        source = model.state_dict(keep_vars=True)
        self._others = [
            (value, source[name])  # a convolution without a bias has one of zeros in the copy
            for name, value in module.state_dict(keep_vars=True).items()
            if name in source and id(value) not in of_pairs
        ]
        self.module = self._module
        if compile:
            mode = "reduce-overhead" if next(model.parameters()).is_cuda else None
            self.module = torch.compile(self._module, mode=mode)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> "FrozenCopy":
        """Copy the present weights and statistics of the live network, folded in float32."""
        for folded, conv, norm in self._pairs:
            invstd = torch.rsqrt(norm.running_var + norm.eps)
            scale = (norm.weight * invstd).view(-1, 1, 1, 1)
            bias = -norm.running_mean if conv.bias is None else conv.bias - norm.running_mean
            torch.mul(conv.weight, scale, out=folded.weight)  # rounded once, in the copy's layout
            torch.add(norm.bias, bias * invstd * norm.weight, out=folded.bias)
        for value, live in self._others:
            value.copy_(live)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """float32 logits [B, num_classes] of model input x [B, C, H, W] of this dtype."""
        return self.module(x).float()


def _is_conv_bn(part: nn.Module) -> bool:
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)
    return (
        isinstance(part, nn.Sequential)
        and len(part) in (2, 3)
        and all(isinstance(p, kind) for p, kind in zip(part, kinds, strict=False))
        and is_plain(part[0])
        and part[1].affine
        and part[1].track_running_stats
    )
