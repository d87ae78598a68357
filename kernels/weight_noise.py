"""weight_noise in Triton: a program has BLOCK counters of one draw, each of which makes four
elements. The definition is fastue/ops/weight_noise."""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common
from fastue.kernels._common import narrow, normals, philox


@triton.jit
def _add(base_ptr, out_ptr, start, at, sigma, z, inside):
    v = tl.load(base_ptr + at, mask=inside, other=0.0) + sigma * z
    tl.store(out_ptr + start + at, narrow(v, out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["blocks", "programs", "seed_low", "seed_high", "purpose"])
def weight_noise_kernel(
    base_ptr,  # float32 [D]
    table_ptr,  # int64 [D/64], parameter << 32 | block within it
    draws_ptr,  # int64 [K]
    out_ptr,  # float32 or bfloat16 [K, D]
    blocks,  # D/64
    programs,  # for one draw
    sigma,
    seed_low, seed_high, purpose,
    BLOCK: tl.constexpr,
):  # fmt: skip
    k = (tl.program_id(0) // programs).to(tl.int64)
    counter = (tl.program_id(0) % programs).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = counter < blocks.to(tl.int64) * 16
    block, lane = counter // 16, counter % 16  # spelt so that Triton sees neighbours
    entry = tl.load(table_ptr + block, mask=inside, other=0)
    draw = tl.load(draws_ptr + k)
    w0, w1, w2, w3 = philox(
        (entry * 16 + lane).to(tl.uint32), (entry >> 32).to(tl.uint32), draw.to(tl.uint32), purpose.to(tl.uint32),
        seed_low.to(tl.uint32), seed_high.to(tl.uint32),
    )  # fmt: skip
    z0, z1, z2, z3 = normals(w0, w1, w2, w3)
    at = block * 64 + lane  # 16 neighbouring counters have 16 neighbouring elements, four times
    start = k * blocks * 64
    _add(base_ptr, out_ptr, start, at, sigma, z0, inside)
    _add(base_ptr, out_ptr, start, at + 16, sigma, z1, inside)
    _add(base_ptr, out_ptr, start, at + 32, sigma, z2, inside)
    _add(base_ptr, out_ptr, start, at + 48, sigma, z3, inside)


def weight_noise(base, table, draws, out, sigma, seed, purpose):
    """Launch; the op's signature. Everything contiguous, out [K, D]. Nothing here waits for the
    device."""
    if not base.is_cuda:  # there they wrap around
        _common.check_rows("weight_noise: draws", draws, 2**32)
        _common.check_rows("weight_noise: block of table", table & 0xFFFFFFFF, 2**28)
    k, counters = len(draws), len(table) * 16
    if k * counters == 0:
        return
    # each counter is much work: more programs, fewer registers
    largest = 8192 if _common.interpreted() else 256
    block = min(largest, max(256, triton.next_power_of_2(counters)))
    programs = triton.cdiv(counters, block)
    with _common.on_device_of(base):
        weight_noise_kernel[(k * programs,)](
            base, table, draws, out, len(table), programs, sigma, seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, purpose,
            BLOCK=block, num_warps=2, enable_fp_fusion=False,
        )  # fmt: skip


def launches():
    """Arguments of launches that are compiled without a GPU, each dtype and branch at least once;
    with them, the tensors that are read singly."""
    base, table = torch.zeros(4096), torch.zeros(64, dtype=torch.int64)
    for dtype in (torch.float32, torch.bfloat16):
        yield (base, table, torch.arange(2), torch.zeros((2, 4096), dtype=dtype), 0.1, 7, 1), ()
