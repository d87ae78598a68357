"""The library of build.py as the `cuda` backend of the ops, on CPU tensors, and tensors at pages
nobody may touch."""

import contextlib
import ctypes
import dataclasses
import functools
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from fastue.core import opspec

from .. import checks
from . import build

CACHE = Path(__file__).parents[3] / "build" / "cuda_host"
_SCHEMAS = torch.library.Library(build.NAMESPACE, "DEF")
_LIBC = ctypes.CDLL(None, use_errno=True)
_NONE, _READ = 0, 1  # mprotect(2)


class Library:
    """A compiled library: its kernels' order, how often they were launched, its last error."""

    def __init__(self, path: Path):
        self.code = ctypes.CDLL(str(path))
        self.code.cuda_host_launches.restype = self.code.cuda_host_message.restype = ctypes.c_char_p

    @contextlib.contextmanager
    def order(self, seed: int) -> Iterator[None]:
        """Threads and blocks forward (0), backward (1) or shuffled inside the block."""
        value = ctypes.c_uint64.in_dll(self.code, "cuda_host_seed")
        value.value = seed
        try:
            yield
        finally:
            value.value = 0

    def launches(self) -> dict[str, int]:
        """Launches of every compiled instance of a kernel since the last call: {name<...>:
        number}."""
        lines = (
            line.split(" ", 1) for line in self.code.cuda_host_launches().decode().splitlines()
        )
        return {name: int(number) for number, name in lines}

    def message(self) -> str:
        return self.code.cuda_host_message().decode()


def has_cuda(op: opspec.OpSpec) -> bool:
    return any(b.name == "cuda" for b in op.backends)


@functools.cache
def load(csrc: Path, cache: Path = CACHE, op: str = "*") -> Library:
    """Compile and load the kernels of a source folder, or one op's: once a process, torch takes no
    second kernel."""
    path = build.build(build.kernels(csrc, op), cache)
    for spec in filter(has_cuda, opspec.registry().values()):
        _SCHEMAS.define(spec.name + spec.schema)
    library = Library(path)
    torch.ops.load_library(str(path))
    return library


def native(name: str) -> Callable:
    """The glue of an op, without the checks of the Python side. Memory that it asks torch for is
    poison."""
    glue = getattr(getattr(torch.ops, build.NAMESPACE), name).default

    def call(*args):
        # which fills new memory with NaN or the largest number
        torch.use_deterministic_algorithms(True)
        try:
            return glue(*args)
        finally:
            torch.use_deterministic_algorithms(False)

    return call


def on_host(op: opspec.OpSpec) -> opspec.OpSpec:
    """The op with one backend: `cuda`, on CPU tensors. torch does not know it; checks.run calls it
    as it is."""
    cuda = next(b for b in op.backends if b.name == "cuda")
    return dataclasses.replace(op, backends=(dataclasses.replace(cuda, device="cpu", load=native),))


def fenced(t: torch.Tensor, written: bool, at_end: bool) -> torch.Tensor:
    """A copy of t, same strides, that ends (or begins) at a page nobody may touch; not written, it
    is on pages that can only be read. One that begins there keeps its place between multiples of 16
    bytes. Poison fills the rest."""
    page, lead = mmap.PAGESIZE, checks.misalignment(t)
    size = -(-(lead + checks.used(t)) * t.element_size() // page) * page or page
    memory = mmap.mmap(-1, size + 2 * page)  # lives as long as the tensor
    count = size // t.element_size()
    buffer = torch.frombuffer(memory, dtype=t.dtype, offset=page, count=count)
    buffer.fill_(checks.poison(t.dtype, written))
    first = count - checks.used(t) if at_end else lead
    copy = buffer.as_strided(t.shape, t.stride(), first).copy_(t)
    start = buffer.data_ptr()
    _protect(start - page, page, _NONE)
    _protect(start + size, page, _NONE)
    if not written:
        _protect(start, size, _READ)
    return copy


def _protect(start: int, size: int, access: int) -> None:
    if _LIBC.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(size), access):
        raise OSError(ctypes.get_errno(), "mprotect")


# How a case runs: the seed of the order, and where its tensors are.
RUNS = {
    "ends": (2, functools.partial(fenced, at_end=True)),
    "begins": (1, functools.partial(fenced, at_end=False)),
    "plain": (0, checks.guarded),
}
