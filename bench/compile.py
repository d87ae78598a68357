"""Compile every GPU kernel without a GPU: `python -m bench.compile [--triton] [--cuda]`.

Triton goes to cubin for sm_80, sm_90 and sm_100, for launches that the real launchers make; the
assembler that Triton bundles tells registers and spills, PTX how wide the accesses are.
CUDA C++ is compiled *and linked* with plain nvcc against the installed torch (see `nvcc_flags` in
setup.py). Exits with 1 when anything fails, spills, needs more registers than REGISTERS (kernels/<op>.py
may have its own), or reads a tensor element by element without a reason. Says nothing about speed.
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
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

ROOT = Path(__file__).parent.parent
TRITON_TARGETS = (80, 90, 100)
REGISTERS = (
    80  # a thread: leaves 768 threads on each SM of these targets, enough to hide memory latency
)
_USAGE = re.compile(r"Used (\d+) registers")
_ACCESS = re.compile(r"\b(ld|st)\.global[.\w:]*?(?:\.v(\d))?\.[bfsu](\d+)\s.*?\[\s*(%\w+)")
_COPY = re.compile(r"\bcp\.async\S+\s.*?,\s*\[\s*(%\w+).*?\],\s*(\w+)")
_REGISTER = re.compile(r"%\w+")
_ARGUMENT = re.compile(r"_param_(\d+)")
# Pictures; not indices.
_ELEMENT_SIZE = {"*fp32": 4, "*bf16": 2, "*fp16": 2, "*u8": 1, "*i8": 1, "*i1": 1, "*u1": 1}
_SPILL = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")


def ptxas(text: str) -> tuple[int, int]:
    """Most registers a thread and most spilled bytes in the output of `ptxas -v`."""
    registers = max((int(n) for n in _USAGE.findall(text)), default=0)
    spilled = max((int(a) + int(b) for a, b in _SPILL.findall(text)), default=0)
    return registers, spilled


def verdict(
    what: str, registers: int, spilled: int, narrow: Sequence[str] = (), most: int = REGISTERS
) -> bool:
    good = 0 < registers <= most and spilled == 0 and not narrow
    more = f", no vectors: {', '.join(narrow)}" if narrow else ""
    print(
        f"{'ok  ' if good else 'FAIL'} {what}: {registers} registers, {spilled} bytes spilled{more}"
    )
    return good


def accesses(ptx: str) -> dict[tuple[str, int], int]:
    """Bytes of a thread's widest access, by kind (ld or st) and number of the kernel's argument."""
    origins: dict[str, set[int]] = {}  # register -> arguments that it was computed from
    widest: dict[tuple[str, int], int] = {}
    for line in ptx.splitlines() * 2:  # what a loop carries is known the second time
        if access := _ACCESS.search(line):
            kind, vector, bits, address = access.groups()
            size = int(vector or 1) * int(bits) // 8
        elif access := _COPY.search(line):
            kind, address, size = "ld", access[1], int(access[2], 0)
        else:
            target, *sources = _REGISTER.findall(line) or [""]
            own = {int(number) for number in _ARGUMENT.findall(line)}
            origins.setdefault(target, set()).update(own, *(origins.get(r, ()) for r in sources))
            continue
        for number in origins.get(address, ()):
            widest[kind, number] = max(widest.get((kind, number), 0), size)
    return widest


def vectors(kernel: Any, singly: Iterable[str]) -> tuple[str, list[str]]:
    """The widest accesses of pictures in words; those that are narrower than four elements."""
    arguments = [(name, kind) for name, kind in kernel.src.signature.items() if kind != "constexpr"]
    words, narrow = [], []
    for (kind, number), size in sorted(
        accesses(kernel.asm["ptx"]).items(), key=lambda item: item[0][::-1]
    ):
        name, element = (
            arguments[number][0].removesuffix("_ptr"),
            _ELEMENT_SIZE.get(arguments[number][1]),
        )
        if element:
            words.append(f"{kind} {name} {size}")
            narrow += [f"{kind} {name}"] * (size < 4 * element and name not in singly)
    return ", ".join(words), narrow


def triton_launches(module: ModuleType, target: int) -> Iterator[tuple[Any, Iterable[str]]]:
    """Each compiled kernel of `launches()` with the tensors read singly. The launchers themselves
    run, on CPU tensors: Triton specialises on their arguments as on a GPU, compiles, and launches
    nothing."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import JITFunction, driver

    gpu = GPUTarget("cuda", target, 32)
    asked = dict(
        current_device=lambda: target, current_stream=lambda device: 0, current_target=lambda: gpu
    )
    driver.set_active(SimpleNamespace(**{f"get_{name}": answer for name, answer in asked.items()}))
    run, kernels = JITFunction.run, []

    def compile_only(kernel, *args, warmup, **options):
        kernels.append(run(kernel, *args, warmup=True, **options))

    with mock.patch.object(JITFunction, "run", compile_only):
        for arguments, singly in module.launches():
            getattr(module, module.__name__.rpartition(".")[2])(*arguments)
            yield from ((kernel, singly) for kernel in kernels)
            kernels.clear()


def compile_triton() -> bool:
    """Every launch of every kernels/<op>.py `launches()`, once for each target."""
    if os.environ.pop("TRITON_INTERPRET", "0") != "0":
        raise SystemExit("TRITON_INTERPRET is set: interpreted kernels cannot be compiled")
    import triton

    assemblers = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    good = True
    for path in sorted((ROOT / "kernels").glob("[a-z]*.py")):
        module = importlib.import_module(f"fastue.kernels.{path.stem}")
        for target in TRITON_TARGETS:
            tool = assemblers / ("ptxas-blackwell" if target >= 100 else "ptxas")
            for number, (kernel, singly) in enumerate(triton_launches(module, target)):
                with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
                    file.write(kernel.asm["ptx"])
                    file.flush()
                    result = subprocess.run(
                        [tool, "-v", f"-arch=sm_{target}{'a' if target >= 90 else ''}", file.name, "-o", "/dev/null"],
                        check=True, capture_output=True, text=True,
                    )  # fmt: skip
                widest, narrow = vectors(kernel, singly)
                what = f"triton {path.stem}[{number}] sm_{target} ({widest})"
                most = getattr(module, "REGISTERS", REGISTERS)
                good &= verdict(what, *ptxas(result.stderr), narrow, most)
                good &= bool(kernel.asm["cubin"])
    return good


def crumbs(ptx: str) -> list[str]:
    """Accesses of single elements in the instances that promise four pixels at a time (VECTOR).

    Read singly are indices and sums (64 bits) and a mask's pixels (bytes).
    """
    narrow = []
    for name, body in re.findall(r"\.entry (\w+)\((.*?)^}", ptx, re.DOTALL | re.MULTILINE):
        accesses = (
            re.findall(r"\b(ld|st)\.global([.\w]*?)\.([bfsu]\d+)\s", body) if "Lb1E" in name else []
        )
        for kind, how, element in accesses:
            short = (
                ("f32", "b16", "u16", "f16")
                if kind == "ld"
                else ("f32", "b16", "u16", "u8", "s8", "b8")
            )
            if ".v" not in how and element in short:
                narrow.append(f"{kind} {element} in {name}")
    return narrow


def compile_cuda() -> bool:
    """Every csrc/<op>/<op>_kernel.cu and <op>_cuda.cpp, linked into one library with no symbol left
    open."""
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
        flags += ["-Xcompiler", "-fPIC,-fvisibility=hidden", "--keep", "--keep-dir", folder]

        def compiled(path: Path, made: Path) -> subprocess.CompletedProcess:
            return subprocess.run(
                [nvcc, "-c", path, "-o", made, *flags], capture_output=True, text=True
            )

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(compiled, paths, objects))
        for path, found in zip(paths, results, strict=True):
            if found.returncode:
                print(f"FAIL cuda {path.stem}\n{found.stderr}")
                return False
            if path.suffix == ".cu":
                targets = " ".join(f"sm_{a}" for a in build.CUDA_ARCHS)
                narrow = [
                    n
                    for ptx in Path(folder).glob(f"{path.stem}*.ptx")
                    for n in crumbs(ptx.read_text())
                ]
                good &= verdict(
                    f"cuda {path.stem} {targets}", *ptxas(found.stderr), sorted(set(narrow))
                )
            else:
                print(f"ok   cuda {path.stem}")
        library = Path(folder) / "_cuda.so"
        # libtorch.so reaches libtorch_cuda.so where torch has CUDA; here its few symbols stay open
        # on purpose.
        link = [
            nvcc,
            "-shared",
            "-o",
            library,
            *objects,
            f"-L{home / 'lib'}",
            "-Xlinker",
            "--no-as-needed",
            "-ltorch",
        ]
        found = subprocess.run([*link, "-ltorch_cpu", "-lc10"], capture_output=True, text=True)
        if found.returncode:
            print(f"FAIL cuda link\n{found.stderr}")
            return False
        print(f"ok   cuda link: {library.stat().st_size >> 10} KiB")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compile", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--triton", action="store_true", help="only the Triton kernels")
    parser.add_argument("--cuda", action="store_true", help="only the CUDA C++ kernels")
    given = parser.parse_args()
    both = given.triton == given.cuda
    good = compile_triton() if given.triton or both else True
    good &= compile_cuda() if given.cuda or both else True
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
