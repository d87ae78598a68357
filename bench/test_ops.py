"""The same cases for pytest-benchmark: `pytest bench --benchmark-only`. For a look at one side; ratios come from
`python -m bench.ops`, which lets the sides take turns."""

from functools import lru_cache

import pytest
import torch

import fastue.ops  # noqa: F401  registers the ops
from bench.ops import red_cases
from fastue.core import opspec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIDES = [
    pytest.param(op, case, backend, id=f"{name}-{case}-{backend}")
    for name, op in sorted(opspec.registry().items())
    for case in op.bench()
    for backend in [*(b.name for b in op.backends if b.device == DEVICE.type and not op.function(b)[1]), "reference"]
]


@lru_cache
def green(op: opspec.OpSpec, backend: str) -> bool:
    return not red_cases(op, backend)


@pytest.mark.parametrize("op, case, backend", SIDES)
def test_time(benchmark, op, case, backend):
    assert green(op, backend), f"{backend} gives wrong results: not timed"
    args = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in op.bench()[case]().items()}

    def call():
        with opspec.use_backend(backend):
            getattr(torch.ops.fastue, op.name)(*args.values())
        if DEVICE.type != "cpu":
            torch.cuda.synchronize(DEVICE)

    benchmark.pedantic(call, rounds=5, warmup_rounds=1)
