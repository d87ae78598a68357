"""How much memory there is."""

import os
import resource
from pathlib import Path

# Of a RuntimeError: torch's own words on the CPU, and those of C++ and oneDNN below it.
_SHORTAGE = ("allocate memory", "bad_alloc", "bad allocation", "could not create a memory")
_CGROUP = Path("/sys/fs/cgroup")


def peak() -> int:
    """The most bytes that this process has had in memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def available() -> int:
    """Bytes that this process may still take without others being swapped out, as far as the system
    tells; within a container its own limit counts.
    """
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    free = pages * size
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        most = int((_CGROUP / "memory.max").read_text())
        free = min(free, most - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no limit is the word "max"
        pass
    return max(free, 0)


def is_short(error: BaseException) -> bool:
    """Whether an error says that an allocation failed, on the host or on a device."""
    import torch

    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _SHORTAGE)
