"""ghost_pair in Triton. A program has two tiles of places of one sample: it makes the products of
all columns of x and of d = x2 - x of one with those of the other, for inputs and for errors, and
adds up the products of both in float64. Of two tiles only one order is made. The programs' sums are
added up by torch, in a fixed order. Where there is one place, a program has a sample. The
definition is fastue/ops/ghost_pair."""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common

TILE = 32  # places
DEPTH = 16  # rows at a time
RUN = 1024  # rows at a time where there is one place
REGISTERS = 176  # eight products of tiles and what they are made of; limited by arithmetic


@triton.jit
def columns(x_ptr, k, places, rows, count):
    """Rows k [DEPTH] and places [TILE] of a sample [rows, count]; zero where there is nothing."""
    known = (k[:, None] < rows) & (places[None, :] < count)
    return tl.load(x_ptr + k[:, None] * count + places[None, :], mask=known, other=0.0)


@triton.jit
def _grams(x_ptr, x2_ptr, rows, t, u, count, TILE: tl.constexpr, DEPTH: tl.constexpr):
    """x.x, x.d, d.x and d.d [TILE, TILE] of places t [TILE] and u [TILE]."""
    xx = tl.zeros((TILE, TILE), tl.float32)
    xd, dx, dd = xx, xx, xx
    for first in range(0, rows, DEPTH):
        k = first + tl.arange(0, DEPTH)
        xt, xu = columns(x_ptr, k, t, rows, count), columns(x_ptr, k, u, rows, count)
        dt = columns(x2_ptr, k, t, rows, count) - xt
        du = columns(x2_ptr, k, u, rows, count) - xu
        xx = tl.dot(tl.trans(xt), xu, xx, input_precision="ieee")
        xd = tl.dot(tl.trans(xt), du, xd, input_precision="ieee")
        dx = tl.dot(tl.trans(dt), xu, dx, input_precision="ieee")
        dd = tl.dot(tl.trans(dt), du, dd, input_precision="ieee")
    return xx, xd, dx, dd


@triton.jit
def dots(x_ptr, x2_ptr, rows, RUN: tl.constexpr):
    """x.x, x.d and d.d, d = x2 - x, of vectors of `rows`."""
    xx = tl.zeros((RUN,), tl.float32)
    xd, dd = xx, xx
    for first in range(0, rows, RUN):
        k = first + tl.arange(0, RUN)
        x = tl.load(x_ptr + k, mask=k < rows, other=0.0)
        d = tl.load(x2_ptr + k, mask=k < rows, other=0.0) - x
        xx += x * x
        xd += x * d
        dd += d * d
    return (
        tl.sum(xx.to(tl.float64), 0),
        tl.sum(xd.to(tl.float64), 0),
        tl.sum(dd.to(tl.float64), 0),
    )


@triton.jit
def _triple(xx, xd, dx, dd, yy, yg, gy, gg):
    """n, q and m of two places, in both orders, in float64; d is of the inputs, g of the errors."""
    xx, xd, dx, dd = xx.to(tl.float64), xd.to(tl.float64), dx.to(tl.float64), dd.to(tl.float64)
    yy, yg, gy, gg = yy.to(tl.float64), yg.to(tl.float64), gy.to(tl.float64), gg.to(tl.float64)
    n = 2 * (xx * yy)
    q = (xd + dx) * yy + (xd * yg + dx * gy) + xx * (yg + gy)
    m = 2 * ((yy + yg + gy + gg) * dd + ((yg + gg) * dx + (gy + gg) * xd) + gg * xx)
    return n, q, m


@triton.jit(do_not_specialize=["inputs", "outputs"])
def ghost_pair_kernel(
    a_ptr,  # float32 [B, inputs, count]
    e_ptr,  # float32 [B, outputs, count]
    a2_ptr,
    e2_ptr,
    sums_ptr,  # float64 [B, tiles, steps, 3]
    inputs,
    outputs,
    count,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    i = tl.program_id(2).to(tl.int64)
    tiles, steps = tl.num_programs(0), tl.num_programs(1)
    tile, step = tl.program_id(0), tl.program_id(1)
    t = tile * TILE + tl.arange(0, TILE)
    u = (tile + step) % tiles * TILE + tl.arange(0, TILE)
    at = i * inputs * count
    xx, xd, dx, dd = _grams(a_ptr + at, a2_ptr + at, inputs, t, u, count, TILE, DEPTH)
    at = i * outputs * count
    yy, yg, gy, gg = _grams(e_ptr + at, e2_ptr + at, outputs, t, u, count, TILE, DEPTH)
    n, q, m = _triple(xx, xd, dx, dd, yy, yg, gy, gg)
    # a tile with itself has both orders anyway; tiles half of the way apart meet twice
    weight = tl.where((step == 0) | (2 * step == tiles), 0.5, 1.0)
    sums_ptr += ((i * tiles + tile) * steps + step) * 3
    tl.store(sums_ptr, tl.sum(tl.sum(n, 1), 0) * weight)
    tl.store(sums_ptr + 1, tl.sum(tl.sum(q, 1), 0) * weight)
    tl.store(sums_ptr + 2, tl.sum(tl.sum(m, 1), 0) * weight)


@triton.jit
def ghost_pair_linear_kernel(
    a_ptr,  # float32 [B, inputs]
    e_ptr,  # float32 [B, outputs]
    a2_ptr,
    e2_ptr,
    out_ptr,  # float64 [B, 3]
    inputs,
    outputs,
    RUN: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    xx, xd, dd = dots(a_ptr + i * inputs, a2_ptr + i * inputs, inputs, RUN)
    yy, yg, gg = dots(e_ptr + i * outputs, e2_ptr + i * outputs, outputs, RUN)
    n, q, m = _triple(xx, xd, xd, dd, yy, yg, yg, gg)
    tl.store(out_ptr + i * 3, n * 0.5)
    tl.store(out_ptr + i * 3 + 1, q * 0.5)
    tl.store(out_ptr + i * 3 + 2, m * 0.5)


def ghost_pair(a, e, a2, e2):
    """Launch; the op's signature. Everything contiguous, a [B, d, T] and e [B, p, T]."""
    batch, inputs, count = a.shape
    outputs = e.shape[1]
    if batch == 0 or count == 0:
        return a.new_zeros((batch, 3), dtype=torch.float64)
    with _common.on_device_of(a):
        if count == 1:
            out = a.new_empty((batch, 3), dtype=torch.float64)
            ghost_pair_linear_kernel[(batch,)](
                a, e, a2, e2, out, inputs, outputs, RUN=RUN, num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
            return out
        tiles = triton.cdiv(count, TILE)
        sums = a.new_empty((batch, tiles, tiles // 2 + 1, 3), dtype=torch.float64)
        ghost_pair_kernel[(tiles, tiles // 2 + 1, batch)](
            a, e, a2, e2, sums, inputs, outputs, count, TILE=TILE, DEPTH=depth(), num_warps=8,
        )  # fmt: skip
    return sums.sum((1, 2))


def depth():
    return 256 if _common.interpreted() else DEPTH


def example(inputs, outputs, count):
    """A small batch for `launches`."""
    a, e = torch.zeros((2, inputs, count)), torch.zeros((2, outputs, count))
    return a, e, a.clone(), e.clone()


def launches():
    """Arguments of launches that are compiled without a GPU, each branch at least once; with them,
    the tensors that are read singly."""
    singly = ("a", "e", "a2", "e2")  # a tile has two numbers a thread
    yield example(64, 32, 64), singly
    yield example(64, 32, 49), singly
    yield example(64, 32, 1), ()
