"""Inputs the rooms share: small pictures, banks and gradients from a generator. Every op has the
names in REQUIRED."""

import torch

REQUIRED = ("empty", "one", "odd", "blocks", "mixed", "ties", "huge")

EPS = 8 / 255
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
PLANAR, INTERLEAVED = torch.contiguous_format, torch.channels_last


def pictures(
    g: torch.Generator, b: int, c: int, h: int, w: int, layout=INTERLEAVED
) -> torch.Tensor:
    """uint8 [b, c, h, w], a third of the pixels black or white, where the pixel range binds."""
    x = torch.randint(-85, 340, (b, c, h, w), generator=g).clamp(0, 255).to(torch.uint8)
    return x.contiguous(memory_format=layout)


def bank(g: torch.Generator, m: int, c: int, h: int, w: int, layout=INTERLEAVED) -> torch.Tensor:
    """float32 [m, c, h, w] in [-EPS, EPS], an eighth of it exactly at the budget."""
    n = (torch.rand((m, c, h, w), generator=g) * 2.3 - 1.15).clamp(-1, 1) * EPS
    return n.contiguous(memory_format=layout)


def compact(g: torch.Generator, m: int, c: int, h: int, w: int, layout=INTERLEAVED) -> torch.Tensor:
    """int8 [m, c, h, w] in [-127, 127], to be read with scale EPS/127."""
    return (
        torch.randint(-127, 128, (m, c, h, w), generator=g)
        .to(torch.int8)
        .contiguous(memory_format=layout)
    )


def gradient(
    g: torch.Generator, b: int, c: int, h: int, w: int, dtype, layout=INTERLEAVED
) -> torch.Tensor:
    """[b, c, h, w] of both signs over many magnitudes, a tenth exactly zero."""
    v = torch.randn((b, c, h, w), generator=g) * 10 ** torch.randint(
        -4, 3, (b, c, h, w), generator=g
    )
    v = torch.where(torch.rand((b, c, h, w), generator=g) < 0.1, 0.0, v)
    return v.to(dtype).contiguous(memory_format=layout)


def rows(g: torch.Generator, b: int, m: int) -> torch.Tensor:
    """int64 [b], distinct rows of a bank of m, in no order."""
    return torch.randperm(m, generator=g)[:b]


def offset(t: torch.Tensor) -> torch.Tensor:
    """The same tensor one element further on in memory: too crooked for a vector access."""
    room = torch.empty(t.numel() + 1, dtype=t.dtype)
    return room.as_strided(t.shape, t.stride(), 1).copy_(t)


def sheet(b: int, c: int, h: int, w: int, dtype, layout=INTERLEAVED) -> torch.Tensor:
    """An output to write, full of NaN so that a hole shows."""
    return torch.full((b, c, h, w), torch.nan, dtype=dtype).contiguous(memory_format=layout)


# Shapes that kernels read several pixels at a time, and one they cannot; with one channel and with
# three.
SHAPES = {"even": (3, 8, 12), "gray_even": (1, 8, 4), "gray_odd": (1, 5, 7)}
# Of three tensors, and of the one that is written.
LAYOUTS = {
    "same": ((INTERLEAVED,) * 3, INTERLEAVED),
    "crossed": ((PLANAR, INTERLEAVED, PLANAR), INTERLEAVED),
    "planar": ((INTERLEAVED, PLANAR, PLANAR), PLANAR),
}


def view(grain: int = 1, ids: torch.Tensor | None = None, pad: int = 0, flip: bool = False) -> dict:
    """How pictures are seen: the last arguments of the ops on noise."""
    seed, epoch = (0, 0) if ids is None else (-5, 2**33 + 1)
    return dict(ids=ids, seed=seed, epoch=epoch, pad=pad, flip=flip, grain=grain)


def coarse(h: int, w: int, grain: int) -> tuple[int, int]:
    """Height and width of a bank."""
    return -(-h // grain), -(-w // grain)


# Of four pictures: both ways of looking, and windows in all directions.
IDS = torch.tensor([3, 2**40 + 1, 17, 99])
# (channels, height, width) and a view of it: cropped and mirrored or not, with a grain that divides
# the sides, one that does not, and one beyond them.
VIEWS = {
    "crop": ((3, 8, 12), view(1, IDS, 3, True)),
    "crop_gray": ((1, 5, 7), view(1, IDS, 2, True)),
    "crop_only": ((3, 9, 7), view(1, IDS, 4, False)),
    "crop_beyond": ((3, 3, 4), view(1, IDS, 6, True)),
    "grain": ((3, 8, 12), view(4)),
    "grain_edge": ((3, 7, 9), view(2)),
    "grain_edge_gray": ((1, 10, 11), view(4)),
    "grain_beyond": ((3, 5, 7), view(8)),
    "grain_crop": ((3, 8, 12), view(2, IDS, 3, True)),
    "grain_edge_crop": ((3, 33, 35), view(4, IDS, 4, True)),
    "grain_crop_gray": ((1, 9, 8), view(3, IDS, 2, True)),
    "grain_crop_only": ((3, 16, 16), view(8, IDS, 5, False)),
}


def views(dtype: torch.dtype) -> dict:
    """All for float32. Half precision differs in loads and stores, which do not ask for the grain;
    Triton's interpreter pays for each."""
    few = ("crop", "grain_crop", "grain_crop_gray")
    return VIEWS if dtype == torch.float32 else {name: VIEWS[name] for name in few}


# For bench.ops: a batch of ImageNet-sized pictures, channels_last, and a large batch of CIFAR-sized
# ones, planar.
BENCH = {"imagenet": ((128, 3, 224, 224), INTERLEAVED), "cifar": ((8192, 3, 32, 32), PLANAR)}
