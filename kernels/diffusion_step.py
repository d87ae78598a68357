"""diffusion_step in Triton: a program has BLOCK counters of one picture, each of which makes four
neighbouring pixels of a channel. The definition is fastue/ops/diffusion_step."""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common
from fastue.kernels._common import element, limit, normals, philox, unit_pixel


@triton.jit
def _normals(quad, word, use, seed_low, seed_high):
    """[BLOCK, 4]: those of counters `quad` [BLOCK] of the picture with the id `word`."""
    id_low, id_high = word.to(tl.uint32), (word >> 32).to(tl.uint32)
    w0, w1, w2, w3 = philox(
        quad.to(tl.uint32), id_low, id_high, use.to(tl.uint32),
        seed_low.to(tl.uint32), seed_high.to(tl.uint32),
    )  # fmt: skip
    z0, z1, z2, z3 = normals(w0, w1, w2, w3)
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), [quad.shape[0], 4])


@triton.jit(do_not_specialize=["seed_low", "seed_high", "own", "copy"])
def diffusion_step_kernel(
    x_ptr,  # float32 [B, C, H, W], updated
    eps_ptr,  # float [B, C, H, W]; unused without EPS
    y_ptr,  # uint8 [B, C, H, W]; unused without Y
    grad_ptr,  # float32 [B, C, H, W]; unused without GRAD
    ids_ptr,  # int64 [B]
    a, b,  # x0 = a x - b eps
    keep, spread,  # of the noisy copy
    c0, cx, pull, push, sigma,
    seed_low, seed_high,
    own, copy,  # last words of the counters
    C: tl.constexpr,
    AREA: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    X_CROSSED: tl.constexpr,
    EPS_CROSSED: tl.constexpr,
    Y_CROSSED: tl.constexpr,
    GRAD_CROSSED: tl.constexpr,
    EPS: tl.constexpr,
    Y: tl.constexpr,
    NOISY: tl.constexpr,
    GRAD: tl.constexpr,
    DRAWN: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    quads: tl.constexpr = (AREA + 3) // 4  # of a channel
    i = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    # Neighbouring threads have neighbouring elements: in the interleaved order those of all
    # channels.
    if INTERLEAVED:
        channel, first = k % C, k // C * 4
    else:
        channel, first = k // quads, k % quads * 4
    quad = channel * quads + first // 4
    pixel = first[:, None] + tl.arange(0, 4)[None, :]
    channel = channel[:, None]
    real = (k < C * quads)[:, None] & (pixel < AREA)
    here = i * (C * AREA)
    x_ptr += here
    x_at = element(channel, pixel, AREA, C, INTERLEAVED and not X_CROSSED)
    x = tl.load(x_ptr + x_at, mask=real, other=0)
    word = tl.load(ids_ptr + i)
    v = cx * x
    if Y:
        at = element(channel, pixel, AREA, C, INTERLEAVED and not Y_CROSSED)
        aim = unit_pixel(tl.load(y_ptr + here + at, mask=real, other=0)) * 2.0 - 1.0
    if EPS:
        at = element(channel, pixel, AREA, C, INTERLEAVED and not EPS_CROSSED)
        eps = tl.load(eps_ptr + here + at, mask=real, other=0).to(tl.float32)
        x0 = limit(a * x - b * eps, -1.0, 1.0)
        if Y and not NOISY:
            x0 = x0 + pull * (aim - x0)
        v = c0 * x0 + v
    if NOISY:
        z = _normals(quad, word, copy, seed_low, seed_high)
        v = v + pull * ((keep * aim + spread * z) - x)
    if DRAWN:
        v = v + sigma * _normals(quad, word, own, seed_low, seed_high)
    if GRAD:
        at = element(channel, pixel, AREA, C, INTERLEAVED and not GRAD_CROSSED)
        v = v + push * tl.load(grad_ptr + here + at, mask=real, other=0)
    tl.store(x_ptr + x_at, v, mask=real)


def diffusion_step(
    x, eps, y, grad, ids, alpha_bar, c0, cx, pull, noisy, push, sigma, seed, iteration, t
):  # fmt: skip
    """Launch; the op's signature. Everything dense, x [B, C, H, W]."""
    if x.numel() == 0:
        return
    flags = _common.layout_flags(x=x, eps=eps, y=y, grad=grad)
    counters = flags["C"] * (-(-flags["AREA"] // 4))
    block = min(2048 if _common.interpreted() else 256, max(32, triton.next_power_of_2(counters)))
    use = iteration << 8 | t << 16
    purpose = _common.PURPOSE_DIFFUSION_START if eps is None else _common.PURPOSE_DIFFUSION_STEP
    with _common.on_device_of(x):
        diffusion_step_kernel[(len(x), triton.cdiv(counters, block))](
            x, *(x if like is None else like for like in (eps, y, grad)), ids,
            (1 / alpha_bar) ** 0.5, (1 / alpha_bar - 1) ** 0.5,
            alpha_bar**0.5, (1 - alpha_bar) ** 0.5, c0, cx, pull, push, sigma,
            seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF,
            purpose.value | use, _common.PURPOSE_DIFFUSION_COPY.value | use, **flags,
            EPS=eps is not None, Y=y is not None, NOISY=noisy, GRAD=grad is not None,
            DRAWN=sigma > 0, BLOCK=block, num_warps=block // 32, enable_fp_fusion=False,
        )  # fmt: skip


def launches():
    """Arguments of launches that are compiled without a GPU, each dtype and branch at least once;
    with them, the tensors that are read singly: those of channels_last, four pixels of a channel
    being no neighbours there."""
    ids, rest = torch.arange(2), (7, 1, 19)
    for number, dtype in enumerate(_common.FLOATS):
        mixed = number == 2
        x, eps, y, grad = (
            _common.example(t, mixed) for t in (torch.float32, dtype, torch.uint8, torch.float32)
        )
        singly = ("x", "eps", "y", "grad") if mixed else ()
        yield (x, eps, y, None, ids, 0.9, 0.1, 0.9, 0.2, False, 0.0, 0.02, *rest), singly
        yield (x, eps, y, grad, ids, 0.9, 0.1, 0.9, 0.2, True, 0.1, 0.02, *rest), singly
        yield (x, None, None, None, ids, 1.0, 0.0, 0.9, 0.0, False, 0.0, 0.02, *rest), singly
        other = _common.example(dtype, not mixed)
        yield (
            (x, other, None, None, ids, 0.9, 0.1, 0.9, 0.0, False, 0.0, 0.0, *rest),
            ("eps",) if not mixed else ("x",),
        )
