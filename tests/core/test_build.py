"""What setup.py builds and leaves out, on machines faked by the environment and a toy nvcc."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastue.core import native, opspec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def build(monkeypatch, tmp_path):
    """setup.py as a module, on a machine without any CUDA toolkit and with nothing on PATH."""
    specification = importlib.util.spec_from_file_location("fastue_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    for name in ("CUDA_HOME", "CUDA_PATH", "CXX", "FASTUE_BUILD_EXT"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(module, "CUDA_FOLDERS", str(tmp_path / "cuda"))
    return module


def program(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def nvcc(folder: Path, release="13.0", archs="sm_75 sm_80 sm_90 sm_100", otherwise="exit 1") -> str:
    """An nvcc that tells its version and its architectures, and fails at everything else."""
    text = f'case "$1" in --version) echo "Cuda compilation tools, release {release}, V{release}.88";;\n'
    text += f'--list-gpu-code) printf "%s\\n" {archs};;\n*) {otherwise};; esac'
    return program(folder / "bin" / "nvcc", text)


def test_no_nvcc_is_said_with_the_places_and_the_remedy(build, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "empty"))
    with pytest.raises(build.NotBuilt, match=r"no nvcc in CUDA_HOME.*install the CUDA 13 toolkit"):
        build.usable_nvcc("13.0")


@pytest.mark.parametrize("place", ["CUDA_HOME", "CUDA_PATH", "PATH", "cuda", "cuda-13.1"])
def test_nvcc_is_looked_for_where_toolkits_are(build, monkeypatch, tmp_path, place):
    folder = tmp_path if place == "PATH" else tmp_path / place
    path = nvcc(folder)
    if place.startswith("CUDA"):
        monkeypatch.setenv(place, str(folder))
    assert build.usable_nvcc("13.0") == (path, ("80", "90", "100"))


def test_nvcc_of_another_version_makes_way_for_one_that_fits(build, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda-12.4"))
    nvcc(tmp_path / "cuda-12.4", "12.4")
    with pytest.raises(
        build.NotBuilt, match=r"cuda-12.4/bin/nvcc is of CUDA 12.4, torch is built for CUDA 13.0"
    ):
        build.usable_nvcc("13.0")
    nvcc(tmp_path / "cuda-13.0", "13.0")
    newer = nvcc(tmp_path / "cuda-13.10", "13.10")
    assert build.usable_nvcc("13.0")[0] == newer, (
        "minor versions may differ, and 13.10 is newer than 13.9"
    )


def test_only_architectures_that_nvcc_knows(build, tmp_path):
    nvcc(tmp_path, "12.6", "sm_80 sm_86 sm_90")
    _, archs = build.usable_nvcc("12.8")
    flags = " ".join(build.nvcc_flags(archs))
    assert (
        archs == ("80", "90")
        and "code=sm_90" in flags
        and "code=compute_90" in flags
        and "100" not in flags
    )
    nvcc(tmp_path, "12.6", "sm_70")
    with pytest.raises(build.NotBuilt, match="knows none of sm_80, sm_90, sm_100"):
        build.usable_nvcc("12.8")


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("echo hello", "does not tell"),
        ("echo 'error: oh' >&2; exit 3", "failed: error: oh"),
        ("exit 3", "exit status 3"),
    ],
)
def test_an_nvcc_that_is_none_is_a_reason(build, tmp_path, text, complaint):
    program(tmp_path / "bin" / "nvcc", text)
    with pytest.raises(build.NotBuilt, match=complaint):
        build.usable_nvcc("13.0")


def test_an_nvcc_that_cannot_be_started_is_a_reason(build, tmp_path):
    path = program(tmp_path / "bin" / "nvcc", "")
    Path(path).write_text("#!/no/such/interpreter\n")
    with pytest.raises(build.NotBuilt, match="does not run: No such file"):
        build.usable_nvcc("13.0")


def test_the_compiler_is_cxx_or_the_first_on_path(build, monkeypatch, tmp_path):
    with pytest.raises(build.NotBuilt, match=r"no C\+\+ compiler on PATH; install g\+\+"):
        build.cxx()
    for name in ("clang++", "c++", "g++"):
        program(tmp_path / "bin" / name, "")
        assert build.cxx() == [name]
    monkeypatch.setenv("CXX", "ccache g++-12")
    assert build.cxx() == ["ccache", "g++-12"]


def test_torch_without_cuda_needs_no_nvcc(build, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "torch_folder", lambda: (tmp_path, None))
    with pytest.raises(build.NotBuilt, match="torch has no CUDA"):
        build.build_cuda([], tmp_path / "x.so", tmp_path)


@pytest.mark.parametrize(
    "choice, left_out", [("1", []), ("", []), ("cpp", ["cuda"]), ("0", ["cpp", "cuda"])]
)
def test_what_the_variable_leaves_out(build, monkeypatch, choice, left_out):
    monkeypatch.setenv("FASTUE_BUILD_EXT", choice)
    assert [name for name in ("cpp", "cuda") if build.excluded(name)] == left_out


def test_another_word_in_the_variable_is_refused(build, monkeypatch):
    monkeypatch.setenv("FASTUE_BUILD_EXT", "yes")
    with pytest.raises(SystemExit, match="choose 1"):
        build.excluded("cpp")


# setup.py's own build_ext in a copy of the sources, beside a torch that calls itself a CUDA build.
RUNNER = """
import runpy, sys, torch
torch.version.cuda = "13.0"
sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
runpy.run_path("setup.py", run_name="__main__")
"""


def built(folder: Path, **environment: str) -> tuple[dict, set[str]]:
    """What build_ext reports in a copy of the sources, and the libraries it leaves there."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("kernels", "fastue/core"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "__init__.py").touch()
    (folder / "fastue" / "__init__.py").touch()
    process = subprocess.run(
        [sys.executable, "-c", RUNNER],
        cwd=folder, env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    report = json.loads((folder / "fastue" / "_build.json").read_text())
    return report, {path.name.split(".")[0] for path in (folder / "fastue").glob("*.so")}


def tiny_sources(folder: Path) -> None:
    """Sources that compile in a moment."""
    (folder / "csrc" / "op").mkdir(parents=True)
    (folder / "csrc" / "bindings.cpp").write_text("int fastue_bindings() { return 1; }\n")
    (folder / "csrc" / "op" / "op_cpu.cpp").write_text("int fastue_op() { return 2; }\n")
    (folder / "csrc" / "op" / "op_kernel.cu").write_text("this is not C++\n")


def test_a_failing_nvcc_does_not_cost_the_cpp_library(tmp_path, compiler):
    tiny_sources(tmp_path)
    nvcc(tmp_path / "toolkit", otherwise="echo 'op_kernel.cu(1): error: planted' >&2; exit 2")
    (tmp_path / "fastue").mkdir()
    (tmp_path / "fastue" / "_cuda.abi3.so").touch()  # of an earlier build
    report, libraries = built(tmp_path, CUDA_HOME=str(tmp_path / "toolkit"))
    assert libraries == {"_C"} and report["cpp"]["built"] and "g++" in report["cpp"]["how"]
    assert report["cuda"] == {"built": False, "how": "nvcc failed: op_kernel.cu(1): error: planted"}


def test_a_failing_compiler_does_not_cost_the_package(tmp_path, compiler):
    tiny_sources(tmp_path)
    (tmp_path / "csrc" / "op" / "op_cpu.cpp").write_text("#error planted\n")
    report, libraries = built(
        tmp_path, CUDA_HOME="", PATH=os.environ["PATH"], FASTUE_BUILD_EXT="cpp"
    )
    assert libraries == set() and not report["cpp"]["built"]
    assert "error: #error planted" in report["cpp"]["how"] and "g++ 12" in report["cpp"]["how"]
    assert report["cuda"] == {"built": False, "how": "FASTUE_BUILD_EXT=cpp when it was built"}


def test_the_reason_reaches_the_table_of_backends(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "PACKAGE", tmp_path)
    assert "never installed" in native.builds()["cpp"]
    report = {
        "cpp": {"built": True, "how": "g++ 12"},
        "cuda": {"built": False, "how": "no nvcc; install it"},
    }
    (tmp_path / "_build.json").write_text(json.dumps(report))
    assert native.builds() == {"cpp": "built: g++ 12", "cuda": "not built: no nvcc; install it"}
    assert native._load_library("cuda") == "not available: not built: no nvcc; install it"
    (tmp_path / "_C.abi3.so").write_text("not a library")
    assert "_C.abi3.so" in native._load_library("cpp")


def test_the_oldest_gpu_that_is_compiled_for_is_the_oldest_that_is_chosen(build):
    major, minor = opspec.CAPABILITY
    assert build.CUDA_ARCHS[0] == f"{major}{minor}"
