"""A small UNet that predicts the noise in a picture: DDPM's, on 2x2 blocks of pixels."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """GroupNorm, SiLU, 3x3 convolution, twice, with the time in between and a way around."""

    def __init__(self, inner: int, outer: int, time: int):
        super().__init__()
        self.first = nn.Sequential(
            nn.GroupNorm(8, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1)
        )
        self.time = nn.Linear(time, outer)
        self.second = nn.Sequential(
            nn.GroupNorm(8, outer), nn.SiLU(), nn.Conv2d(outer, outer, 3, padding=1)
        )
        self.around = nn.Conv2d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.first(x) + self.time(time)[:, :, None, None]
        return self.around(x) + self.second(h)


class UNet(nn.Module):
    """x float32 [B,C,H,W] in [-1,1] units, t int64 [B] -> the noise in x, float32 [B,C,H,W].

    Any H and W: the picture is continued at the right and at the bottom to a multiple of 4.
    """

    def __init__(self, channels: int = 3, width: int = 64):
        super().__init__()
        self.width, time = width, 4 * width
        wide = 2 * width
        self.time = nn.Sequential(
            nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU()
        )
        self.enter = nn.Conv2d(4 * channels, width, 3, padding=1)
        self.fine = Block(width, width, time)
        self.down = nn.Conv2d(width, width, 3, stride=2, padding=1)
        self.coarse = nn.ModuleList([Block(width, wide, time), Block(wide, wide, time)])
        self.up = nn.Conv2d(wide, width, 3, padding=1)
        self.last = nn.ModuleList([Block(wide, width, time), Block(width, width, time)])
        self.leave = nn.Sequential(
            nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 4 * channels, 3, padding=1)
        )
        nn.init.zeros_(self.leave[-1].weight)  # begins with no noise predicted

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % 4, 0, -height % 4), mode="replicate")
        time = self.time(_waves(t, self.width))
        fine = self.fine(self.enter(F.pixel_unshuffle(x, 2)), time)
        h = self.down(fine)
        for block in self.coarse:
            h = block(h, time)
        h = torch.cat([self.up(F.interpolate(h, scale_factor=2.0)), fine], 1)
        for block in self.last:
            h = block(h, time)
        return F.pixel_shuffle(self.leave(h), 2)[:, :, :height, :width].float()


def _waves(t: Tensor, width: int) -> Tensor:
    half = width // 2
    rates = torch.exp(torch.arange(half, device=t.device) * (-math.log(10_000) / half))
    angles = t[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
