"""l2_step in Triton: a program owns a sample and goes over it three times: gradient, step,
projection. It recomputes the step rather than read back what it wrote. The definition is fastue/ops/l2_step."""

import triton
import triton.language as tl
from fastue.kernels import _common
from fastue.kernels._common import channel_and_pixel, limit, narrow, of_channel, place, unit_pixel


@triton.jit
def _stepped(noise_ptr, grad_ptr, e, at, inside, factor):
    """The noise after the step, before it is projected."""
    n = tl.load(noise_ptr + e, mask=inside, other=0.0)
    g = tl.load(grad_ptr + at, mask=inside, other=0).to(tl.float32)
    return n + tl.where(factor == 0.0, 0.0, g * factor)


@triton.jit(do_not_specialize=["rows", "area"])
def l2_step_kernel(
    noise_ptr,  # float32 [rows, C, H, W], updated
    grad_ptr,  # float [B, C, H, W]
    x_ptr,  # uint8 [B, C, H, W]
    index_ptr,  # int64 [B]
    out_ptr,  # float [B, C, H, W]; unused without OUT
    rows,
    area,  # H*W
    step,  # negative: descend
    eps,
    mean0, mean1, mean2, inverse0, inverse1, inverse2,
    C: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    GRAD_CROSSED: tl.constexpr,
    X_CROSSED: tl.constexpr,
    OUT_CROSSED: tl.constexpr,
    OUT: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64)
    row = tl.load(index_ptr + i)
    if (row >= 0) & (row < rows):
        size = C * area
        noise_ptr += row * size
        grad_ptr += i * size
        x_ptr += i * size
        out_ptr += i * size
        squares = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, size, BLOCK):
            e = start + tl.arange(0, BLOCK)
            g = tl.load(grad_ptr + e, mask=e < size, other=0).to(tl.float32).to(tl.float64)
            squares += g * g
        length = tl.sqrt(tl.sum(squares, 0))
        usable = (length > 0) & (length < float("inf"))  # no direction, no move
        factor = tl.where(usable, step / tl.where(usable, length, 1.0), 0.0).to(tl.float32)
        squares = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, size, BLOCK):
            e = start + tl.arange(0, BLOCK)
            channel, pixel = channel_and_pixel(e, area, C, INTERLEAVED)
            at = place(e, channel, pixel, area, C, INTERLEAVED, GRAD_CROSSED)
            n = _stepped(noise_ptr, grad_ptr, e, at, e < size, factor).to(tl.float64)
            squares += n * n
        length = tl.sqrt(tl.sum(squares, 0))
        shrink = tl.where(length > eps, eps / length, 1.0).to(tl.float32)
        for start in range(0, size, BLOCK):
            e = start + tl.arange(0, BLOCK)
            channel, pixel = channel_and_pixel(e, area, C, INTERLEAVED)
            at = place(e, channel, pixel, area, C, INTERLEAVED, GRAD_CROSSED)
            n = _stepped(noise_ptr, grad_ptr, e, at, e < size, factor) * shrink
            at = place(e, channel, pixel, area, C, INTERLEAVED, X_CROSSED)
            p = unit_pixel(tl.load(x_ptr + at, mask=e < size, other=0))
            n = limit(n, -p, 1.0 - p)
            tl.store(noise_ptr + e, n, mask=e < size)
            if OUT:
                v = limit(p + n, 0.0, 1.0)
                if NORMALISE:
                    v = (v - of_channel(channel, mean0, mean1, mean2)) * of_channel(
                        channel, inverse0, inverse1, inverse2
                    )
                at = place(e, channel, pixel, area, C, INTERLEAVED, OUT_CROSSED)
                tl.store(out_ptr + at, narrow(v, out_ptr.dtype.element_ty), mask=e < size)


def l2_step(noise, grad, x, index, step, eps, ascend, out, mean, std):
    """Launch; the op's signature. Everything dense, x [B, C, H, W]."""
    _common.check_rows("l2_step: index", index, noise.shape[0])
    if x.numel() == 0:
        return
    with _common.on_device_of(x):
        l2_step_kernel[(x.shape[0],)](
            noise, grad, x, index, grad if out is None else out, noise.shape[0], x.shape[2] * x.shape[3],
            step if ascend else -step, eps, *_common.normalisation(mean, std),
            **_common.layout_flags(noise, grad=grad, x=x, out=out), OUT=out is not None, NORMALISE=bool(mean),
            BLOCK=_common.block_size(x[0].numel(), x.device), num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip


def compiled():
    """(kernel, argument types, constants) that are compiled without a GPU: each dtype, each branch at least once."""
    for number, grad in enumerate(("*fp32", "*bf16", "*fp16")):
        types = dict(noise_ptr="*fp32", grad_ptr=grad, x_ptr="*u8", index_ptr="*i64", out_ptr=grad)
        types |= dict.fromkeys(("rows", "area"), "i32")
        types |= dict.fromkeys(("step", "eps", "mean0", "mean1", "mean2"), "fp32")
        types |= dict.fromkeys(("inverse0", "inverse1", "inverse2"), "fp32")
        yield l2_step_kernel, types, dict(
            C=3, INTERLEAVED=number != 1, GRAD_CROSSED=number == 1, X_CROSSED=number == 2, OUT_CROSSED=number == 2,
            OUT=number != 0, NORMALISE=number != 0, BLOCK=1024,
        )  # fmt: skip
