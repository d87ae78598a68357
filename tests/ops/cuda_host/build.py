"""Compile CUDA files as C++: a library in which each CUDA thread is a fiber (runtime.cpp).

A launch `kernel<...><<<grid, block, 0, stream>>>(...)` becomes a call of a template on the kernel;
nothing else in a kernel's text changes. Headers of CUDA come from include/. An object is kept under
the hash of all that it depends on.
"""

import fcntl
import hashlib
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).parent
INCLUDE = HERE / "include"
TORCH = Path(torch.__file__).parent
NAMESPACE = "fastue_cuda_host"
FLAGS = [
    *("-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"),
    *(
        "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        f"-I{INCLUDE}",
        f"-isystem{TORCH / 'include'}",
    ),
    # A misaligned access is an illegal instruction; what is not initialised is a large negative
    # number.
    *(
        "-fsanitize=alignment",
        "-fsanitize-undefined-trap-on-error",
        "-ftrivial-auto-var-init=pattern",
    ),
    *("-U_FORTIFY_SOURCE", "-Wno-unknown-pragmas", "-Wno-attributes"),
    "-DFASTUE_CACHE_BYTES=100000",  # a large picture is a group of its own (l2_step)
    *("-fmax-errors=5", "-ftemplate-backtrace-limit=1"),
]
LINK = [f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]


class CompileError(RuntimeError):
    """g++ refused a file; the message is g++'s."""


def rewrite_launches(text: str) -> str:
    """`name<...><<<grid, block, 0, stream>>>(` as `cuda_host::launch<&name<...>>(grid, block, 0,
    stream)(`."""
    start = text.find("<<<")
    if start < 0:
        return text
    name = _start_of_name(text, start)
    end = _end_of_launch(text, start + 3)
    call = f"::cuda_host::launch<&{text[name:start]}>({text[start + 3 : end]})"
    return text[:name] + call + rewrite_launches(text[end + 3 :])


def _start_of_name(text: str, end: int) -> int:
    """Where the kernel's name begins that ends before `end`, template arguments included."""
    at, depth = len(text[:end].rstrip()), 0
    while depth or text[at - 1] == ">":
        at -= 1
        depth += {">": 1, "<": -1}.get(text[at], 0)
    return re.search(r"[\w:]+\s*$", text[:at]).start()


def _end_of_launch(text: str, at: int) -> int:
    depth = 0
    while depth or text[at : at + 3] != ">>>":
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        at += 1
    return at


def translate(path: Path) -> str:
    """The C++ of a .cu file, or of glue: it registers for CPU tensors in a namespace of its own."""
    text = path.read_text()
    text = re.sub(r"(_LIBRARY_IMPL\(\s*)fastue_native(\s*,\s*)CUDA\b", rf"\1{NAMESPACE}\2CPU", text)
    first = "#include <cuda_runtime.h>\n" if path.suffix == ".cu" else ""
    return f'{first}#line 1 "{path.parent.name}/{path.name}"\n{rewrite_launches(text)}'


def _dependencies(path: Path, known: dict[Path, bytes]) -> dict[Path, bytes]:
    """The file and what it includes in quotes, recursively: {path: bytes}."""
    if path not in known and path.is_file():
        known[path] = path.read_bytes()
        for name in re.findall(rb'#include "([^"]+)"', known[path]):
            _dependencies((path.parent / name.decode()).resolve(), known)
    return known


def _key(path: Path) -> str:
    shims = {p: p.read_bytes() for p in sorted(INCLUDE.iterdir())}
    contents = [
        *_dependencies(path.resolve(), {}).values(),
        *shims.values(),
        Path(__file__).read_bytes(),
    ]
    facts = [torch.__version__.encode(), *(flag.encode() for flag in FLAGS)]
    return hashlib.sha256(b"\0".join([*contents, *facts])).hexdigest()[:24]


def compile_object(path: Path, cache: Path) -> Path:
    """The file's object in the cache, compiled if it is not there."""
    target = cache / f"{path.stem}-{_key(path)}.o"
    if not target.exists():
        partial = target.with_suffix(".part")
        command = ["g++", *FLAGS, "-c", "-x", "c++", "-", "-o", str(partial)]
        result = subprocess.run(
            command, cwd=path.parent, input=translate(path), capture_output=True, text=True
        )
        if result.returncode:
            raise CompileError(f"{path} as C++ for the CPU:\n{result.stderr}")
        partial.replace(target)
    return target


def build(sources: list[Path], cache: Path) -> Path:
    """A library of these files and the runtime. One process at a time builds in a cache; the others
    wait for it."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with ThreadPoolExecutor(min(len(sources) + 1, os.cpu_count() or 1)) as pool:
            objects = list(
                pool.map(lambda path: compile_object(path, cache), [HERE / "runtime.cpp", *sources])
            )
        names = "\0".join(o.name for o in objects).encode()
        library = cache / f"cuda_host-{hashlib.sha256(names).hexdigest()[:24]}.so"
        if not library.exists():
            # Its own cudaGetLastError and the like, even beside a torch that brings CUDA's.
            command = [
                "g++",
                "-shared",
                "-Wl,-Bsymbolic",
                *map(str, objects),
                "-o",
                f"{library}.part",
                *LINK,
            ]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise CompileError(f"linking the CUDA files as C++:\n{result.stderr}")
            Path(f"{library}.part").replace(library)
    return library


def kernels(csrc: Path, op: str = "*") -> list[Path]:
    """Every kernel of a source folder and its glue, or those of one op."""
    return sorted([*csrc.glob(f"{op}/*_kernel.cu"), *csrc.glob(f"{op}/*_cuda.cpp")])
