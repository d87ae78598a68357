"""The C library's heap, told to keep what is freed.

glibc gives each freed block above 32 MB back to the system and fetches fresh pages for the next: in
a training step every large activation is paid for twice, once in page faults. Measured by `python
-m bench.methods`.
"""

import contextlib
import ctypes
from collections.abc import Iterator

from fastue.core import env

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # names of mallopt(3)
_GIB = 1 << 30


def keep_freed_memory() -> bool:
    """Blocks below 1 GiB stay with the process. False where there is no glibc, or where the user
    has set malloc."""
    if env.malloc_is_set():
        return False
    return _mallopt(_GIB, (1 << 31) - 1)


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """The same for a block; behind it the thresholds are those that glibc reaches by itself (32 and
    64 MB)."""
    kept = keep_freed_memory()
    try:
        yield
    finally:
        if kept:
            _mallopt(32 << 20, 64 << 20)


def _mallopt(mmap: int, trim: int) -> bool:
    try:
        call = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return False  # not glibc
    return call(_MMAP_THRESHOLD, mmap) == 1 and call(_TRIM_THRESHOLD, trim) == 1
