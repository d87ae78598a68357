"""count_correct in Triton: a program looks, in ROWS rows, whether any logit comes before that of y,
and adds once. Whole numbers, so the order of the additions does not matter. The definition is
fastue/ops/count_correct."""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common

TILE = 512  # logits a program looks at together: four a thread


@triton.jit(do_not_specialize=["batch", "slot"])
def count_correct_kernel(
    logits_ptr,  # float [batch, classes]
    y_ptr,  # int64 [batch]
    counts_ptr,  # int64 [S], updated
    batch,
    slot,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.load(y_ptr + row, mask=row < batch, other=-1)
    known = (k >= 0) & (k < CLASSES)
    own = tl.load(logits_ptr + row * CLASSES + k, mask=known, other=0).to(tl.float32)[:, None]
    place = k.to(tl.int32)[:, None]
    beaten = tl.zeros((ROWS,), tl.int32)
    for first in range(0, CLASSES, COLUMNS):
        j = first + tl.arange(0, COLUMNS)[None, :]
        inside = known[:, None] & (j < CLASSES)
        v = tl.load(logits_ptr + (row * CLASSES)[:, None] + j, mask=inside, other=float("-inf")).to(
            tl.float32
        )
        # An earlier one that is not smaller, a later one that is greater; NaN is greater than all
        # numbers.
        before = j < place
        beats = (v > own) | (before & (v == own)) | ((v != v) & (before | (own == own)))
        beaten |= tl.max(beats.to(tl.int32), axis=1)
    right = known & (beaten == 0)
    tl.atomic_add(counts_ptr + slot, tl.sum(right.to(tl.int64), axis=0), sem="relaxed")


def count_correct(logits, y, counts, slot):
    """Launch; the op's signature. Everything contiguous, logits [B, K]. Nothing here waits for the
    device."""
    batch, classes = logits.shape
    if batch == 0:
        return
    columns = min(TILE, max(16, triton.next_power_of_2(classes)))
    rows = TILE // columns
    with _common.on_device_of(logits):
        count_correct_kernel[(triton.cdiv(batch, rows),)](
            logits, y, counts, batch, slot, CLASSES=classes, ROWS=rows, COLUMNS=columns, num_warps=4,
            enable_fp_fusion=False,
        )  # fmt: skip


def launches():
    """Arguments of launches that are compiled without a GPU, each dtype and branch at least once;
    with them, the tensors that are read singly."""
    y, counts = torch.zeros((2, 4), dtype=torch.int64)
    for dtype in _common.FLOATS:
        for classes in (10, 100, 1000):
            yield (
                (torch.zeros((4, classes), dtype=dtype), y, counts, 0),
                ("logits",) if classes == 10 else (),
            )
