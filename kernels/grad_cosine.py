"""grad_cosine in Triton: a program sums a piece of one pair of tensors in float64, a second launch
adds the sums of the pieces in their order. The definition is fastue/ops/grad_cosine."""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common
from fastue.kernels._lists import PIECE, find, load_pair, table_of

SUMS = 1024  # of pieces, that the last program looks at together


@triton.jit(do_not_specialize=["tensors"])
def grad_cosine_kernel(
    table_ptr,  # int64 [5, tensors]
    tensors,
    sums_ptr,  # float64 [3, pieces]
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    piece = tl.program_id(0)
    g_at, h_at, _, first, size = find(table_ptr, tensors, piece, STEPS, BLOCK)
    g, h = load_pair(g_at, h_at, first, size, DTYPE, ALIGNED, BLOCK)
    target, difference = g.to(tl.float64), (h - g).to(tl.float64)
    pieces = tl.num_programs(0)
    tl.store(sums_ptr + piece, tl.sum(target * target, 0))
    tl.store(sums_ptr + pieces + piece, tl.sum(target * difference, 0))
    tl.store(sums_ptr + 2 * pieces + piece, tl.sum(difference * difference, 0))


@triton.jit(do_not_specialize=["pieces"])
def add_sums_kernel(
    sums_ptr,  # float64 [3, pieces]
    out_ptr,  # float64 [3]
    pieces,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, pieces, BLOCK):
        j = first + tl.arange(0, BLOCK)
        total += tl.load(sums_ptr + row * pieces + j, mask=j < pieces, other=0.0)
    tl.store(out_ptr + row, tl.sum(total, 0))


def grad_cosine(g, h):
    """Launch; the op's signature. Nothing here waits for the device."""
    table, pieces, options = table_of(g, h, h)
    out = torch.zeros(3, dtype=torch.float64, device=g[0].device)
    if pieces == 0:
        return out
    sums = torch.empty((3, pieces), dtype=torch.float64, device=out.device)
    with _common.on_device_of(out):
        grad_cosine_kernel[(pieces,)](table, table.shape[1], sums, **options, num_warps=4)
        add_sums_kernel[(3,)](sums, out, pieces, BLOCK=SUMS, num_warps=4)
    return out


def launches():
    """Arguments of launches that are compiled without a GPU, each dtype and branch at least once;
    with them, the tensors that are read singly."""
    for dtype in _common.FLOATS:
        t = torch.zeros(2 * PIECE, dtype=dtype)
        yield ([t], [t]), ()
        yield ([t, t[1:]], [t, t[1:]]), ()
