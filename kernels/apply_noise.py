"""apply_noise in Triton: one program for BLOCK elements of one picture. The definition is
fastue/ops/apply_noise."""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common
from fastue.kernels._common import (
    PURPOSE_CROP_FLIP,
    channel_and_pixel,
    limit,
    narrow,
    of_channel,
    philox,
    place,
    unit_pixel,
)


@triton.jit(do_not_specialize=["rows", "seed_low", "seed_high", "epoch", "pad"])
def apply_noise_kernel(
    x_ptr,  # uint8 [B, C, H, W]
    noise_ptr,  # float32 or int8 [rows, C, H, W]
    index_ptr,  # int64 [B]
    out_ptr,  # float [B, C, H, W]
    ids_ptr,  # int64 [B]; unused without CROP
    rows,
    scale,
    mean0, mean1, mean2, inverse0, inverse1, inverse2,
    seed_low, seed_high, epoch, pad,
    C: tl.constexpr,
    AREA: tl.constexpr,
    WIDTH: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NOISE_CROSSED: tl.constexpr,
    X_CROSSED: tl.constexpr,
    OUT_CROSSED: tl.constexpr,
    COMPACT: tl.constexpr,
    NORMALISE: tl.constexpr,
    CROP: tl.constexpr,
    FLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    area: tl.constexpr = AREA
    width: tl.constexpr = WIDTH
    height: tl.constexpr = AREA // WIDTH
    i = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = e < C * area
    channel, pixel = channel_and_pixel(e, area, C, INTERLEAVED)
    source, from_pixel, visible = e, pixel, inside
    if CROP:
        word = tl.load(ids_ptr + i)
        purpose = tl.full((), PURPOSE_CROP_FLIP, tl.uint32)
        down, right, mirror, _ = philox(
            word.to(tl.uint32), (word >> 32).to(tl.uint32), epoch.to(tl.uint32), purpose,
            seed_low.to(tl.uint32), seed_high.to(tl.uint32),
        )  # fmt: skip
        choices = (2 * pad + 1).to(tl.uint64)
        down = ((down.to(tl.uint64) * choices) >> 32).to(tl.int32) - pad
        right = ((right.to(tl.uint64) * choices) >> 32).to(tl.int32) - pad
        column = pixel % width
        if FLIP:
            column = tl.where((mirror >> 31) != 0, width - 1 - column, column)
        y, column = pixel // width + down, column + right
        visible = inside & (y >= 0) & (y < height) & (column >= 0) & (column < width)
        from_pixel = y * width + column
        if INTERLEAVED:
            source = from_pixel * C + channel
        else:
            source = channel * area + from_pixel
    row = tl.load(index_ptr + i)
    known = (row >= 0) & (row < rows)
    at = row * (C * area) + place(source, channel, from_pixel, area, NOISE_CROSSED)
    n = tl.load(noise_ptr + at, mask=visible & known, other=0).to(tl.float32)
    if COMPACT:
        n = n * scale
    here = i * (C * area)
    x = tl.load(
        x_ptr + here + place(source, channel, from_pixel, area, X_CROSSED), mask=visible, other=0
    )
    v = limit(unit_pixel(x) + n, 0.0, 1.0)
    if CROP:
        v = tl.where(visible, v, 0.0)
    if NORMALISE:
        v = (v - of_channel(channel, mean0, mean1, mean2)) * of_channel(
            channel, inverse0, inverse1, inverse2
        )
    v = tl.where(known, v, float("nan"))
    at = here + place(e, channel, pixel, area, OUT_CROSSED)
    tl.store(out_ptr + at, narrow(v, out_ptr.dtype.element_ty), mask=inside)


def apply_noise(x, noise, index, out, mean, std, scale, ids, seed, epoch, pad, flip):
    """Launch; the op's signature. Everything dense, x [B, C, H, W]."""
    _common.check_rows("apply_noise: index", index, noise.shape[0])
    if x.numel() == 0:
        return
    flags = _common.layout_flags(noise=noise, x=x, out=out)
    blocking = _common.blocking(flags, noise, out, scattered=ids is not None)
    with _common.on_device_of(x):
        apply_noise_kernel[(x.shape[0], triton.cdiv(x[0].numel(), blocking["BLOCK"]))](
            x, noise, index, out, index if ids is None else ids, noise.shape[0], scale,
            *_common.normalisation(mean, std),
            seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, epoch & 0xFFFFFFFF, pad, **flags, WIDTH=x.shape[3],
            COMPACT=not noise.is_floating_point(), NORMALISE=bool(mean), CROP=ids is not None, FLIP=flip,
            **blocking, enable_fp_fusion=False,
        )  # fmt: skip


def launches():
    """Arguments of launches that are compiled without a GPU, each dtype and branch at least once;
    with them, the tensors that are read singly."""
    index, three = torch.arange(2), [0.5] * 3
    for number, (bank, dtype) in enumerate(
        (b, d) for b in (torch.float32, torch.int8) for d in _common.FLOATS
    ):
        first = number % 2 == 0
        noise, x, out = (_common.example(t, first) for t in (bank, torch.uint8, dtype))
        yield (x, noise, index, out, three, three, 1.0, None, 7, 0, 0, False), ()
        yield (x, noise, index, out, [], [], 1.0, index, 7, 1, 4, first), ("x", "noise")
        other = _common.example(torch.uint8, not first)
        singly = ("x",) if first else ("noise", "out")
        yield (other, noise, index, out, three, three, 1.0, None, 7, 0, 0, False), singly
