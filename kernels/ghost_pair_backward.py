"""ghost_pair_backward in Triton. A program has a tile of places t of one sample's x2. A launch adds
what another tile u of places does: the Gram matrices of y and of d = y2 - y at u with y2 at t are
made, scaled, multiplied by x and x2 - x at u, and forgotten. x are the inputs and y the errors, and
the other way round. Where there is one place, a program has a sample. The definition is
fastue/ops/ghost_pair_backward."""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common
from fastue.kernels.ghost_pair import RUN, TILE, columns, depth, dots, example

REGISTERS = 128  # as there


@triton.jit(do_not_specialize=["rows", "others", "tile"])
def ghost_pair_backward_kernel(
    grad_ptr,  # float64 [B, 3]
    x_ptr,  # float32 [B, rows, count]
    x2_ptr,
    y_ptr,  # float32 [B, others, count]
    y2_ptr,
    out_ptr,  # float32 [B, rows, count]
    rows,
    others,
    count,
    tile,  # of places u
    ADD: tl.constexpr,  # to what an earlier launch wrote
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    i = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * TILE + tl.arange(0, TILE)
    u = tile * TILE + tl.arange(0, TILE)
    at = i * others * count
    near = tl.zeros((TILE, TILE), tl.float32)  # y.y2
    far = near  # d.y2
    for first in range(0, others, DEPTH):
        k = first + tl.arange(0, DEPTH)
        y = columns(y_ptr + at, k, u, others, count)
        d = columns(y2_ptr + at, k, u, others, count) - y
        shown = columns(y2_ptr + at, k, t, others, count)
        near = tl.dot(tl.trans(y), shown, near, input_precision="ieee")
        far = tl.dot(tl.trans(d), shown, far, input_precision="ieee")
    q, m2 = tl.load(grad_ptr + i * 3 + 1), 2 * tl.load(grad_ptr + i * 3 + 2)
    wide, other = near.to(tl.float64), far.to(tl.float64)
    near, far = (q * wide + m2 * other).to(tl.float32), (m2 * (wide + other)).to(tl.float32)
    at = i * rows * count
    for first in range(0, rows, DEPTH):
        k = first + tl.arange(0, DEPTH)
        x = columns(x_ptr + at, k, u, rows, count)
        d = columns(x2_ptr + at, k, u, rows, count) - x
        v = tl.dot(x, near, input_precision="ieee")
        v = tl.dot(d, far, v, input_precision="ieee")
        if ADD:
            v += columns(out_ptr + at, k, t, rows, count)
        known = (k[:, None] < rows) & (t[None, :] < count)
        tl.store(out_ptr + at + k[:, None] * count + t[None, :], v, mask=known)


@triton.jit
def ghost_pair_backward_linear_kernel(
    grad_ptr,  # float64 [B, 3]
    x_ptr,  # float32 [B, rows]
    x2_ptr,
    y_ptr,  # float32 [B, others]
    y2_ptr,
    out_ptr,  # float32 [B, rows]
    rows,
    others,
    RUN: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    yy, yd, dd = dots(y_ptr + i * others, y2_ptr + i * others, others, RUN)
    q, m2 = tl.load(grad_ptr + i * 3 + 1), 2 * tl.load(grad_ptr + i * 3 + 2)
    near = (q * (yy + yd) + m2 * (yd + dd)).to(tl.float32)
    far = (m2 * (yy + (2 * yd + dd))).to(tl.float32)
    at = i * rows
    for first in range(0, rows, RUN):
        k = first + tl.arange(0, RUN)
        x = tl.load(x_ptr + at + k, mask=k < rows, other=0.0)
        d = tl.load(x2_ptr + at + k, mask=k < rows, other=0.0) - x
        tl.store(out_ptr + at + k, x * near + d * far, mask=k < rows)


def _side(grad, x, x2, y, y2):
    """The gradient of x2 [B, rows, count]."""
    batch, rows, count = x.shape
    others, out = y.shape[1], torch.empty_like(x2)
    if out.numel() == 0:
        return out
    if count == 1:
        ghost_pair_backward_linear_kernel[(batch,)](
            grad, x, x2, y, y2, out, rows, others, RUN=RUN, num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
        return out
    tiles = triton.cdiv(count, TILE)
    for tile in range(tiles):
        ghost_pair_backward_kernel[(tiles, batch)](
            grad, x, x2, y, y2, out, rows, others, count, tile, ADD=tile > 0, TILE=TILE,
            DEPTH=depth(), num_warps=4,
        )  # fmt: skip
    return out


def ghost_pair_backward(grad, a, e, a2, e2):
    """Launch; the op's signature. Everything contiguous, a [B, d, T] and e [B, p, T]."""
    with _common.on_device_of(a):
        return _side(grad, a, a2, e, e2), _side(grad, e, e2, a, a2)


def launches():
    """Arguments of launches that are compiled without a GPU, each branch at least once; with them,
    the tensors that are read singly."""
    grad = torch.zeros((2, 3), dtype=torch.float64)
    yield (grad, *example(64, 32, 64)), ()
    yield (grad, *example(64, 32, 49)), ("x", "x2", "y", "y2", "out")
    yield (grad, *example(64, 32, 1)), ()
