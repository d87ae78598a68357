"""What grad_cosine and its gradient share: lists of tensors behind a table of addresses.

Row by row the table has the address of g, of h, of what is written, the number of elements, and the
number of pieces before the tensor. It is copied from pinned memory, so that nobody waits.
"""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common

PIECE = 1024  # elements of a program


@triton.jit
def find(table_ptr, tensors, piece, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Addresses (g, h, out) of the tensor that a piece is of, its first element and the tensor's
    size."""
    low = piece * 0
    high = tensors
    for _ in tl.static_range(STEPS):  # the last tensor whose first piece is not behind
        middle = (low + high) // 2
        before = tl.load(table_ptr + 4 * tensors + tl.minimum(middle, tensors - 1)) <= piece
        inside = middle < high
        low = tl.where(inside & before, middle, low)
        high = tl.where(inside & (before == 0), middle, high)
    first = (piece - tl.load(table_ptr + 4 * tensors + low)) * BLOCK
    size = tl.load(table_ptr + 3 * tensors + low)
    return (
        tl.load(table_ptr + low),
        tl.load(table_ptr + tensors + low),
        tl.load(table_ptr + 2 * tensors + low),
        first,
        size,
    )


@triton.jit
def pointer(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    ptr = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        ptr = tl.multiple_of(ptr, 16)
    return ptr


@triton.jit
def load_pair(
    g_at, h_at, first, size, DTYPE: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr
):
    """Float32 [BLOCK] of g and of h, 0 behind the last element. A whole piece takes no mask, which
    would make the accesses single ones."""
    e = first + tl.arange(0, BLOCK)
    g_ptr, h_ptr = pointer(g_at, DTYPE, ALIGNED) + e, pointer(h_at, DTYPE, ALIGNED) + e
    if first + BLOCK <= size:
        g = tl.load(g_ptr)
        h = tl.load(h_ptr)
    else:
        g = tl.load(g_ptr, mask=e < size, other=0)
        h = tl.load(h_ptr, mask=e < size, other=0)
    return g.to(tl.float32), h.to(tl.float32)


_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def table_of(g, h, out) -> tuple[torch.Tensor, int, dict]:
    """The table int64 [5, tensors] on the device, of tensors that have elements; the number of
    pieces; a kernel's constants."""
    block = 8192 if _common.interpreted() else PIECE
    rows = [
        (a.data_ptr(), b.data_ptr(), c.data_ptr(), a.numel())
        for a, b, c in zip(g, h, out, strict=True)
        if a.numel()
    ]
    pieces, before = 0, []
    for row in rows:
        before.append(pieces)
        pieces += triton.cdiv(row[3], block)
    table = torch.tensor([*zip(*rows, strict=True), before] if rows else [], dtype=torch.int64)
    if g and g[0].is_cuda:
        table = table.pin_memory().to(g[0].device, non_blocking=True)
    options = dict(
        DTYPE=_DTYPES[g[0].dtype],
        ALIGNED=all(address % 16 == 0 for row in rows for address in row[:3]),
        STEPS=max(len(rows) - 1, 1).bit_length(),
        BLOCK=block,
    )
    return table, pieces, options
