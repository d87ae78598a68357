"""linf_step in Triton: one program for BLOCK elements of one picture, or of its row of the bank
where pictures are cropped or the noise is coarse. The definition is fastue/ops/linf_step."""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common
from fastue.kernels._common import (
    block_gradient,
    block_room,
    channel_and_pixel,
    corner,
    limit,
    moved,
    narrow,
    nearest,
    of_channel,
    place,
    show_block,
    unit_pixel,
    window,
)


@triton.jit(do_not_specialize=["rows"])
def linf_step_kernel(
    noise_ptr,  # float32 or int8 [rows, C, H, W], updated
    grad_ptr,  # float [B, C, H, W]
    x_ptr,  # uint8 [B, C, H, W]
    index_ptr,  # int64 [B]
    mask_ptr,  # bool [B or 1, 1, H, W]; unused without MASK
    out_ptr,  # float [B, C, H, W]; unused without OUT
    rows,
    step,  # negative: ascend
    eps,
    scale,
    inverse,  # 1/scale
    mean0, mean1, mean2, inverse0, inverse1, inverse2,
    C: tl.constexpr,
    AREA: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NOISE_CROSSED: tl.constexpr,
    GRAD_CROSSED: tl.constexpr,
    X_CROSSED: tl.constexpr,
    OUT_CROSSED: tl.constexpr,
    COMPACT: tl.constexpr,
    MASK: tl.constexpr,
    MASK_STRIDE: tl.constexpr,  # 0: one mask for all pictures
    OUT: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    area: tl.constexpr = AREA
    i = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel, pixel = channel_and_pixel(e, area, C, INTERLEAVED)
    row = tl.load(index_ptr + i)
    known = (e < C * area) & (row >= 0) & (row < rows)
    n_ptr = noise_ptr + row * (C * area) + place(e, channel, pixel, area, NOISE_CROSSED)
    n = tl.load(n_ptr, mask=known, other=0).to(tl.float32)
    if COMPACT:
        n = n * scale
    here = i * (C * area)
    g = tl.load(
        grad_ptr + here + place(e, channel, pixel, area, GRAD_CROSSED), mask=known, other=0
    ).to(tl.float32)
    x = tl.load(x_ptr + here + place(e, channel, pixel, area, X_CROSSED), mask=known, other=0)
    p = unit_pixel(x)
    n = limit(limit(n - moved(g, step), -eps, eps), -p, 1.0 - p)
    if MASK:
        kept = tl.load(mask_ptr + i * MASK_STRIDE + pixel, mask=known, other=0)
        n = tl.where(kept != 0, n, 0.0)
    if COMPACT:
        n = nearest(limit(n * inverse, -127.0, 127.0))
        tl.store(n_ptr, n.to(tl.int8), mask=known)
        n = n * scale
    else:
        tl.store(n_ptr, n, mask=known)
    if OUT:
        v = limit(p + n, 0.0, 1.0)
        if NORMALISE:
            v = (v - of_channel(channel, mean0, mean1, mean2)) * of_channel(
                channel, inverse0, inverse1, inverse2
            )
        at = place(e, channel, pixel, area, OUT_CROSSED)
        tl.store(out_ptr + here + at, narrow(v, out_ptr.dtype.element_ty), mask=known)


@triton.jit(do_not_specialize=["rows", "seed_low", "seed_high", "epoch", "pad"])
def linf_step_view_kernel(
    noise_ptr,  # float32 or int8 [rows, C, h, w], h = ceil(H/GRAIN), w = ceil(W/GRAIN), updated
    grad_ptr,  # float [B, C, H, W], as the pictures were shown
    x_ptr,  # uint8 [B, C, H, W]
    index_ptr,  # int64 [B]
    mask_ptr,  # bool [B or 1, 1, h, w]; unused without MASK
    out_ptr,  # float [B, C, H, W]; unused without OUT
    rows,
    step,  # negative: ascend
    eps,
    scale,
    inverse,  # 1/scale
    mean0, mean1, mean2, inverse0, inverse1, inverse2,
    ids_ptr,  # int64 [B]; unused without CROP
    seed_low, seed_high, epoch, pad,
    C: tl.constexpr,
    AREA: tl.constexpr,
    WIDTH: tl.constexpr,
    BANK_AREA: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NOISE_CROSSED: tl.constexpr,
    GRAD_CROSSED: tl.constexpr,
    X_CROSSED: tl.constexpr,
    OUT_CROSSED: tl.constexpr,
    COMPACT: tl.constexpr,
    MASK: tl.constexpr,
    MASK_STRIDE: tl.constexpr,  # 0: one mask for all pictures
    OUT: tl.constexpr,
    NORMALISE: tl.constexpr,  # without, mean is 0 and 1/std is 1
    GRAIN: tl.constexpr,
    CROP: tl.constexpr,
    FLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel, pixel = channel_and_pixel(e, BANK_AREA, C, INTERLEAVED)
    row = tl.load(index_ptr + i)
    known = (e < C * BANK_AREA) & (row >= 0) & (row < rows)
    n_ptr = noise_ptr + row * (C * BANK_AREA)
    n_ptr += place(e, channel, pixel, BANK_AREA, NOISE_CROSSED)
    n = tl.load(n_ptr, mask=known, other=0).to(tl.float32)
    if COMPACT:
        n = n * scale
    here = i * (C * AREA)
    top, left = corner(pixel, WIDTH, GRAIN)
    down, right, mirrored = window(ids_ptr, i, seed_low, seed_high, epoch, pad, CROP)
    g = block_gradient(
        grad_ptr + here, channel, top, left, known, down, right, mirrored,
        C, AREA, WIDTH, GRAIN, FLIP, INTERLEAVED and not GRAD_CROSSED,
    )  # fmt: skip
    darker, brighter = block_room(
        x_ptr + here, channel, top, left, known,
        C, AREA, WIDTH, GRAIN, INTERLEAVED and not X_CROSSED,
    )  # fmt: skip
    n = limit(limit(n - moved(g, step), -eps, eps), -darker, brighter)
    if MASK:
        kept = tl.load(mask_ptr + i * MASK_STRIDE + pixel, mask=known, other=0)
        n = tl.where(kept != 0, n, 0.0)
    if COMPACT:
        n = nearest(limit(n * inverse, -127.0, 127.0))
        tl.store(n_ptr, n.to(tl.int8), mask=known)
        n = n * scale
    else:
        tl.store(n_ptr, n, mask=known)
    if OUT:
        show_block(
            out_ptr + here, x_ptr + here, n, channel, top, left, known, down, right, mirrored,
            of_channel(channel, mean0, mean1, mean2),
            of_channel(channel, inverse0, inverse1, inverse2),
            C, AREA, WIDTH, GRAIN, CROP, FLIP,
            INTERLEAVED and not X_CROSSED, INTERLEAVED and not OUT_CROSSED,
        )  # fmt: skip


def linf_step(
    noise, grad, x, index, step, eps, ascend, scale, mask, out, mean, std,
    ids, seed, epoch, pad, flip, grain,
):  # fmt: skip
    """Launch; the op's signature. Everything dense, x [B, C, H, W]."""
    _common.check_rows("linf_step: index", index, noise.shape[0])
    if x.numel() == 0:
        return
    flags = _common.layout_flags(noise=noise, grad=grad, x=x, out=out)
    bank_area = noise[0, 0].numel()
    kernel, sizes, view = linf_step_kernel, _common.blocking(flags, noise, grad, out), {}
    if ids is not None or grain > 1:
        kernel, sizes = linf_step_view_kernel, _common.block_elements(noise)
        view = _common.view(x, ids, seed, epoch, pad, flip, grain, index)
        view["BANK_AREA"] = bank_area
    with _common.on_device_of(x):
        kernel[(len(x), triton.cdiv(noise[0].numel(), sizes["BLOCK"]))](
            noise, grad, x, index, index if mask is None else mask, grad if out is None else out, noise.shape[0],
            -step if ascend else step, eps, scale, 1 / scale, *_common.normalisation(mean, std), **flags,
            COMPACT=not noise.is_floating_point(), MASK=mask is not None,
            MASK_STRIDE=0 if mask is None or mask.shape[0] == 1 else bank_area, OUT=out is not None,
            NORMALISE=bool(mean), **view, **sizes, enable_fp_fusion=False,
        )  # fmt: skip


def launches():
    """Arguments of launches that are compiled without a GPU, each dtype and branch at least once;
    with them, the tensors that are read singly."""
    index, three = torch.arange(2), [0.5] * 3
    for number, (bank, dtype) in enumerate(
        (b, d) for b in (torch.float32, torch.int8) for d in _common.FLOATS
    ):
        first = number % 2 == 0
        noise, grad, x, out = (_common.example(t, first) for t in (bank, dtype, torch.uint8, dtype))
        plain = (None, 7, 0, 0, False, 1)
        yield (noise, grad, x, index, 0.1, 0.1, False, 1.0, None, None, [], [], *plain), ()
        mask = _common.example(torch.bool, False)[: 1 + number % 2, :1]
        singly = ("mask",) if first else ()
        yield (noise, grad, x, index, 0.1, 0.1, False, 1.0, mask, out, three, three, *plain), singly
        other = _common.example(dtype, not first)
        singly = ("grad",) if first else ("noise", "x", "out")
        yield (
            (noise, other, x, index, 0.1, 0.1, False, 1.0, None, out, three, three, *plain),
            singly,
        )
        mask = _common.example(torch.bool, False, 8)[: 1 + number % 2, :1]
        for noise, shows, view in _common.views(bank, first, index):
            kept = mask if view[-1] == 4 else None
            next_input = (out, three, three) if shows else (None, [], [])
            args = (noise, other, x, index, 0.1, 0.1, False, 1.0, kept)
            yield (*args, *next_input, *view), _common.SINGLY
