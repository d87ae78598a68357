"""The heap keeps freed blocks: page faults, counted by the kernel, say so."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from fastue.core.heap import freed_memory_kept, keep_freed_memory

def faults():
    torch.zeros(96 << 20, dtype=torch.uint8)  # memalign of glibc before 2.38 wants room to reuse a block
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.zeros(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

fresh = faults()
with freed_memory_kept():
    inside = faults()
print(fresh, inside, faults(), keep_freed_memory(), faults())
"""


def run(**variables):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=env | variables, capture_output=True, text=True, check=True
    )
    fresh, inside, behind, kept, after = done.stdout.split()
    return int(fresh), int(inside), int(behind), kept == "True", int(after)


@pytest.mark.skipif(not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="needs glibc")
def test_freed_blocks_are_kept():
    fresh, inside, behind, kept, after = run()
    if not kept:
        pytest.skip("this glibc takes no thresholds")
    assert inside < fresh / 4 and after < fresh / 4 and behind > fresh / 2


def test_what_the_user_set_stands():
    assert not run(MALLOC_TRIM_THRESHOLD_="131072")[3]
