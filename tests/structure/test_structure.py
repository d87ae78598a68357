"""What holds the house up: dependencies point one way, one word an op, one place for each foreign
thing."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastue.ops  # registers the ops
from bench.compile import crumbs, vectors
from fastue.core import env, opspec
from fastue.ops import _keyed

ROOT = Path(__file__).parents[2]
LAYER = {"cli": 6, "commands": 5, "protocol": 4, "countermeasures": 3}
LAYER |= dict.fromkeys(("methods", "victims", "purifiers", "certificates"), 2)
LAYER |= {"data": 1, "models": 1, "ops": 1, "matching": 1, "core": 0}
LAYER |= {"distributed": 1}
ROOMS = sorted(p.parent.name for p in (ROOT / "fastue" / "ops").glob("*/reference.py"))


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Full names of everything a file imports, at any depth; `from a import b` counts as a and
    a.b."""
    found = set()
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name} | {f"{name}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "lazy":
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


def layer_of(name: str) -> int | None:
    parts = name.split(".")
    return LAYER.get(parts[1]) if parts[0] == "fastue" and len(parts) > 1 else None


@pytest.mark.parametrize("path", modules("fastue"), ids=lambda p: str(p.relative_to(ROOT)))
def test_dependencies_point_one_way(path):
    own = path.relative_to(ROOT).with_suffix("").parts
    rank = LAYER.get(own[1]) if len(own) > 1 else None
    for name in imported(path):
        other = layer_of(name)
        if rank is not None and other is not None:
            assert other < rank or name.split(".")[1] == own[1] or (other == rank == 1), (
                f"{path.name} imports {name}"
            )
        assert not name.startswith(("tests", "bench")), f"{path.name} imports {name}"


def test_foreign_things_have_one_door():
    doors = {"triton": [], "ffcv": ["fastue/data/ffcv.py"]}
    for path in modules("fastue"):
        where = str(path.relative_to(ROOT))
        for name, allowed in doors.items():
            assert name not in roots(path) or where in allowed, f"{where} imports {name}"
        text = path.read_text()
        assert where == "fastue/core/native.py" or "fastue._C" not in text, (
            f"{where} touches the extension"
        )
        assert where == "fastue/core/env.py" or not re.search(
            r"os\.(environ|getenv)|from os import", text
        ), where
    for path in modules("kernels"):
        extra = roots(path) - {"torch", "triton", "contextlib", "fastue"}
        assert not extra, f"{path} imports {extra}"
        assert all(
            n.startswith("fastue.kernels") for n in imported(path) if n.startswith("fastue")
        ), path


def test_import_is_free():
    code = (
        "import sys, fastue, fastue.ops, fastue.core.info;"
        "heavy = ('triton', 'ffcv', 'matplotlib', 'scipy', 'torchvision', 'timm', 'fastue._C', 'fastue.kernels');"
        "print([m for m in heavy if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert found.stdout.strip() == "[]", found.stdout


def test_kernels_is_no_top_level_package():
    found = subprocess.run(
        [sys.executable, "-c", "import kernels"], capture_output=True, text=True, cwd=ROOT
    )
    assert found.returncode and "fastue.kernels" in found.stderr


def test_one_word_for_an_op_everywhere():
    assert ROOMS, "no rooms"
    for name in ROOMS:
        assert name in opspec.registry() and callable(getattr(fastue.ops, name)), name
    assert set(ROOMS) <= set(opspec.registry())
    triton_files = {p.stem for p in (ROOT / "kernels").glob("*.py") if not p.stem.startswith("_")}
    native = {p.name for p in (ROOT / "csrc").iterdir() if p.is_dir()} - {"common"}
    assert triton_files <= set(ROOMS), triton_files - set(ROOMS)
    assert native <= set(ROOMS), native - set(ROOMS)
    for name in ROOMS:
        backends = {b.name for b in opspec.registry()[name].backends}
        files = {p.name for p in (ROOT / "csrc" / name).glob("*")}
        assert ("triton" in backends) == (name in triton_files), name
        assert ("cpp" in backends) == (f"{name}_cpu.cpp" in files), name
        assert ("cuda" in backends) == (
            {f"{name}_kernel.cu", f"{name}_cuda.cpp", f"{name}.h"} <= files
        ), name


def test_native_schemas_are_the_ops_schemas():
    text = re.sub(r'"\s*"', "", (ROOT / "csrc" / "bindings.cpp").read_text())
    native = {s.split("(")[0]: s for s in re.findall(r'm\.def\(\s*"([^"]+)"', text)}
    for name, op in opspec.registry().items():
        if any(b.name in ("cpp", "cuda") for b in op.backends):
            assert str(torch._C.parse_schema(native[name])) == str(
                torch._C.parse_schema(name + op.schema)
            ), name


def test_purposes_are_one_table():
    """A number stands for one use of a seed, in every language."""
    table = {name: value for name, value in vars(_keyed).items() if name.isupper()}
    assert len(set(table.values())) == len(table) and all(type(v) is int for v in table.values())
    native = re.findall(r"kPurpose(\w+) = (\d+)", (ROOT / "csrc/common/philox.h").read_text())
    triton = re.findall(
        r"PURPOSE_(\w+) = tl.constexpr\((\d+)\)", (ROOT / "kernels/_common.py").read_text()
    )
    assert native and triton
    for name, number in [*native, *triton]:
        python = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
        assert table[python] == int(number), name


def test_environment_table_is_complete():
    rows = re.findall(
        r"^\| `(\w+)` \| (.*?) \|", (ROOT / "docs" / "ENVIRONMENT.md").read_text(), re.MULTILINE
    )
    assert {name: default.strip("`") for name, default in rows} == {
        name: default or "empty" for name, (default, _) in env.VARIABLES.items()
    }


@pytest.mark.parametrize("folder", ["fastue", "kernels", "bench"])
def test_no_device_literal(folder):
    """A device comes from a tensor or an argument; a default may ask whether there is a GPU, in the
    same line."""
    literal = re.compile(
        r"""device\s*=\s*["']cuda|\.cuda\(\)|\.to\(["']cuda|torch\.device\(["']cuda"""
    )
    for path in modules(folder):
        lines = [line for line in path.read_text().splitlines() if literal.search(line)]
        assert all("is_available()" in line for line in lines), f"{path} names a device: {lines}"


def test_no_tolerance_outside_the_rooms():
    """One number an op, in its room. Other tests compare exactly or say where their bound comes
    from."""
    for path in modules("tests/ops"):
        assert not re.search(r"\b[ar]tol\s*=\s*(?!0\.0\b)", path.read_text()), path


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.timeout(1500)
def test_cuda_kernels_compile_and_link():
    """For all targets, against the installed torch; registers and spills are asserted there."""
    found = subprocess.run(
        [sys.executable, "-m", "bench.compile", "--cuda"], capture_output=True, text=True, cwd=ROOT
    )
    assert found.returncode == 0, found.stdout + found.stderr
    kernels = len(list((ROOT / "csrc").glob("*/*_kernel.cu")))
    assert found.stdout.count("ok ") == 2 * kernels + 1 and "cuda link" in found.stdout


def test_triton_kernels_compile_to_cubin():
    """In a process of its own: an interpreted kernel cannot be compiled. It asserts registers,
    spills and vectors."""
    pytest.importorskip("triton", reason="triton is not installed")
    clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.compile", "--triton"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean)
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("ok ") >= 3 * len(list((ROOT / "kernels").glob("[a-z]*.py")))
    for access in (
        "ld noise 16",
        "st noise 16",
        "ld grad 16",
        "st out 16",
        "ld x 8",
        "ld logits 16",
        "ld base 16",
    ):
        assert access in found.stdout, access


@pytest.mark.parametrize(("load", "width", "narrow"), [("v4.b32", 16, []), ("b32", 4, ["ld grad"])])
def test_a_tensor_read_element_by_element_is_seen(load, width, narrow):
    """Through a pointer that a loop moves on, past a number loaded through another argument."""
    ptx = f"""
    ld.param.b64 %rd1, [k_param_0];
    ld.param.b64 %rd2, [k_param_1];
    ld.global.b64 {{ %rd3 }}, [ %rd1 + 0 ];
    add.s64 %rd4, %rd2, %rd3;
    $L1:
    ld.global.{load} {{ %r1 }}, [ %rd5 + 0 ];
    mov.b64 %rd5, %rd4;
    """
    source = SimpleNamespace(
        signature={"index_ptr": "*i64", "BLOCK": "constexpr", "grad_ptr": "*fp32"}
    )
    kernel = SimpleNamespace(asm={"ptx": ptx}, src=source)
    assert vectors(kernel, ()) == (f"ld grad {width}", narrow)
    assert vectors(kernel, ["grad"]) == (f"ld grad {width}", [])


def test_a_single_element_in_a_vector_instance_is_seen():
    """nvcc splits some assignments of a whole vector: only the PTX tells."""
    entry = ".visible .entry kernel_ILb{}EE(.param x)\n{{\n {} \n}}\n"
    store = "st.global.f32 [%rd1], %f1;"
    assert crumbs(entry.format(1, store)) == ["st f32 in kernel_ILb1EE"]
    assert crumbs(entry.format(0, store)) == []
    assert crumbs(entry.format(1, "st.global.wb.v4.u32 [%rd1], {%r1,%r2,%r3,%r4};")) == []
    assert crumbs(entry.format(1, "ld.global.u8 %rs1, [%rd1]; ld.global.u64 %rd2, [%rd3];")) == []
