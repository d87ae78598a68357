"""grad_cosine_backward in Triton: a program has a piece of one pair of tensors. The definition is
fastue/ops/grad_cosine_backward."""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common
from fastue.kernels._common import narrow
from fastue.kernels._lists import PIECE, find, load_pair, pointer, table_of


@triton.jit(do_not_specialize=["tensors"])
def grad_cosine_backward_kernel(
    table_ptr,  # int64 [5, tensors]
    tensors,
    grad_ptr,  # float64 [3]
    TARGETS: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    piece = tl.program_id(0)
    n, q, m = tl.load(grad_ptr), tl.load(grad_ptr + 1), tl.load(grad_ptr + 2)
    if TARGETS:
        alpha, beta = n + n - q, q - (m + m)
    else:
        alpha, beta = q, m + m
    g_at, h_at, out_at, first, size = find(table_ptr, tensors, piece, STEPS, BLOCK)
    g, h = load_pair(g_at, h_at, first, size, DTYPE, ALIGNED, BLOCK)
    v = alpha * g.to(tl.float64) + beta * (h - g).to(tl.float64)
    v = narrow(v.to(tl.float32), DTYPE)
    e = first + tl.arange(0, BLOCK)
    out_ptr = pointer(out_at, DTYPE, ALIGNED) + e
    if first + BLOCK <= size:
        tl.store(out_ptr, v)
    else:
        tl.store(out_ptr, v, mask=e < size)


def grad_cosine_backward(g, h, grad, out, targets):
    """Launch; the op's signature. Nothing here waits for the device."""
    if not g:
        return
    table, pieces, options = table_of(g, h, out)
    if pieces == 0:
        return
    with _common.on_device_of(grad):
        grad_cosine_backward_kernel[(pieces,)](
            table, table.shape[1], grad, TARGETS=targets, **options, num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip


def launches():
    """Arguments of launches that are compiled without a GPU, each dtype and branch at least once;
    with them, the tensors that are read singly."""
    grad = torch.zeros(3, dtype=torch.float64)
    for dtype in _common.FLOATS:
        t = torch.zeros(2 * PIECE, dtype=dtype)
        for targets in (False, True):
            yield ([t], [t], grad, [t], targets), ()
        yield ([t, t[1:]], [t, t[1:]], grad, [t, t[1:]], False), ()
