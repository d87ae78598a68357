"""The same cases for pytest-benchmark: `pytest bench --benchmark-only`. For a look at one side;
ratios come from `python -m bench.ops`, which lets the sides take turns."""

from functools import lru_cache

import pytest
import torch

import fastue.ops  # noqa: F401  registers the ops
from bench.ops import left_out, on_device, red_cases, why_not
from fastue.core import opspec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIDES = [
    pytest.param(op, case, backend, id=f"{name}-{case}-{backend}")
    for name, op in sorted(opspec.registry().items())
    for case in op.bench()
    for backend in op.backend_names
    if backend not in left_out(op, DEVICE)
]


@lru_cache
def green(op: opspec.OpSpec, backend: str) -> bool:
    return not red_cases(op, backend, DEVICE)


@pytest.mark.parametrize("op, case, backend", SIDES)
def test_time(benchmark, op, case, backend):
    assert green(op, backend), f"{backend} gives wrong results: not timed"
    args = on_device(op.bench()[case](), DEVICE)
    cannot = why_not(op, backend, args)
    if cannot:
        pytest.skip(f"{backend}: {'; '.join(cannot)}")

    def call():
        with opspec.use_backend(backend):
            getattr(torch.ops.fastue, op.name)(*args.values())
        if DEVICE.type != "cpu":
            torch.cuda.synchronize(DEVICE)

    benchmark.pedantic(call, rounds=5, warmup_rounds=1)
