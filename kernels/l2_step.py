"""l2_step in Triton. A program owns a small picture and keeps it in registers. A large picture is
cut into pieces, a program each, and takes three launches: the sum of the gradient's squares, that
of the stepped noise's squares, the step. They run over as many pictures as stay in the cache, so
that memory is read once. Each piece stores its sum, and the sums are added up in a fixed order.
Where pictures are cropped or the noise is coarse, it is the rows of the bank that are whole or cut.
The definition is fastue/ops/l2_step."""

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
    narrow,
    of_channel,
    pixels,
    place,
    show_block,
    unit_pixel,
    window,
)

WHOLE = 4096  # elements of a picture for one program
PIECE = 2048
CACHE = 24 << 20  # bytes of a launch's pictures: about half of an A100's second-level cache

GRADIENT, STEPPED, APPLY = (tl.constexpr(stage) for stage in range(3))


@triton.jit
def _length(squares, sums_ptr, PIECES: tl.constexpr, SLOTS: tl.constexpr):
    """2-norm of a picture: of the sum of its squares, or of the sums of its pieces."""
    if PIECES > 1:
        j = tl.arange(0, SLOTS)
        squares = tl.sum(tl.load(sums_ptr + j, mask=j < PIECES, other=0.0), 0)
    return tl.sqrt(squares)


@triton.jit
def _squares(v):
    wide = v.to(tl.float64)
    return tl.sum(wide * wide, 0)


@triton.jit
def _shown_squares(v, count):
    """Of values that are shown on `count` pixels each."""
    wide = v.to(tl.float64)
    return tl.sum(wide * wide * count, 0)


@triton.jit
def _factor(length, step):
    usable = (length > 0) & (length < float("inf"))  # no direction, no move
    return tl.where(usable, step / tl.where(usable, length, 1.0), 0.0).to(tl.float32)


@triton.jit(do_not_specialize=["first", "rows"])
def l2_step_kernel(
    noise_ptr,  # float32 [rows, C, H, W], updated
    grad_ptr,  # float [B, C, H, W]
    x_ptr,  # uint8 [B, C, H, W]
    index_ptr,  # int64 [B]
    out_ptr,  # float [B, C, H, W]; unused without OUT
    gradient_ptr,  # float64 [B, PIECES], sums of squares; unused with one piece
    stepped_ptr,  # float64 [B, PIECES], too
    first,  # picture of this launch
    rows,
    step,  # negative: descend
    eps,
    mean0, mean1, mean2, inverse0, inverse1, inverse2,
    C: tl.constexpr,
    AREA: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NOISE_CROSSED: tl.constexpr,
    GRAD_CROSSED: tl.constexpr,
    X_CROSSED: tl.constexpr,
    OUT_CROSSED: tl.constexpr,
    OUT: tl.constexpr,
    NORMALISE: tl.constexpr,
    STAGE: tl.constexpr,
    PIECES: tl.constexpr,
    SLOTS: tl.constexpr,  # the next power of 2
    BLOCK: tl.constexpr,
):  # fmt: skip
    area: tl.constexpr = AREA
    i = (first + tl.program_id(0)).to(tl.int64)
    piece = tl.program_id(1)
    e = piece * BLOCK + tl.arange(0, BLOCK)
    channel, pixel = channel_and_pixel(e, area, C, INTERLEAVED)
    row = tl.load(index_ptr + i)
    known = (e < C * area) & (row >= 0) & (row < rows)
    here = i * (C * area)
    gradient_ptr += i * PIECES
    stepped_ptr += i * PIECES
    g = tl.load(
        grad_ptr + here + place(e, channel, pixel, area, GRAD_CROSSED), mask=known, other=0
    ).to(tl.float32)
    if STAGE == GRADIENT:
        tl.store(gradient_ptr + piece, _squares(g))
    else:
        length = _length(_squares(g), gradient_ptr, PIECES, SLOTS)
        factor = _factor(length, step)
        n_ptr = noise_ptr + row * (C * area) + place(e, channel, pixel, area, NOISE_CROSSED)
        n = tl.load(n_ptr, mask=known, other=0.0) + tl.where(factor == 0.0, 0.0, g * factor)
        if STAGE == STEPPED:
            tl.store(stepped_ptr + piece, _squares(n))
        else:
            length = _length(_squares(n), stepped_ptr, PIECES, SLOTS)
            n = n * tl.where(length > eps, eps / length, 1.0).to(tl.float32)
            p = unit_pixel(
                tl.load(
                    x_ptr + here + place(e, channel, pixel, area, X_CROSSED), mask=known, other=0
                )
            )
            n = limit(n, -p, 1.0 - p)
            tl.store(n_ptr, n, mask=known)
            if OUT:
                v = limit(p + n, 0.0, 1.0)
                if NORMALISE:
                    v = v - of_channel(channel, mean0, mean1, mean2)
                    v = v * of_channel(channel, inverse0, inverse1, inverse2)
                at = here + place(e, channel, pixel, area, OUT_CROSSED)
                tl.store(out_ptr + at, narrow(v, out_ptr.dtype.element_ty), mask=known)


@triton.jit(do_not_specialize=["first", "rows", "seed_low", "seed_high", "epoch", "pad"])
def l2_step_view_kernel(
    noise_ptr,  # float32 [rows, C, h, w], h = ceil(H/GRAIN), w = ceil(W/GRAIN), updated
    grad_ptr,  # float [B, C, H, W], as the pictures were shown
    x_ptr,  # uint8 [B, C, H, W]
    index_ptr,  # int64 [B]
    out_ptr,  # float [B, C, H, W]; unused without OUT
    gradient_ptr,  # float64 [B, PIECES], sums of squares; unused with one piece
    stepped_ptr,  # float64 [B, PIECES], too
    first,  # picture of this launch
    rows,
    step,  # negative: descend
    eps,
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
    OUT: tl.constexpr,
    NORMALISE: tl.constexpr,  # without, mean is 0 and 1/std is 1
    STAGE: tl.constexpr,
    PIECES: tl.constexpr,
    SLOTS: tl.constexpr,  # the next power of 2
    GRAIN: tl.constexpr,
    CROP: tl.constexpr,
    FLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    height: tl.constexpr = AREA // WIDTH
    i = (first + tl.program_id(0)).to(tl.int64)
    piece = tl.program_id(1)
    e = piece * BLOCK + tl.arange(0, BLOCK)
    channel, pixel = channel_and_pixel(e, BANK_AREA, C, INTERLEAVED)
    row = tl.load(index_ptr + i)
    known = (e < C * BANK_AREA) & (row >= 0) & (row < rows)
    here = i * (C * AREA)
    gradient_ptr += i * PIECES
    stepped_ptr += i * PIECES
    top, left = corner(pixel, WIDTH, GRAIN)
    count = pixels(top, left, height, WIDTH, GRAIN)
    down, right, mirrored = window(ids_ptr, i, seed_low, seed_high, epoch, pad, CROP)
    g = block_gradient(
        grad_ptr + here, channel, top, left, known, down, right, mirrored,
        C, AREA, WIDTH, GRAIN, FLIP, INTERLEAVED and not GRAD_CROSSED,
    )  # fmt: skip
    g = tl.where(known, tl.div_rn(g, count), 0.0)
    if STAGE == GRADIENT:
        tl.store(gradient_ptr + piece, _shown_squares(g, count))
    else:
        factor = _factor(_length(_shown_squares(g, count), gradient_ptr, PIECES, SLOTS), step)
        n_ptr = noise_ptr + row * (C * BANK_AREA)
        n_ptr += place(e, channel, pixel, BANK_AREA, NOISE_CROSSED)
        n = tl.load(n_ptr, mask=known, other=0.0) + tl.where(factor == 0.0, 0.0, g * factor)
        if STAGE == STEPPED:
            tl.store(stepped_ptr + piece, _shown_squares(n, count))
        else:
            length = _length(_shown_squares(n, count), stepped_ptr, PIECES, SLOTS)
            n = n * tl.where(length > eps, eps / length, 1.0).to(tl.float32)
            darker, brighter = block_room(
                x_ptr + here, channel, top, left, known,
                C, AREA, WIDTH, GRAIN, INTERLEAVED and not X_CROSSED,
            )  # fmt: skip
            n = limit(n, -darker, brighter)
            tl.store(n_ptr, n, mask=known)
            if OUT:
                show_block(
                    out_ptr + here, x_ptr + here, n, channel, top, left, known,
                    down, right, mirrored,
                    of_channel(channel, mean0, mean1, mean2),
                    of_channel(channel, inverse0, inverse1, inverse2),
                    C, AREA, WIDTH, GRAIN, CROP, FLIP,
                    INTERLEAVED and not X_CROSSED, INTERLEAVED and not OUT_CROSSED,
                )  # fmt: skip


def l2_step(
    noise, grad, x, index, step, eps, ascend, out, mean, std, ids, seed, epoch, pad, flip, grain
):
    """Launch; the op's signature. Everything dense, x [B, C, H, W]."""
    _common.check_rows("l2_step: index", index, noise.shape[0])
    if x.numel() == 0:
        return
    pictures, size = x.shape[0], noise[0].numel()
    seen = ids is not None or grain > 1
    # a thread that goes through blocks holds more, so that it takes fewer elements
    whole = PIECE if seen else WHOLE
    block = max(256, triton.next_power_of_2(size)) if size <= whole else PIECE
    pieces = triton.cdiv(size, block)
    group, stages, sums = pictures, (APPLY,), (index, index)
    if pieces > 1:
        touched = sum(t[0].nbytes for t in (noise, grad, x, out) if t is not None)
        # tests have small pictures
        group = max(1, (2**18 if _common.interpreted() else CACHE) // touched)
        stages = GRADIENT, STEPPED, APPLY
        sums = torch.empty((2, pictures, pieces), dtype=torch.float64, device=x.device)
    flags = _common.layout_flags(noise=noise, grad=grad, x=x, out=out)
    warps = block // (128 if _common.crossed(flags) else 256)
    kernel, view = l2_step_kernel, {}
    if seen:
        kernel, warps = l2_step_view_kernel, block // 64
        view = _common.view(x, ids, seed, epoch, pad, flip, grain, index)
        view["BANK_AREA"] = noise[0, 0].numel()
    with _common.on_device_of(x):
        for first in range(0, pictures, group):
            for stage in stages:
                kernel[(min(group, pictures - first), pieces)](
                    noise, grad, x, index, grad if out is None else out, *sums, first, noise.shape[0],
                    step if ascend else -step, eps, *_common.normalisation(mean, std), **flags,
                    OUT=out is not None, NORMALISE=bool(mean), STAGE=stage, PIECES=pieces,
                    SLOTS=triton.next_power_of_2(pieces), BLOCK=block, num_warps=warps, **view,
                    enable_fp_fusion=False,
                )  # fmt: skip


def launches():
    """Arguments of launches that are compiled without a GPU, each dtype and branch at least once;
    with them, the tensors that are read singly."""
    index, three = torch.arange(2), [0.5] * 3
    for number, dtype in enumerate(_common.FLOATS):
        for side in (32, 64):  # whole pictures, and pieces
            first = number % 2 == 0
            noise, grad, x, out = (
                _common.example(t, first, side) for t in (torch.float32, dtype, torch.uint8, dtype)
            )
            plain = (None, 7, 0, 0, False, 1)
            yield (noise, grad, x, index, 0.1, 0.1, False, None, [], [], *plain), ()
            yield (noise, grad, x, index, 0.1, 0.1, False, out, three, three, *plain), ()
            other = _common.example(dtype, not first, side)
            singly = ("grad",) if first else ("noise", "x", "out")
            yield (noise, other, x, index, 0.1, 0.1, False, out, three, three, *plain), singly
            for noise, shows, view in _common.views(torch.float32, first, index, side):
                next_input = (out, three, three) if shows else (None, [], [])
                args = (noise, other, x, index, 0.1, 0.1, False)
                yield (*args, *next_input, *view), _common.SINGLY
