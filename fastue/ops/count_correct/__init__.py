"""count_correct: how many of a batch are right, added to a counter on the device."""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops._arguments import plain
from fastue.ops.count_correct import cases, reference

NAME = "count_correct"


def count_correct(
    logits: torch.Tensor, y: torch.Tensor, counts: torch.Tensor, slot: int = 0
) -> None:
    """counts[slot] += number of rows of logits whose largest entry is that of y, in place, without
    waiting for a GPU.

    logits   [B, K] float32, bfloat16 or float16
    y        int64 [B]; a class outside of [0, K) is never right
    counts   int64 [S], contiguous, on the device of logits;  slot  in [0, S)
    As torch.argmax has it, of equal entries the first is the largest, and NaN is larger than any
    number. Errors: ValueError, TypeError, IndexError for wrong shapes, dtypes and slots.
    """
    OP.call(plain(logits).contiguous(), y.contiguous(), counts, slot)


def check(logits, y, counts, slot):
    _checks.tensor(NAME, "logits", logits, ("B", "K"), _checks.FLOAT_DTYPES, logits.device)
    b, k = logits.shape
    if k < 1:
        raise ValueError(f"{NAME}: logits need at least one class")
    _checks.tensor(NAME, "y", y, (b,), (torch.int64,), logits.device)
    _checks.tensor(NAME, "counts", counts, ("S",), (torch.int64,), logits.device)
    if not 0 <= slot < counts.shape[0]:
        raise IndexError(f"{NAME}: slot {slot} of {counts.shape[0]} counts")


def traffic(logits, y, *_):
    """Bytes: logits and classes read."""
    return logits.nbytes + y.nbytes


OP = opspec.register(
    opspec.OpSpec(
        name=NAME,
        schema="(Tensor logits, Tensor y, Tensor(a!) counts, int slot) -> ()",
        reference=reference.count_correct,
        check=check,
        cases=cases.cases,
        bad=cases.bad,
        bench=cases.bench,
        traffic=traffic,
        dtypes=(torch.float32, torch.bfloat16, torch.float16),
        atol=0.0,
        bitwise=True,
        backends=(
            opspec.cuda(opspec.FLOATS),
            opspec.triton(opspec.FLOATS),
            opspec.cpp(opspec.FLOATS),
        ),
    )
)
