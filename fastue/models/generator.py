"""A picture's noise from the picture: a residual encoder-decoder without BatchNorm."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue.ops._grain import bank_shape, spread

GROUPS = 8


def _block(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, 3, stride=stride, padding=1)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, cout), nn.SiLU())


class Generator(nn.Module):
    """Noise float32 [B, C, ceil(H/grain), ceil(W/grain)] in [-eps, eps] of pictures [B, C, H, W] in
    [0,1].

    Three levels of `width` channels (a multiple of 8), each half as high and wide as the one above,
    with skip connections; the way up ends where a value stands for `grain` pixels. `plain`: the
    output is clamped, as published, and has no gradient where it is; else it is eps * tanh, which
    always has one.
    """

    def __init__(
        self, channels: int, eps: float, grain: int = 1, width: int = 32, plain: bool = False
    ):
        super().__init__()
        self.eps, self.grain, self.plain = eps, grain, plain
        wide = 2 * width
        self.down = nn.ModuleList(
            [_block(channels, width), _block(width, wide, 2), _block(wide, wide, 2)]
        )
        up = [_block(wide + wide, wide), _block(wide + width, width)]
        self.up = nn.ModuleList(up[: 2 if grain == 1 else 1 if grain < 4 else 0])
        self.last = nn.Conv2d(width if grain == 1 else wide, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.down[0](x)]
        for block in self.down[1:]:
            levels.append(block(levels[-1]))
        z = levels.pop()
        for block in self.up:
            beside = levels.pop()
            z = block(torch.cat([F.interpolate(z, beside.shape[2:]), beside], 1))
        raw = F.adaptive_avg_pool2d(self.last(z), bank_shape(x.shape[1:], self.grain)[1:])
        return raw.clamp(-self.eps, self.eps) if self.plain else self.eps * torch.tanh(raw)

    def shown(self, x: Tensor) -> Tensor:
        """The pictures with their noise, [B, C, H, W] in [0,1]."""
        return (x + spread(self(x), self.grain, *x.shape[2:])).clamp(0, 1)
