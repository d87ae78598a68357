"""Compile every GPU kernel without a GPU: `python -m bench.compile [--triton] [--cuda]` (neither: both).

Triton goes to cubin for sm_80, sm_90 and sm_100; the assembler that Triton bundles tells registers and spills.
CUDA C++ is compiled *and linked* with plain nvcc against the installed torch (see `nvcc_flags` in setup.py).
Exits with 1 when anything fails, spills, or needs more registers than REGISTERS. Says nothing about speed.
"""

import argparse
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
TRITON_TARGETS = (80, 90, 100)
REGISTERS = 80  # a thread: leaves 768 threads on each SM of these targets, enough to hide memory latency
_USAGE = re.compile(r"Used (\d+) registers")
_SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def ptxas(text: str) -> tuple[int, int]:
    """Most registers a thread and most spilled bytes in the output of `ptxas -v`."""
    registers = max((int(n) for n in _USAGE.findall(text)), default=0)
    spilled = max((int(a) + int(b) for a, b in _SPILL.findall(text)), default=0)
    return registers, spilled


def verdict(what: str, registers: int, spilled: int) -> bool:
    good = 0 < registers <= REGISTERS and spilled == 0
    print(f"{'ok  ' if good else 'FAIL'} {what}: {registers} registers, {spilled} bytes spilled")
    return good


def compile_triton() -> bool:
    """Every entry of every kernels/<op>.py `compiled()`."""
    if os.environ.pop("TRITON_INTERPRET", "0") != "0":
        raise SystemExit("TRITON_INTERPRET is set: interpreted kernels cannot be compiled")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    assemblers = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    good = True
    for path in sorted((ROOT / "kernels").glob("[a-z]*.py")):
        module = importlib.import_module(f"fastue.kernels.{path.stem}")
        for number, (kernel, types, constants) in enumerate(module.compiled()):
            signature = types | dict.fromkeys(constants, "constexpr")
            signature = {name: signature[name] for name in kernel.arg_names}
            aligned = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(signature.values()) if t[0] == "*"}
            source = ASTSource(
                fn=kernel,
                signature=signature,
                constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
                attrs=aligned,
            )
            for target in TRITON_TARGETS:
                options = {"num_warps": 4, "enable_fp_fusion": False}
                made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
                with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
                    file.write(made.asm["ptx"])
                    file.flush()
                    tool = assemblers / ("ptxas-blackwell" if target >= 100 else "ptxas")
                    found = subprocess.run(
                        [tool, "-v", f"-arch=sm_{target}{'a' if target >= 90 else ''}", file.name, "-o", "/dev/null"],
                        check=True, capture_output=True, text=True,
                    )  # fmt: skip
                good &= bool(made.asm["cubin"]) and verdict(
                    f"triton {path.stem}[{number}] sm_{target}", *ptxas(found.stderr)
                )
    return good


def compile_cuda() -> bool:
    """Every csrc/<op>/<op>_kernel.cu and <op>_cuda.cpp, linked into one library with no symbol left open."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("FAIL cuda: nvcc is not on PATH")
        return False
    import torch

    specification = importlib.util.spec_from_file_location("fastue_setup", ROOT / "setup.py")
    build = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(build)
    home = Path(torch.__file__).parent
    good = True
    with tempfile.TemporaryDirectory() as folder:
        paths = [ROOT / source for source in build.sources("*/*_kernel.cu", "*/*_cuda.cpp")]
        objects = [Path(folder) / f"{path.stem}.o" for path in paths]
        flags = [f"-I{home / 'include'}", *build.nvcc_flags(), "-Xptxas", "-v"]
        flags += ["-Xcompiler", "-fPIC,-fvisibility=hidden"]

        def compiled(path: Path, made: Path) -> subprocess.CompletedProcess:
            return subprocess.run([nvcc, "-c", path, "-o", made, *flags], capture_output=True, text=True)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(compiled, paths, objects))
        for path, found in zip(paths, results, strict=True):
            if found.returncode:
                print(f"FAIL cuda {path.stem}\n{found.stderr}")
                return False
            if path.suffix == ".cu":
                targets = " ".join(f"sm_{a}" for a in build.CUDA_ARCHS)
                good &= verdict(f"cuda {path.stem} {targets}", *ptxas(found.stderr))
            else:
                print(f"ok   cuda {path.stem}")
        library = Path(folder) / "_cuda.so"
        # libtorch.so reaches libtorch_cuda.so where torch has CUDA; here its few symbols stay open on purpose.
        link = [nvcc, "-shared", "-o", library, *objects, f"-L{home / 'lib'}", "-Xlinker", "--no-as-needed", "-ltorch"]
        found = subprocess.run([*link, "-ltorch_cpu", "-lc10"], capture_output=True, text=True)
        if found.returncode:
            print(f"FAIL cuda link\n{found.stderr}")
            return False
        print(f"ok   cuda link: {library.stat().st_size >> 10} KiB")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.compile", description=__doc__.splitlines()[0])
    parser.add_argument("--triton", action="store_true", help="only the Triton kernels")
    parser.add_argument("--cuda", action="store_true", help="only the CUDA C++ kernels")
    given = parser.parse_args()
    both = given.triton == given.cuda
    good = compile_triton() if given.triton or both else True
    good &= compile_cuda() if given.cuda or both else True
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
