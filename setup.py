"""What pyproject.toml cannot say: kernels/ is packaged as fastue.kernels, and how csrc/ is built.

    pip install --no-build-isolation -e .    with the libraries; needs torch and a C++ compiler
    FASTUE_BUILD_EXT=0 pip install -e .      with neither; =cpp leaves only the CUDA library out

Two libraries that torch loads, without a Python symbol: fastue/_C*.so is C++, fastue/_cuda*.so is
CUDA, where an nvcc fits torch. One that cannot be built costs neither the other nor the package.
fastue/_build.json says which were built and, of the others, why not; `fastue info` prints it.
"""

import glob
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# torch 2.10's stable ABI: one binary for every later torch. No Python symbol: for every Python.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
CXX_FLAGS = [
    "-O3",
    "-g0",
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
]
# the same bits in every clone, and as the reference
CXX_FLAGS += ["-ffp-contract=off", TORCH_TARGET]
CUDA_ARCHS = ("80", "90", "100")
CUDA_FOLDERS = "/usr/local/cuda"
LINK_FLAGS = ["-ltorch", "-ltorch_cpu", "-lc10"]
LINK_FLAGS += ["-lgcc"]  # the libgcc_s of older systems cannot convert float16


class NotBuilt(Exception):
    """Why a library is left out, with the remedy where there is one."""


def nvcc_flags(archs: tuple[str, ...] = CUDA_ARCHS) -> list[str]:
    """Machine code for each architecture, and PTX of the last for those to come."""
    code = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    ptx = f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}"
    return ["-O3", "-std=c++20", "-DUSE_CUDA", TORCH_TARGET, "-fmad=false", "-lineinfo", *code, ptx]


def sources(*patterns: str) -> list[str]:
    """Paths relative to the root, as setuptools wants them."""
    return sorted(
        str(p.relative_to(ROOT)) for pattern in patterns for p in (ROOT / "csrc").glob(pattern)
    )


def output(*command: str) -> str:
    """What a command prints; NotBuilt with its complaint where it fails."""
    try:
        process = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        raise NotBuilt(f"{command[0]} does not run: {error.strerror}") from None
    if process.returncode == 0:
        return process.stdout
    text = (process.stderr + process.stdout).strip()
    print(f"{shlex.join(command)}\n{text}", file=sys.stderr)  # in full for `pip -v`
    lines = text.splitlines() or [f"exit status {process.returncode}"]
    worst = next((line for line in lines if "error" in line.lower()), lines[-1])
    raise NotBuilt(f"{Path(command[0]).name} failed: {worst.strip()[:300]}")


def torch_folder() -> tuple[Path, str | None]:
    """Where the installed torch is, and the CUDA version it is built for."""
    try:
        import torch
    except Exception as error:  # a broken torch raises anything
        remedy = "install torch, then fastue with --no-build-isolation"
        raise NotBuilt(f"torch cannot be imported ({error}); {remedy}") from None
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < (2, 10):
        raise NotBuilt(f"torch {torch.__version__} is too old; install torch 2.10 or newer")
    return Path(torch.__file__).parent, torch.version.cuda


def cxx() -> list[str]:
    """The C++ compiler: CXX, or the first one on PATH."""
    given = shlex.split(os.environ.get("CXX", ""))
    if given:
        return given
    name = next((name for name in ("g++", "c++", "clang++") if shutil.which(name)), None)
    if name is None:
        raise NotBuilt("no C++ compiler on PATH; install g++ 12 or newer and install fastue again")
    return [name]


def nvccs() -> list[str]:
    """Every nvcc here: of CUDA_HOME, CUDA_PATH, PATH, and of the usual folders, new toolkits first."""
    folders = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    versions = glob.glob(f"{CUDA_FOLDERS}-*")
    versions.sort(key=lambda folder: [int(n) for n in re.findall(r"\d+", folder)], reverse=True)
    programs = [shutil.which("nvcc", path=f"{folder}/bin") for folder in folders]
    programs += [shutil.which("nvcc")]
    programs += [shutil.which("nvcc", path=f"{folder}/bin") for folder in (CUDA_FOLDERS, *versions)]
    return list(dict.fromkeys(p for p in programs if p))


def known_archs(nvcc: str, cuda: str) -> tuple[str, ...]:
    """Those of CUDA_ARCHS that nvcc knows; NotBuilt where its major version is not torch's.

    Minor versions may differ: the runtime is linked statically, and a driver runs all of its major.
    """
    release = re.search(r"release (\d+)(\.\d+)?", output(nvcc, "--version"))
    if release is None:
        raise NotBuilt(f"{nvcc} does not tell its version")
    if release[1] != cuda.split(".")[0]:
        raise NotBuilt(
            f"{nvcc} is of CUDA {release[1]}{release[2] or ''}, torch is built for CUDA {cuda}"
        )
    known = output(nvcc, "--list-gpu-code").split()
    archs = tuple(a for a in CUDA_ARCHS if f"sm_{a}" in known)
    if not archs:
        raise NotBuilt(f"{nvcc} knows none of sm_{', sm_'.join(CUDA_ARCHS)}")
    return archs


def usable_nvcc(cuda: str) -> tuple[str, tuple[str, ...]]:
    """The first nvcc that fits torch's CUDA, with its architectures; or each one's reason."""
    reasons = []
    for nvcc in nvccs():
        try:
            return nvcc, known_archs(nvcc, cuda)
        except NotBuilt as error:
            reasons.append(str(error))
    where = f"no nvcc in CUDA_HOME, in CUDA_PATH, on PATH or in {CUDA_FOLDERS}*"
    toolkit = f"the CUDA {cuda.split('.')[0]} toolkit"
    remedy = f"install {toolkit} and then fastue again, or use the Triton kernels"
    raise NotBuilt(f"{'; '.join(reasons) or where}; {remedy}")


def build_library(
    compiler: list[str], linker: list[str], names: list[str], library: Path, folder: Path
) -> None:
    """Compile each source, several at a time, and link them."""
    folder.mkdir(parents=True, exist_ok=True)
    library.parent.mkdir(parents=True, exist_ok=True)

    def compiled(name: str) -> str:
        made = str(folder / f"{Path(name).name}.o")
        output(*compiler, "-c", name, "-o", made)
        return made

    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        objects = list(pool.map(compiled, names))
    finally:
        pool.shutdown(cancel_futures=True)
    output(*linker, "-shared", "-o", str(library), *objects, *LINK_FLAGS)


def build_cpp(names: list[str], library: Path, folder: Path) -> str:
    """The C++ library; returns how it was built."""
    compiler = cxx()
    home, _ = torch_folder()
    flagged = [*compiler, *CXX_FLAGS, f"-I{home / 'include'}"]
    try:
        build_library(flagged, [*compiler, f"-L{home / 'lib'}"], names, library, folder)
    except NotBuilt as error:
        raise NotBuilt(f"{error}; it takes g++ 12 or newer, CXX=... names another") from None
    return output(*compiler, "--version").splitlines()[0]


def build_cuda(names: list[str], library: Path, folder: Path) -> str:
    """The CUDA library; returns how it was built."""
    home, cuda = torch_folder()
    if cuda is None:
        raise NotBuilt("the installed torch has no CUDA")
    nvcc, archs = usable_nvcc(cuda)
    host = ["-ccbin", cxx()[-1], "-Xcompiler", "-fPIC,-fvisibility=hidden"]
    flagged = [nvcc, *nvcc_flags(archs), *host, f"-I{home / 'include'}"]
    # libtorch.so is needed by no symbol: it leads to libtorch_cuda.so.
    linker = [nvcc, *host[:2], f"-L{home / 'lib'}", "-Xlinker", "--no-as-needed"]
    build_library(flagged, linker, names, library, folder)
    return f"{nvcc} for sm_{', sm_'.join(archs)}"


LIBRARIES = {"fastue._C": ("cpp", build_cpp), "fastue._cuda": ("cuda", build_cuda)}


def excluded(name: str) -> str:
    """Why FASTUE_BUILD_EXT leaves a library out, or nothing."""
    choice = os.environ.get("FASTUE_BUILD_EXT") or "1"
    if choice not in ("0", "1", "cpp"):
        raise SystemExit(
            f"FASTUE_BUILD_EXT={choice!r}: choose 1 (all), cpp (no CUDA) or 0 (nothing)"
        )
    return f"FASTUE_BUILD_EXT={choice} when it was built" if choice not in ("1", name) else ""


class Build(build_ext):
    """Builds the libraries that can be built and writes down why the others cannot."""

    def run(self) -> None:
        self.report: dict[str, dict] = {}
        built = Path(self.build_lib, "fastue")
        package = ROOT / "fastue" if self.inplace else built
        for folder in {package, built}:
            for name in LIBRARIES:
                for old in folder.glob(f"{name.split('.')[-1]}.*so"):
                    old.unlink()  # of an earlier build: it is not what the sources say any more
        super().run()
        package.mkdir(parents=True, exist_ok=True)
        (package / "_build.json").write_text(json.dumps(self.report, indent=1) + "\n")

    def build_extension(self, ext: Extension) -> None:
        name, build = LIBRARIES[ext.name]
        try:
            if reason := excluded(name):
                raise NotBuilt(reason)
            library = Path(self.get_ext_fullpath(ext.name)).resolve()
            how = build(ext.sources, library, Path(self.build_temp, name).resolve())
        except NotBuilt as error:
            self.report[name] = {"built": False, "how": str(error)}
            print(f"fastue: {name} library not built: {error}", file=sys.stderr)
        else:
            self.report[name] = {"built": True, "how": how}


def extension(name: str, *patterns: str) -> Extension:
    headers = sources("*/*.h")
    return Extension(name, sources(*patterns), depends=headers, py_limited_api=True, optional=True)


if __name__ == "__main__":
    excluded("")
    free_threaded = sysconfig.get_config_var("Py_GIL_DISABLED")  # has no limited API
    setup(
        packages=[*find_packages(include=["fastue", "fastue.*"]), "fastue.kernels"],
        package_dir={"fastue.kernels": "kernels"},
        ext_modules=[
            extension("fastue._C", "bindings.cpp", "*/*_cpu.cpp"),
            extension("fastue._cuda", "*/*_kernel.cu", "*/*_cuda.cpp"),
        ],
        cmdclass={"build_ext": Build},
        options={} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp310"}},
    )
