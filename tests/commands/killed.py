"""Kill a command at random moments until it is done: `python tests/commands/killed.py 100 OUT
COMMAND …`.

OUT is what the command fills; moments count from when it has begun to work there, which the time of
OUT/.lock tells. Of several processes (torchrun's ranks) all die at once by SIGKILL, or
every second time a single one, after which the others have to end by themselves. A run that ends
before its kill starts over, so that all kills hit something. For slow tests, and by hand.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path


def until_done(command: list[str], out: Path, kills: int, seed: int, latest: float) -> list[float]:
    """Seconds of work before each kill, at most `latest`; the last start has run to its end."""
    draw, moments = random.Random(seed), []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while True:
        over = len(moments) >= kills
        before = _claimed(out)
        run = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        )
        while not over and run.poll() is None and _claimed(out) == before:
            time.sleep(0.01)
        start = time.monotonic()
        try:
            _, errors = run.communicate(timeout=None if over else latest * draw.random())
        except subprocess.TimeoutExpired:
            moments.append(time.monotonic() - start)
            family = [run.pid, *below(run.pid)]
            one = len(family) > 1 and len(moments) % 2
            for pid in [draw.choice(family[1:])] if one else family:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            run.communicate(timeout=600)
            continue
        assert run.returncode == 0, errors.decode()
        if over:
            return moments
        shutil.rmtree(out)


def _claimed(out: Path) -> int:
    lock = out / ".lock"
    return lock.stat().st_mtime_ns if lock.exists() else 0


def below(pid: int) -> list[int]:
    """The processes that a process has started, and those they have."""
    parents = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            text = Path("/proc", entry, "stat").read_text()
            parents[int(entry)] = int(text.rpartition(")")[2].split()[1])
    found = [pid]
    for ancestor in found:
        found += [child for child, parent in parents.items() if parent == ancestor]
    return found[1:]


if __name__ == "__main__":
    begun = time.monotonic()
    moments = until_done(sys.argv[3:], Path(sys.argv[2]), int(sys.argv[1]), seed=0, latest=6.0)
    print(f"{len(moments)} kills, {time.monotonic() - begun:.0f} s")
