"""The generic test must catch realistic bugs: each is planted in a copy of the project's kernels,
on which the cases run.

A mutant is (backend, file, the words there, what stands there instead). C++ mutants are compiled
into a library of their own ("cpp": the portable code alone; "v3", "v4", "amx": with the
hand-written AVX2, AVX-512 or AMX code), CUDA ones, too, as C++ (cuda_host/), Triton ones become a package of their
own, and a process of their own uses them instead of the real ones.
"""

import functools
import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from . import checks

ROOT = Path(__file__).parents[2]
OPS = ROOT / "fastue" / "ops"
HEALTHY = ("cpp", "csrc/bindings.cpp", "STABLE_TORCH_LIBRARY", "STABLE_TORCH_LIBRARY")


def mutants() -> dict[str, tuple[str, str, str, str]]:
    """Those of the rooms, fastue/ops/<op>/mutants.py, and those of the files that ops share."""
    modules = ["_mutants", *(f"{name}.mutants" for name in sorted(checks.OPS))]
    tables = [
        importlib.import_module(f"fastue.ops.{m}")
        for m in modules
        if (OPS / f"{m.replace('.', '/')}.py").exists()
    ]
    return {name: mutant for table in tables for name, mutant in table.MUTANTS.items()}


MUTANTS = mutants()

# Uses the mutant's ops instead of the real ones and runs every case. The first one caught: exit 3.
# None: exit 0.
RUNNER = """
import sys, types
import torch
kind, place, concerned, *absent = sys.argv[1:]
from fastue.core import native
if kind == "cpp":
    torch.ops.load_library(place)
    native._load = lambda device: "" if device == "cpu" else "not available: mutant"
else:
    package = types.ModuleType("fastue.kernels")
    package.__path__ = [place]
    sys.modules["fastue.kernels"] = package
from tests.ops import checks
for op in checks.OPS.values():
    backend = next((b for b in op.backends if b.name == kind), None)
    if backend is None or op.name in absent or concerned not in ("*", op.name):
        continue
    assert op.function(backend)[0] is not None, op.function(backend)[1]
    for dtype in op.dtypes:
        for name, args in checks.cases(op, dtype).items():
            try:
                checks.compare(op, args, kind)
            except Exception as error:
                print(op.name, dtype, name, type(error).__name__, error)
                sys.exit(3)
    for name, args in op.bad(checks.generator()).items():
        try:
            checks.run(op, args, kind)
        except (ValueError, TypeError, IndexError, RuntimeError):
            continue
        print(op.name, name, "is not refused")
        sys.exit(3)
"""

# The same for CUDA kernels compiled as C++, by the functions that test the real ones.
CUDA_RUNNER = """
import sys
from pathlib import Path
import pytest
from tests.ops import test_cuda_host as tests
from tests.ops.cuda_host import harness
csrc, cache, op = sys.argv[1:]
library = harness.load(Path(csrc), Path(cache), op)
jobs = [(tests.test_values, p) for p in tests.CASES]
jobs += [(tests.test_glue_alone_keeps_memory_safe, p) for p in tests.BAD]
jobs += [(tests.test_an_unknown_row_gives_nan, pytest.param(tests.OPS["apply_noise"]))]
for test, p in jobs:
    if op not in ("*", p.values[0].name):
        continue
    try:
        test(*p.values, library)
    except Exception as error:
        print(test.__name__, p.id, type(error).__name__, error)
        sys.exit(3)
"""


def copy_with(mutant, folder: Path) -> Path:
    """csrc/ and kernels/ in `folder`, one of them wrong."""
    _, path, words, instead = mutant
    for part in ("csrc", "kernels"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / path).read_text()
    assert words in text, f"{path} no longer holds {words!r}: bring the mutant up to date"
    (folder / path).write_text(text.replace(words, instead))
    return folder


def compile_sources(
    folder: Path, only: str | None = None, baseline: bool = True
) -> dict[str, Path]:
    """The C++ files of `folder`, or one of them, as objects; barely
    optimised, for one test."""
    home = Path(torch.__file__).parent
    bindings = folder / "csrc" / "bindings.cpp"
    flags = [
        "-c",
        "-O1",
        *(["-DFASTUE_BASELINE"] if baseline else []),
        "-std=c++20",
        "-fPIC",
        "-ffp-contract=off",
        f"-I{home / 'include'}",
    ]
    flags.append("-DTORCH_TARGET_VERSION=0x020a000000000000")
    made = {}
    for source in [*folder.glob("csrc/*/*_cpu.cpp"), bindings]:
        name = str(source.relative_to(folder))
        if only is None or name == only:
            made[name] = source.with_suffix(".o")
            subprocess.run(
                ["g++", *flags, source, "-o", made[name]],
                check=True,
                capture_output=True,
                text=True,
            )
    return made


@pytest.fixture(scope="session")
def objects(tmp_path_factory) -> Callable[[bool], dict[str, Path]]:
    """Without a bug, portable code alone or all of it; a mutant of one C++ file takes the others
    from here."""

    @functools.cache
    def compiled(baseline: bool) -> dict[str, Path]:
        folder = tmp_path_factory.mktemp("healthy")
        return compile_sources(copy_with(HEALTHY, folder), baseline=baseline)

    return compiled


@pytest.fixture(scope="session")
def cuda_objects(tmp_path_factory) -> Path:
    """Compiled CUDA files, those of the mutants, too: each is compiled once."""
    return tmp_path_factory.mktemp("cuda_objects")


def build(mutant, folder: Path, objects: Callable[[bool], dict[str, Path]]) -> Path:
    """The mutant's ops as a library."""
    path = mutant[1]
    mine = objects(mutant[0] == "cpp") | compile_sources(
        folder, path if path.endswith(".cpp") else None, baseline=mutant[0] == "cpp"
    )
    library = folder / "mutant.so"
    command = [
        "g++",
        "-shared",
        *mine.values(),
        "-o",
        library,
        f"-L{Path(torch.__file__).parent / 'lib'}",
    ]
    subprocess.run(
        [*command, "-ltorch", "-ltorch_cpu", "-lc10"], check=True, capture_output=True, text=True
    )
    return library


def judge(
    mutant, folder: Path, objects: Callable, cuda_objects: Path
) -> subprocess.CompletedProcess:
    """The mutant's cases, run in a process of their own: those of its op, or of all ops."""
    path = Path(mutant[1])
    name = path.stem if path.parts[0] == "kernels" else path.parent.name
    concerned = name if name in checks.OPS else "*"
    if mutant[0] == "cuda":
        return run_python(CUDA_RUNNER, folder / "csrc", cuda_objects, concerned)
    kind = "triton" if mutant[0] == "triton" else "cpp"
    place = folder / "kernels" if kind == "triton" else build(mutant, folder, objects)
    by_hand = mutant[0] in ("v3", "v4", "amx")
    # no portable code
    absent = [] if by_hand and torch.cpu._is_avx512_supported() else ["conv3x3"]
    absent += [] if by_hand and torch.cpu._is_amx_tile_supported() else ["conv", "conv_weights"]
    return run_python(RUNNER, kind, place, concerned, *absent)


def run_python(code: str, *args) -> subprocess.CompletedProcess:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught(name, tmp_path, objects, cuda_objects):
    mutant = MUTANTS[name]
    if mutant[0] == "v3" and not torch.cpu._is_avx2_supported():
        pytest.skip("this CPU has no AVX2")
    if mutant[0] == "v4" and not torch.cpu._is_avx512_supported():
        pytest.skip("this CPU has no AVX-512")
    if mutant[0] == "amx" and not torch.cpu._is_amx_tile_supported():
        pytest.skip("this CPU has no AMX")
    found = judge(mutant, copy_with(mutant, tmp_path), objects, cuda_objects)
    # A crash counts too: that is how reading beyond a buffer shows in Triton's interpreter.
    assert found.returncode == 3 or found.returncode < 0, (
        f"{name}: nothing noticed\n{found.stdout}{found.stderr}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cpp", "v3", "v4", "triton", "cuda"])
def test_without_a_bug_nothing_is_caught(kind, tmp_path, objects, cuda_objects):
    """Else the test above would prove nothing."""
    if kind == "v3" and not torch.cpu._is_avx2_supported():
        pytest.skip("this CPU has no AVX2")
    if kind == "v4" and not torch.cpu._is_avx512_supported():
        pytest.skip("this CPU has no AVX-512")
    mutant = (kind, *HEALTHY[1:])
    found = judge(mutant, copy_with(mutant, tmp_path), objects, cuda_objects)
    assert found.returncode == 0, found.stdout + found.stderr
