"""apply_noise in Triton: one program for BLOCK elements of one picture. The definition is fastue/ops/apply_noise."""

import triton
import triton.language as tl
from fastue.kernels import _common
from fastue.kernels._common import (
    channel_and_pixel,
    limit,
    narrow,
    of_channel,
    philox,
    place,
    unit_pixel,
)


@triton.jit(do_not_specialize=["rows", "height", "width", "seed_low", "seed_high", "epoch", "pad"])
def apply_noise_kernel(
    x_ptr,  # uint8 [B, C, H, W]
    noise_ptr,  # float32 or int8 [rows, C, H, W]
    index_ptr,  # int64 [B]
    out_ptr,  # float [B, C, H, W]
    ids_ptr,  # int64 [B]; unused without CROP
    rows,
    height,
    width,
    scale,
    mean0, mean1, mean2, inverse0, inverse1, inverse2,
    seed_low, seed_high, epoch, pad,
    C: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    X_CROSSED: tl.constexpr,
    OUT_CROSSED: tl.constexpr,
    COMPACT: tl.constexpr,
    NORMALISE: tl.constexpr,
    CROP: tl.constexpr,
    FLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    area = height * width
    inside = e < C * area
    channel, pixel = channel_and_pixel(e, area, C, INTERLEAVED)
    source, from_pixel, visible = e, pixel, inside
    if CROP:
        word = tl.load(ids_ptr + i)
        one = tl.full((), 1, tl.uint32)
        down, right, mirror, _ = philox(
            word.to(tl.uint32), (word >> 32).to(tl.uint32), epoch.to(tl.uint32), one,
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
        source = place(e, channel, from_pixel, area, C, not INTERLEAVED, True)
    row = tl.load(index_ptr + i)
    known = (row >= 0) & (row < rows)
    size = (C * area).to(tl.int64)
    n = tl.load(noise_ptr + row * size + source, mask=visible & known, other=0).to(tl.float32)
    if COMPACT:
        n = n * scale
    x = tl.load(x_ptr + i * size + place(source, channel, from_pixel, area, C, INTERLEAVED, X_CROSSED), mask=visible,
                other=0)  # fmt: skip
    v = limit(unit_pixel(x) + n, 0.0, 1.0)
    if CROP:
        v = tl.where(visible, v, 0.0)
    if NORMALISE:
        v = (v - of_channel(channel, mean0, mean1, mean2)) * of_channel(channel, inverse0, inverse1, inverse2)
    v = tl.where(known, v, float("nan"))
    at = place(e, channel, pixel, area, C, INTERLEAVED, OUT_CROSSED)
    tl.store(out_ptr + i * size + at, narrow(v, out_ptr.dtype.element_ty), mask=inside)


def apply_noise(x, noise, index, out, mean, std, scale, ids, seed, epoch, pad, flip):
    """Launch; the op's signature. Everything dense, x [B, C, H, W]."""
    _common.check_rows("apply_noise: index", index, noise.shape[0])
    if x.numel() == 0:
        return
    b, _, h, w = x.shape
    elements = x[0].numel()
    block = _common.block_size(elements, x.device)
    with _common.on_device_of(x):
        apply_noise_kernel[(b, triton.cdiv(elements, block))](
            x, noise, index, out, index if ids is None else ids, noise.shape[0], h, w, scale,
            *_common.normalisation(mean, std),
            seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, epoch & 0xFFFFFFFF, pad,
            **_common.layout_flags(noise, x=x, out=out),
            COMPACT=not noise.is_floating_point(), NORMALISE=bool(mean), CROP=ids is not None, FLIP=flip,
            BLOCK=block, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip


def compiled():
    """(kernel, argument types, constants) that are compiled without a GPU: each dtype, each branch at least once."""
    for number, (noise, out) in enumerate((n, o) for n in ("*fp32", "*i8") for o in ("*fp32", "*bf16", "*fp16")):
        types = dict(x_ptr="*u8", noise_ptr=noise, index_ptr="*i64", out_ptr=out, ids_ptr="*i64")
        types |= dict.fromkeys(("rows", "height", "width", "pad"), "i32")
        types |= dict.fromkeys(("seed_low", "seed_high", "epoch"), "i64")
        types |= dict.fromkeys(("scale", "mean0", "mean1", "mean2", "inverse0", "inverse1", "inverse2"), "fp32")
        yield apply_noise_kernel, types, dict(
            C=3, INTERLEAVED=number % 2 == 0, X_CROSSED=number == 2, OUT_CROSSED=number in (1, 5), BLOCK=1024,
            COMPACT=noise == "*i8", NORMALISE=True, CROP=number in (0, 3), FLIP=number in (0, 3),
        )  # fmt: skip
