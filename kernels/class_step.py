"""class_step in Triton: a program owns BLOCK elements of one class and walks its samples in batch
order, so the sum has the same bits every time and no atomics are needed. The definition is
fastue/ops/class_step."""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common
from fastue.kernels._common import (
    block_gradient,
    channel_and_pixel,
    corner,
    element,
    inside,
    limit,
    moved,
    pixels,
    place,
    unit_pixel,
    window,
)

PROGRAMS = 512  # enough to occupy a GPU; classes may be as few as 10


@triton.jit
def class_step_kernel(
    noise_ptr,  # float32 [K, C, H, W], updated
    grad_ptr,  # float [B, C, H, W]
    x_ptr,  # uint8 [B, C, H, W]
    order_ptr,  # int64 [B], samples sorted by class, stable
    start_ptr,  # int64 [K + 1], where each class starts in `order`
    step,  # negative: ascend
    eps,
    C: tl.constexpr,
    AREA: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    NOISE_CROSSED: tl.constexpr,
    GRAD_CROSSED: tl.constexpr,
    X_CROSSED: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,  # samples on their way through shared memory
    UNROLL: tl.constexpr,  # samples on their way to registers
):
    area: tl.constexpr = AREA
    k = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = e < C * area
    first, last = tl.load(start_ptr + k), tl.load(start_ptr + k + 1)
    if last > first:
        channel, pixel = channel_and_pixel(e, area, C, INTERLEAVED)
        grad_at = place(e, channel, pixel, area, GRAD_CROSSED)
        x_at = place(e, channel, pixel, area, X_CROSSED)
        n_ptr = noise_ptr + k * (C * area) + place(e, channel, pixel, area, NOISE_CROSSED)
        n = tl.load(n_ptr, mask=inside, other=0.0)
        total = tl.zeros((BLOCK,), tl.float32)
        for s in tl.range(first, last, num_stages=STAGES, loop_unroll_factor=UNROLL):
            i = tl.load(order_ptr + s) * (C * area)
            g = tl.load(grad_ptr + i + grad_at, mask=inside, other=0).to(tl.float32)
            p = unit_pixel(tl.load(x_ptr + i + x_at, mask=inside, other=0))
            total += limit(limit(p + n, 0.0, 1.0) - moved(g, step) - p, -eps, eps)
        count = (last - first).to(tl.float32)
        n = limit(tl.div_rn(total, tl.zeros_like(total) + count), -eps, eps)
        tl.store(n_ptr, n, mask=inside)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "epoch", "pad"])
def class_step_view_kernel(
    noise_ptr,  # float32 [K, C, h, w], h = ceil(H/GRAIN), w = ceil(W/GRAIN), updated
    grad_ptr,  # float [B, C, H, W], as the pictures were shown
    x_ptr,  # uint8 [B, C, H, W]
    order_ptr,  # int64 [B], samples sorted by class, stable
    start_ptr,  # int64 [K + 1], where each class starts in `order`
    step,  # negative: ascend
    eps,
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
    GRAIN: tl.constexpr,
    CROP: tl.constexpr,
    FLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    height: tl.constexpr = AREA // WIDTH
    k = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = e < C * BANK_AREA
    first, last = tl.load(start_ptr + k), tl.load(start_ptr + k + 1)
    if last > first:
        channel, pixel = channel_and_pixel(e, BANK_AREA, C, INTERLEAVED)
        top, left = corner(pixel, WIDTH, GRAIN)
        n_ptr = noise_ptr + k * (C * BANK_AREA)
        n_ptr += place(e, channel, pixel, BANK_AREA, NOISE_CROSSED)
        n = tl.load(n_ptr, mask=known, other=0.0)
        total = tl.zeros((BLOCK,), tl.float32)
        for s in range(first, last):
            i = tl.load(order_ptr + s)
            here = i * (C * AREA)
            down, right, mirrored = window(ids_ptr, i, seed_low, seed_high, epoch, pad, CROP)
            g = block_gradient(
                grad_ptr + here, channel, top, left, known, down, right, mirrored,
                C, AREA, WIDTH, GRAIN, FLIP, INTERLEAVED and not GRAD_CROSSED,
            )  # fmt: skip
            move = moved(g, step)
            stepped = tl.zeros((BLOCK,), tl.float32)
            for t in range(GRAIN * GRAIN):
                row, column = top + t // GRAIN, left + t % GRAIN
                real = known & inside(row, column, height, WIDTH)
                at = element(channel, row * WIDTH + column, AREA, C, INTERLEAVED and not X_CROSSED)
                p = unit_pixel(tl.load(x_ptr + here + at, mask=real, other=0))
                v = limit(limit(p + n, 0.0, 1.0) - move - p, -eps, eps)
                stepped += tl.where(real, v, 0.0)
            total += stepped
        count = (last - first).to(tl.float32) * pixels(top, left, height, WIDTH, GRAIN)
        n = limit(tl.div_rn(total, count), -eps, eps)
        tl.store(n_ptr, n, mask=known)


def blocking(classes: int, flags: dict[str, bool | int]) -> dict[str, int]:
    """BLOCK smaller where there are few, down to a warp, and several samples on their way at once:
    a program waits for memory most of the time. Asynchronous copies have four bytes at least, so
    that what is read singly takes registers."""
    sizes = _common.blocking(flags, scattered=True)
    if _common.interpreted():
        return sizes | {"STAGES": 1, "UNROLL": 1}
    elements, block = flags["C"] * flags["AREA"], min(512, sizes["BLOCK"])
    while block > 128 and classes * triton.cdiv(elements, block) < PROGRAMS:
        block //= 2
    warps = block // 128
    crossed = flags["GRAD_CROSSED"] or flags["X_CROSSED"]
    ahead = (
        {"STAGES": 1, "UNROLL": 4}
        if crossed or elements % 4
        else {"STAGES": 16 // warps, "UNROLL": 1}
    )
    return {"BLOCK": block, "num_warps": warps, **ahead}


def view_blocking(classes: int, elements: int) -> dict[str, int]:
    """BLOCK and num_warps, an element a thread: few elements, and each walks many pixels."""
    if _common.interpreted():
        return {"BLOCK": triton.next_power_of_2(elements), "num_warps": 1}
    block = 128
    while block > 32 and classes * triton.cdiv(elements, block) < PROGRAMS:
        block //= 2
    return {"BLOCK": block, "num_warps": block // 32}


def class_step(noise, grad, x, y, step, eps, ascend, ids, seed, epoch, pad, flip, grain):
    """Launch; the op's signature. Everything dense, x [B, C, H, W]. Nothing here waits for the
    device."""
    k, size = noise.shape[0], noise[0].numel()
    _common.check_rows("class_step: y", y, k)
    if x.numel() == 0:
        return
    flags = _common.layout_flags(noise=noise, grad=grad, x=x)
    kernel, sizes = class_step_kernel, blocking(k, flags)
    if ids is not None or grain > 1:
        kernel, sizes = class_step_view_kernel, view_blocking(k, size)
        sizes |= _common.view(x, ids, seed, epoch, pad, flip, grain, y)
        sizes["BANK_AREA"] = noise[0, 0].numel()
    with _common.on_device_of(x):
        classes, order = torch.sort(y, stable=True)
        start = torch.searchsorted(classes, torch.arange(k + 1, device=y.device))
        kernel[(k, triton.cdiv(size, sizes["BLOCK"]))](
            noise, grad, x, order, start, -step if ascend else step, eps,
            **flags, **sizes, enable_fp_fusion=False,
        )  # fmt: skip


def launches():
    """Arguments of launches that are compiled without a GPU, each dtype and branch at least once;
    with them, the tensors that are read singly."""
    y = torch.arange(2)
    for number, dtype in enumerate(_common.FLOATS):
        first = number % 2 == 0
        grad, x = _common.example(dtype, first), _common.example(torch.uint8, first)
        plain = (None, 7, 0, 0, False, 1)
        for classes in (10, 1000):
            noise = torch.zeros((classes, 3, 32, 32)).contiguous(memory_format=torch.channels_last)
            noise = noise if first else noise.contiguous()
            yield (noise, grad, x, y, 0.1, 0.1, False, *plain), ()
        other = _common.example(torch.uint8, not first)
        singly = ("x",) if first else ("noise", "grad")
        yield (noise, grad, other, y, 0.1, 0.1, False, *plain), singly
        for noise, _, view in _common.views(torch.float32, first, y):
            yield (noise, grad, other, y, 0.1, 0.1, False, *view), _common.SINGLY
