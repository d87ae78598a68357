"""The heap keeps freed blocks: page faults, counted by the kernel, say so."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource
from fastue.core.heap import freed_memory_kept, keep_freed_memory
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes, c.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int,
ctypes.c_size_t]

def faults():
    for number in range(5):
        if number == 1:  # the first block may be fresh
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = c.malloc(64 << 20)
        c.memset(block, 1, 64 << 20)
        c.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fresh = faults()
with freed_memory_kept():
    inside = faults()
print(fresh, inside, faults(), keep_freed_memory(), faults())
"""


def run(**variables):
    env = {
        k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=env | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    fresh, inside, behind, kept, after = done.stdout.split()
    return int(fresh), int(inside), int(behind), kept == "True", int(after)


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names,
    reason="needs glibc",
)
def test_freed_blocks_are_kept():
    fresh, inside, behind, kept, after = run()
    if not kept:
        pytest.skip("this glibc takes no thresholds")
    assert inside < fresh / 4 and after < fresh / 4 and behind > fresh / 2


def test_what_the_user_set_stands():
    assert not run(MALLOC_TRIM_THRESHOLD_="131072")[3]
