"""The values of the CUDA kernels, without a GPU: compiled as C++ (cuda_host/), every case of every
op that has one.

Thread order, fences around memory and alignment are stricter than a GPU's; what a GPU's compiler
makes of the code, its memory model and real concurrency are not tested here.
"""

from pathlib import Path

import pytest
import torch

from . import checks
from .cuda_host import harness

CSRC = Path(__file__).parents[2] / "csrc"
OPS = {name: op for name, op in checks.OPS.items() if harness.has_cuda(op)}
CASES = [
    pytest.param(op, dtype, case, id=f"{op.name}-{str(dtype)[6:]}-{case}")
    for op in OPS.values()
    for dtype in op.dtypes
    for case in checks.cases(op, dtype)
]
BAD = [
    pytest.param(op, case, id=f"{op.name}-{case}")
    for op in OPS.values()
    for case, args in op.bad(checks.generator()).items()
    if not any(t.device.type == "meta" for t in checks.named(args).values())
]


@pytest.fixture(scope="session")
def library(compiler) -> harness.Library:
    return harness.load(CSRC)


@pytest.mark.parametrize("op, dtype, case", CASES)
def test_values(op, dtype, case, library):
    for seed, place in harness.RUNS.values():
        with library.order(seed):
            checks.compare(harness.on_host(op), checks.cases(op, dtype)[case], "cuda", place)


@pytest.mark.parametrize("op, case", BAD)
def test_glue_alone_keeps_memory_safe(op, case, library):
    """Without the checks of the Python side: bad arguments are refused, or change nothing but what
    the op writes.

    What those checks let pass (a row out of range) must run: looking there would stop the device.
    """
    for seed, place in harness.RUNS.values():
        args = checks.copied(op, op.bad(checks.generator())[case], place=place)
        try:
            with library.order(seed):
                harness.native(op.name)(*args.values())
        except RuntimeError as error:
            assert "CUDA error" not in str(error) and not checks.looks_good(op, args), error
        for name, value in checks.named(args).items():
            written = name.partition("[")[0] in checks.names_written(op)
            assert checks.guards_intact(value, written), name


@pytest.mark.parametrize("op", [pytest.param(OPS["apply_noise"], id="apply_noise")])
def test_an_unknown_row_gives_nan(op, library):
    """As the public function promises for a GPU: in its picture, and in no other."""
    good = checks.copied(op, checks.cases(op, torch.float32)["odd"])
    bad = checks.copied(op, good)
    for picture, row in ((1, -1), (3, len(bad["noise"]))):
        bad["index"][picture] = row
    for args in (good, bad):
        harness.native(op.name)(*args.values())
    unknown = torch.tensor([False, True, False, True, False])
    assert bad["out"][unknown].isnan().all() and torch.equal(
        bad["out"][~unknown], good["out"][~unknown]
    )


def test_every_instance_is_launched_three_times(library):
    """Else the tests above say nothing about it."""
    library.launches()
    for op in OPS.values():
        for dtype in op.dtypes:
            for args in checks.cases(op, dtype).values():
                checks.run(harness.on_host(op), checks.copied(op, args), "cuda")
    launches = library.launches()
    assert len(launches) >= len(OPS)
    few = [f"{name}: {n}" for name, n in sorted(launches.items()) if n < 3]
    assert not few, "add cases that launch these kernels at least three times:\n" + "\n".join(few)
