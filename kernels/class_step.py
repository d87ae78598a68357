"""class_step in Triton: a program owns BLOCK elements of one class and walks its samples in batch order, so the sum has
the same bits every time and no atomics are needed. The definition is fastue/ops/class_step."""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common
from fastue.kernels._common import channel_and_pixel, limit, moved, place, unit_pixel


@triton.jit(do_not_specialize=["area"])
def class_step_kernel(
    noise_ptr,  # float32 [K, C, H, W], updated
    grad_ptr,  # float [B, C, H, W]
    x_ptr,  # uint8 [B, C, H, W]
    order_ptr,  # int64 [B], samples sorted by class, stable
    start_ptr,  # int64 [K + 1], where each class starts in `order`
    area,  # H*W
    step,  # negative: ascend
    eps,
    C: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    GRAD_CROSSED: tl.constexpr,
    X_CROSSED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    k = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = e < C * area
    first, last = tl.load(start_ptr + k), tl.load(start_ptr + k + 1)
    if last > first:
        channel, pixel = channel_and_pixel(e, area, C, INTERLEAVED)
        grad_at = place(e, channel, pixel, area, C, INTERLEAVED, GRAD_CROSSED)
        x_at = place(e, channel, pixel, area, C, INTERLEAVED, X_CROSSED)
        size = (C * area).to(tl.int64)
        n = tl.load(noise_ptr + k * size + e, mask=inside, other=0.0)
        total = tl.zeros((BLOCK,), tl.float32)
        for s in range(first, last):
            i = tl.load(order_ptr + s)
            g = tl.load(grad_ptr + i * size + grad_at, mask=inside, other=0).to(tl.float32)
            p = unit_pixel(tl.load(x_ptr + i * size + x_at, mask=inside, other=0))
            total += limit(limit(p + n, 0.0, 1.0) - moved(g, step) - p, -eps, eps)
        count = (last - first).to(tl.float32)
        n = limit(tl.div_rn(total, tl.zeros_like(total) + count), -eps, eps)
        tl.store(noise_ptr + k * size + e, n, mask=inside)


def class_step(noise, grad, x, y, step, eps, ascend):
    """Launch; the op's signature. Everything dense, x [B, C, H, W]. Nothing here waits for the device."""
    k = noise.shape[0]
    _common.check_rows("class_step: y", y, k)
    if x.numel() == 0:
        return
    elements = x[0].numel()
    block = _common.block_size(elements, x.device, 512)  # a program lives long: more of them, fewer registers
    with _common.on_device_of(x):
        classes, order = torch.sort(y, stable=True)
        start = torch.searchsorted(classes, torch.arange(k + 1, device=y.device))
        class_step_kernel[(k, triton.cdiv(elements, block))](
            noise, grad, x, order, start, x.shape[2] * x.shape[3], -step if ascend else step, eps,
            **_common.layout_flags(noise, grad=grad, x=x), BLOCK=block, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip


def compiled():
    """(kernel, argument types, constants) that are compiled without a GPU: each dtype, each layout at least once."""
    for number, grad in enumerate(("*fp32", "*bf16", "*fp16")):
        types = dict(noise_ptr="*fp32", grad_ptr=grad, x_ptr="*u8", order_ptr="*i64", start_ptr="*i64", area="i32")
        types |= dict(step="fp32", eps="fp32")
        yield (
            class_step_kernel,
            types,
            dict(C=3, INTERLEAVED=number != 1, GRAD_CROSSED=number == 2, X_CROSSED=number == 1, BLOCK=512),
        )
