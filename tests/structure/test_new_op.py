"""CONTRIBUTING's four steps, taken in a copy of the project: a new op costs what they say, and
nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

REFERENCE = '''
"""toy in plain PyTorch: the definition."""


def toy(x, out, factor):
    """out = factor * x."""
    out.copy_(x * factor)
'''

CASES = '''
"""Cases of toy."""

import torch


def cases(g, dtype):
    def case(n, values=None):
        x = torch.randn(n, generator=g) if values is None else torch.tensor(values)
        return dict(x=x.to(dtype), out=torch.full((len(x),), torch.nan, dtype=dtype), factor=0.75)

    sizes = {"empty": 0, "one": 1, "odd": 77, "blocks": 3000, "mixed": 130}
    found = {name: case(n) for name, n in sizes.items()}
    return found | {"ties": case(0, [0.0, -0.0, 1.0]), "huge": case(0, [1e38, -1e38, torch.inf])}
'''

ROOM = '''
"""toy: a vector times a number."""

import torch

from fastue.core import opspec
from fastue.ops import _checks
from fastue.ops.toy import cases, reference


def toy(x: torch.Tensor, factor: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """factor * x [N]."""
    out = torch.empty_like(x) if out is None else out
    OP.call(x, out, factor)
    return out


def check(x, out, factor):
    _checks.tensor("toy", "x", x, ("N",), _checks.FLOAT_DTYPES, x.device)
    _checks.tensor("toy", "out", out, x.shape, (x.dtype,), x.device)


OP = opspec.register(
    opspec.OpSpec(
        name="toy",
        schema="(Tensor x, Tensor(a!) out, float factor) -> ()",
        reference=reference.toy,
        check=check,
        cases=cases.cases,
        atol=0.0,
        backends=(BACKENDS),
    )
)
'''

TRITON = '''
"""toy in Triton."""

import torch
import triton
import triton.language as tl
from fastue.kernels import _common


@triton.jit(do_not_specialize=["n"])
def toy_kernel(x_ptr, out_ptr, n, factor, BLOCK: tl.constexpr):
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + e, tl.load(x_ptr + e, mask=e < n) * factor, mask=e < n)


def toy(x, out, factor):
    if len(x) == 0:
        return
    with _common.on_device_of(x):
        toy_kernel[(triton.cdiv(len(x), 1024),)](x, out, len(x), factor, BLOCK=1024)


def launches():
    """Of each dtype."""
    yield (torch.empty(2048), torch.empty(2048), 0.5), ()
'''

CPP = """
// toy on the CPU.
#include "../common/stable.h"

namespace fastue {
namespace {

void toy(const Tensor& x, const Tensor& out, double factor) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float && out.scalar_type() == ScalarType::Float &&
                      x.numel() == out.numel() && x.is_contiguous() && out.is_contiguous(),
                  "x and out must be float32 [N], contiguous");
  const float* from = x.const_data_ptr<float>();
  float* to = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) to[i] = from[i] * static_cast<float>(factor);
}

}  // namespace
}  // namespace fastue

STABLE_TORCH_LIBRARY_IMPL(fastue_native, CPU, m) { m.impl("toy", TORCH_BOX(&fastue::toy)); }
"""

MUTANTS = '''
"""Bugs planted in toy, which its cases must catch."""

MUTANTS = {"toy: the last element": ("triton", "kernels/toy.py", "e < n)\\n", "e < n - 1)\\n")}
'''


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of what an op is made of, with steps 1 and 2 taken."""
    for part in ("fastue", "kernels", "csrc", "tests", "bench"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "docs"):
        link = tmp_path / name
        link.symlink_to(ROOT / name) if name == "docs" else shutil.copy(ROOT / name, link)
    (tmp_path / "fastue/kernels").symlink_to("../kernels")
    room = tmp_path / "fastue/ops/toy"
    room.mkdir()
    for name, text in (("reference", REFERENCE), ("cases", CASES), ("mutants", MUTANTS)):
        (room / f"{name}.py").write_text(text.lstrip())
    (room / "__init__.py").write_text(
        ROOM.replace("(BACKENDS)", "(opspec.triton(opspec.FLOAT32),)").lstrip()
    )
    public = tmp_path / "fastue/ops/__init__.py"
    line = "from fastue.ops.weight_noise import weight_noise as weight_noise\n"
    public.write_text(
        public.read_text().replace(line, "from fastue.ops.toy import toy as toy\n" + line)
    )
    (tmp_path / "kernels/toy.py").write_text(TRITON.lstrip())
    return tmp_path


def run(project: Path, *arguments: str, **environment: str) -> str:
    """A Python command in the copy, which imports the copy's fastue."""
    more = {
        "PYTHONPATH": str(project),
        "FASTUE_REQUIRE": "triton",
        "TRITON_INTERPRET": "1",
        **environment,
    }
    command = [sys.executable, *arguments]
    result = subprocess.run(
        command, cwd=project, env=os.environ | more, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return result.stdout


def test_a_room_and_a_triton_kernel(project):
    """Steps 1 and 2: values, opcheck, one graph, refusals and structure, with no line of test or
    benchmark written."""
    pytest.importorskip("triton")
    assert str(project) in run(project, "-c", "import fastue.kernels as k; print(k.__file__)")
    tests = [
        "tests/ops/test_ops.py",
        "tests/ops/test_registry.py",
        "tests/structure/test_structure.py",
    ]
    output = run(
        project,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *tests,
        "-k",
        "toy or one_word or door",
    )
    assert " passed" in output
    names = run(
        project,
        "-m",
        "pytest",
        "-q",
        "--collect-only",
        "tests/ops",
        "-m",
        "slow or not slow",
        "-k",
        "toy",
    )
    for part in (
        "toy-float32-blocks-triton",
        "toy-float32-blocks-reference",
        "test_opcheck",
        "toy: the last element",
    ):
        assert part in names, part
    assert run(project, "-m", "bench.ops", "--op", "toy", "--dry-run", "--device", "cpu")


@pytest.mark.slow
def test_a_native_kernel(project):
    """Step 3: compiled by setup.py, found by its place, held against the reference."""
    room = project / "fastue/ops/toy/__init__.py"
    room.write_text(
        room.read_text().replace("(opspec.triton", "(opspec.cpp(opspec.FLOAT32), opspec.triton")
    )
    (project / "csrc/toy").mkdir()
    (project / "csrc/toy/toy_cpu.cpp").write_text(CPP.lstrip())
    bindings = project / "csrc/bindings.cpp"
    head, brace, _ = bindings.read_text().rpartition("}")
    bindings.write_text(
        f'{head}  m.def("toy(Tensor x, Tensor(a!) out, float factor) -> ()");\n{brace}\n'
    )
    for library in (project / "fastue").glob("*.so"):
        library.unlink()
    run(project, "setup.py", "build_ext", "--inplace")
    tests = [
        "tests/ops/test_ops.py",
        "tests/ops/test_registry.py",
        "tests/structure/test_structure.py",
    ]
    arguments = ["-m", "pytest", "-q", *tests, "-k", "toy or one_word or native_schemas"]
    assert " passed" in run(project, *arguments, FASTUE_REQUIRE="cpp,triton")
