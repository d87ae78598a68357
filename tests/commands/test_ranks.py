"""protect under torchrun: several ranks, one result."""

import hashlib
import os
import subprocess
import sys
import time

import pytest
import torch
from killed import until_done

from fastue.commands import protect as commands
from fastue.data import checkpoint
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.verify import verify


def digests(folder):
    """What may not depend on when and how often a run was killed."""
    files = [folder / "manifest.json", *(folder / "noise").iterdir()]
    files += (folder / "images").rglob("*.png")
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def protect(source, out, ranks: int, *flags: str):
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(torchrun if ranks > 1 else []), "-m", "fastue", "protect"]
    small = ("--arch", "cnn-w8", "--precision", "float32", "--steps", "2", "--max-sweeps", "2")
    return subprocess.run(
        [*command, str(source), "--out", str(out), *small, "--no-check", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("mode", ["sample", "class"])
def test_two_ranks_make_one_protection(tiny_folder, tmp_path, mode):
    source = tiny_folder(per_class=96)
    flags = ("--mode", mode, "--crops", "--max-memory", "256M")
    done = protect(source, tmp_path / "two", 2, *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written") == 1  # one of them speaks
    assert verify(tmp_path / "two", open_dataset(source)).ok
    assert not (tmp_path / "two" / "work").exists()

    # One process sums the same gradients in another order, and its BatchNorm sees whole batches.
    alone = protect(source, tmp_path / "alone", 1, *flags)
    assert alone.returncode == 0, alone.stderr
    two, one = (NoiseStore.open(tmp_path / name).bank().float() for name in ("two", "alone"))
    assert torch.nn.functional.cosine_similarity(two.flatten(), one.flatten(), dim=0) > 0.5


def test_keyed_noise_is_the_same_on_any_number_of_ranks(tiny_folder, tmp_path):
    source, out = tiny_folder(), tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "fastue", "protect", str(source), "--out", str(out), "--method", "lsp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--no-check"], check=True, capture_output=True, env=environment)
    commands.protect(source, tmp_path / "one", "lsp", check=False)
    assert digests(tmp_path / "one") == digests(out)


LATE = """
import sys, time
from pathlib import Path
from fastue import distributed
from fastue.data import atomic, checkpoint
from fastue.methods.base import Checkpointer

def late(function, seconds):
    def call(*arguments, **keywords):
        time.sleep(seconds)
        return function(*arguments, **keywords)
    return call

if distributed.first():
    atomic.os.replace = late(atomic.os.replace, 3)
else:
    checkpoint.remove_stale = late(checkpoint.remove_stale, 1.5)
snapshots = Checkpointer(Path(sys.argv[1]))
snapshots.load()
snapshots.save(lambda: ({}, {"sweep": 7}))
distributed.barrier()
"""


def test_a_rank_that_loads_late_removes_no_snapshot_that_another_is_writing(tmp_path):
    script, folder = tmp_path / "late.py", tmp_path / "work"
    script.write_text(LATE)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, str(script), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(folder)[1] == {"sweep": 7}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sample", "class"])
def test_ranks_killed_at_random_end_in_the_same_bytes(tiny_folder, tmp_path, mode):
    source = tiny_folder(per_class=150)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "fastue", "protect", str(source), "--mode", mode, "--arch", "cnn-w8"]
    command += ["--precision", "float32", "--max-sweeps", "12", "--no-check", "--out"]
    start = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment)
    latest, out = time.monotonic() - start, tmp_path / "killed"
    assert len(until_done([*command, str(out)], out, 10, seed=0, latest=latest)) == 10
    assert digests(tmp_path / "whole") == digests(out)
