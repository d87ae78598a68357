"""linf_step in Triton: one program for BLOCK elements of one picture. The definition is fastue/ops/linf_step."""

import triton
import triton.language as tl
from fastue.kernels import _common
from fastue.kernels._common import (
    channel_and_pixel,
    limit,
    moved,
    narrow,
    nearest,
    of_channel,
    place,
    unit_pixel,
)


@triton.jit(do_not_specialize=["rows", "area", "mask_stride"])
def linf_step_kernel(
    noise_ptr,  # float32 or int8 [rows, C, H, W], updated
    grad_ptr,  # float [B, C, H, W]
    x_ptr,  # uint8 [B, C, H, W]
    index_ptr,  # int64 [B]
    mask_ptr,  # bool [B or 1, 1, H, W]; unused without MASK
    out_ptr,  # float [B, C, H, W]; unused without OUT
    rows,
    area,  # H*W
    mask_stride,  # 0: one mask for all pictures
    step,  # negative: ascend
    eps,
    scale,
    inverse,  # 1/scale
    mean0, mean1, mean2, inverse0, inverse1, inverse2,
    C: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    GRAD_CROSSED: tl.constexpr,
    X_CROSSED: tl.constexpr,
    OUT_CROSSED: tl.constexpr,
    COMPACT: tl.constexpr,
    MASK: tl.constexpr,
    OUT: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel, pixel = channel_and_pixel(e, area, C, INTERLEAVED)
    row = tl.load(index_ptr + i)
    known = (e < C * area) & (row >= 0) & (row < rows)
    size = (C * area).to(tl.int64)
    n_ptr = noise_ptr + row * size + e
    n = tl.load(n_ptr, mask=known, other=0).to(tl.float32)
    if COMPACT:
        n = n * scale
    g = tl.load(grad_ptr + i * size + place(e, channel, pixel, area, C, INTERLEAVED, GRAD_CROSSED), mask=known,
                other=0).to(tl.float32)  # fmt: skip
    x = tl.load(x_ptr + i * size + place(e, channel, pixel, area, C, INTERLEAVED, X_CROSSED), mask=known, other=0)
    p = unit_pixel(x)
    n = limit(limit(n - moved(g, step), -eps, eps), -p, 1.0 - p)
    if MASK:
        kept = tl.load(mask_ptr + i * mask_stride + pixel, mask=known, other=0)
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
            v = (v - of_channel(channel, mean0, mean1, mean2)) * of_channel(channel, inverse0, inverse1, inverse2)
        at = place(e, channel, pixel, area, C, INTERLEAVED, OUT_CROSSED)
        tl.store(out_ptr + i * size + at, narrow(v, out_ptr.dtype.element_ty), mask=known)


def linf_step(noise, grad, x, index, step, eps, ascend, scale, mask, out, mean, std):
    """Launch; the op's signature. Everything dense, x [B, C, H, W]."""
    _common.check_rows("linf_step: index", index, noise.shape[0])
    if x.numel() == 0:
        return
    b, _, h, w = x.shape
    elements = x[0].numel()
    block = _common.block_size(elements, x.device)
    with _common.on_device_of(x):
        linf_step_kernel[(b, triton.cdiv(elements, block))](
            noise, grad, x, index, index if mask is None else mask, grad if out is None else out,
            noise.shape[0], h * w, 0 if mask is None or mask.shape[0] == 1 else h * w,
            -step if ascend else step, eps, scale, 1 / scale, *_common.normalisation(mean, std),
            **_common.layout_flags(noise, grad=grad, x=x, out=out),
            COMPACT=not noise.is_floating_point(), MASK=mask is not None, OUT=out is not None, NORMALISE=bool(mean),
            BLOCK=block, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip


def compiled():
    """(kernel, argument types, constants) that are compiled without a GPU: each dtype, each branch at least once."""
    for number, (noise, grad) in enumerate((n, g) for n in ("*fp32", "*i8") for g in ("*fp32", "*bf16", "*fp16")):
        types = dict(noise_ptr=noise, grad_ptr=grad, x_ptr="*u8", index_ptr="*i64", mask_ptr="*i1", out_ptr=grad)
        types |= dict.fromkeys(("rows", "area", "mask_stride"), "i32")
        types |= dict.fromkeys(("step", "eps", "scale", "inverse", "mean0", "mean1", "mean2"), "fp32")
        types |= dict.fromkeys(("inverse0", "inverse1", "inverse2"), "fp32")
        yield linf_step_kernel, types, dict(
            C=3, INTERLEAVED=number % 2 == 0, GRAD_CROSSED=number == 1, X_CROSSED=number in (1, 5),
            OUT_CROSSED=number == 4, COMPACT=noise == "*i8", MASK=number in (2, 5), OUT=number != 0,
            NORMALISE=number != 0, BLOCK=1024,
        )  # fmt: skip
