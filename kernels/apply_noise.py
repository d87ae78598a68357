"""apply_noise in Triton: one program for BLOCK elements of one picture. The definition is
fastue/ops/apply_noise."""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common
from fastue.kernels._common import (
    channel_and_pixel,
    element,
    inside,
    limit,
    narrow,
    of_channel,
    place,
    source,
    unit_pixel,
    window,
)


@triton.jit(do_not_specialize=["rows", "seed_low", "seed_high", "epoch", "pad"])
def apply_noise_kernel(
    x_ptr,  # uint8 [B, C, H, W]
    noise_ptr,  # float32 or int8 [rows, C, ceil(H/GRAIN), ceil(W/GRAIN)]
    index_ptr,  # int64 [B]
    out_ptr,  # float [B, C, H, W]
    rows,
    scale,
    mean0, mean1, mean2, inverse0, inverse1, inverse2,
    ids_ptr,  # int64 [B]; unused without CROP
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
    GRAIN: tl.constexpr,
    CROP: tl.constexpr,
    FLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    area: tl.constexpr = AREA
    width: tl.constexpr = WIDTH
    height: tl.constexpr = AREA // WIDTH
    i = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = e < C * area
    channel, pixel = channel_and_pixel(e, area, C, INTERLEAVED)
    origin, from_pixel, visible = e, pixel, real
    row, column = pixel // width, pixel % width
    if CROP:
        down, right, mirrored = window(ids_ptr, i, seed_low, seed_high, epoch, pad, CROP)
        row, column = source(row, column, down, right, mirrored, width, FLIP)
        visible = real & inside(row, column, height, width)
        from_pixel = row * width + column
        origin = element(channel, from_pixel, area, C, INTERLEAVED)
    bank_row = tl.load(index_ptr + i)
    known = (bank_row >= 0) & (bank_row < rows)
    if GRAIN == 1:
        bank_area: tl.constexpr = AREA
        at = place(origin, channel, from_pixel, area, NOISE_CROSSED)
    else:
        wide: tl.constexpr = (WIDTH + GRAIN - 1) // GRAIN
        bank_area: tl.constexpr = (height + GRAIN - 1) // GRAIN * wide
        block = row // GRAIN * wide + column // GRAIN
        at = element(channel, block, bank_area, C, INTERLEAVED and not NOISE_CROSSED)
    at = bank_row * (C * bank_area) + at
    n = tl.load(noise_ptr + at, mask=visible & known, other=0).to(tl.float32)
    if COMPACT:
        n = n * scale
    here = i * (C * area)
    x = tl.load(
        x_ptr + here + place(origin, channel, from_pixel, area, X_CROSSED), mask=visible, other=0
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
    tl.store(out_ptr + at, narrow(v, out_ptr.dtype.element_ty), mask=real)


def apply_noise(x, noise, index, out, mean, std, scale, ids, seed, epoch, pad, flip, grain):
    """Launch; the op's signature. Everything dense, x [B, C, H, W]."""
    _common.check_rows("apply_noise: index", index, noise.shape[0])
    if x.numel() == 0:
        return
    flags = _common.layout_flags(noise=noise, x=x, out=out)
    blocking = _common.blocking(flags, noise, out, scattered=ids is not None or grain > 1)
    with _common.on_device_of(x):
        apply_noise_kernel[(x.shape[0], triton.cdiv(x[0].numel(), blocking["BLOCK"]))](
            x, noise, index, out, noise.shape[0], scale, *_common.normalisation(mean, std),
            **_common.view(x, ids, seed, epoch, pad, flip, grain, index), **flags,
            COMPACT=not noise.is_floating_point(), NORMALISE=bool(mean), **blocking, enable_fp_fusion=False,
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
        yield (x, noise, index, out, three, three, 1.0, None, 7, 0, 0, False, 1), ()
        yield (x, noise, index, out, [], [], 1.0, index, 7, 1, 4, first, 1), ("x", "noise")
        other = _common.example(torch.uint8, not first)
        singly = ("x",) if first else ("noise", "out")
        yield (other, noise, index, out, three, three, 1.0, None, 7, 0, 0, False, 1), singly
        coarse = _common.example(bank, first, 8)
        yield (x, coarse, index, out, three, three, 1.0, None, 7, 0, 0, False, 4), ("noise",)
        yield (x, coarse, index, out, three, three, 1.0, index, 7, 1, 4, first, 4), ("x", "noise")
