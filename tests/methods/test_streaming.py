"""Noise in shard files is the noise that memory would hold, however often the run is killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from fastue.core.errors import DataError
from fastue.data.bank import Bank
from fastue.methods import loop
from fastue.methods.base import Checkpointer
from fastue.methods.emn import EMNConfig, emn

SMALL = {"arch": "cnn-w8", "precision": "float32", "batch": 32, "train_steps": 5, "steps": 2}
CONFIG = EMNConfig(max_sweeps=3, **SMALL)


class Killed(Exception):
    pass


def files(folder, **options):
    return Checkpointer(folder, seconds=0, limit=0, **options)


def test_shards_change_nothing(tiny, tmp_path):
    whole = emn(tiny(), CONFIG)
    streamed = emn(tiny(), CONFIG, checkpoint=files(tmp_path))
    assert isinstance(streamed.bank, Bank) and streamed.bank.shards == 3
    assert torch.equal(whole.noise, streamed.noise) and whole.history == streamed.history
    some = torch.tensor([95, 3, 40, 3])
    assert torch.equal(streamed.quantised(some), whole.quantised()[some])
    assert sorted(path.name for path in (tmp_path / "bank").iterdir()) == [
        f"0000{shard}.3.safetensors" for shard in range(3)
    ]


@pytest.mark.parametrize("crops", [False, True])
def test_killed_anywhere_it_ends_in_the_same_noise(tiny, tmp_path, crops):
    config = EMNConfig(max_sweeps=3, crops=crops, **SMALL)
    whole, calls = emn(tiny(), config), 0

    def dies(phase, done, total, info):
        nonlocal calls
        calls += 1
        if calls % 6 == 0:  # a round of training is five calls, a shard is one
            raise Killed

    for _ in range(200):
        try:
            resumed = emn(tiny(), config, checkpoint=files(tmp_path), progress=dies)
            break
        except Killed:
            continue
    assert calls > 24
    assert torch.equal(whole.noise, resumed.noise) and whole.history == resumed.history


def test_a_kill_between_a_new_shard_and_the_end_of_the_old_one(tmp_path):
    bank = Bank(tmp_path, 5, (1, 2, 2), 3)
    for value in (1.0, 2.0):
        bank.store(1, torch.full((2, 1, 2, 2), value), correct=int(value))
        bank.wait()
        if value == 1:
            old = (tmp_path / "00001.1.safetensors").read_bytes()
    (tmp_path / "00001.1.safetensors").write_bytes(old)
    (tmp_path / "00000.1.safetensors.77.fastue-tmp").write_bytes(b"half")
    again = Bank(tmp_path, 5, (1, 2, 2), 3)
    assert again.sweeps(1) == 2 and again.correct(1) == 2 and again.sweeps(0) == 0
    again.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["00001.2.safetensors"]
    values = again.rows(torch.tensor([4, 0, 3]))[:, 0, 0, 0]
    assert values.tolist() == [2, 0, 2]


def test_damage_and_files_of_two_runs_are_found(tiny, tmp_path):
    emn(tiny(), CONFIG, checkpoint=files(tmp_path))
    path = tmp_path / "bank" / "00001.3.safetensors"
    longer = EMNConfig(max_sweeps=4, min_sweeps=4, **SMALL)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="00001.3.safetensors: damaged"):
        emn(tiny(), longer, checkpoint=files(tmp_path))
    path.rename(path.with_name("00001.9.safetensors"))
    with pytest.raises(DataError, match="shard 1 has 9 sweeps"):
        emn(tiny(), longer, checkpoint=files(tmp_path))


def test_a_full_disk_is_said_and_the_run_goes_on_later(tiny, tmp_path, monkeypatch):
    import errno

    from fastue.data import atomic

    whole, real, left = emn(tiny(), CONFIG), atomic.os.replace, 4

    def full(old, new):
        nonlocal left
        left -= "bank" in str(new)
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(old, new)

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(DataError, match="the disk is full"):
        emn(tiny(), CONFIG, checkpoint=files(tmp_path))
    left = 100
    assert torch.equal(emn(tiny(), CONFIG, checkpoint=files(tmp_path)).noise, whole.noise)


SHORT = """
import resource, torch
from fastue import models
from fastue.core import memory
from fastue.methods import loop
from fastue.models.frozen import FrozenCopy

torch.manual_seed(0)
model = models.build("cnn-w32", 10, 3, seed=0)
theta = FrozenCopy(model, "float32")
noisy = torch.rand(48, 3, 160, 160).contiguous(memory_format=torch.channels_last)
y = torch.arange(48) % 10
whole, right = loop.input_gradient(theta.refresh(), noisy, y)

shortages = []
real = memory.is_short
memory.is_short = lambda error: shortages.append(str(error)) or real(error)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
most = size + (160 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
short, count = loop.input_gradient(theta, noisy, y)
assert shortages, "there was enough memory"
assert count == right and short.stride() == whole.stride()
assert (short - whole).abs().max() <= 1e-5 * whole.abs().max()
print("halved", len(shortages), "times")
"""


def test_too_little_memory_for_a_batch_is_enough_for_its_parts():
    """By doing it: a process with little room computes what one with much room does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SHORT], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("halved")


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def theta(noisy):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        loop.input_gradient(theta, torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.int64))

    def never(noisy):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DataError, match="memory for the gradient of a single picture"):
        loop.input_gradient(never, torch.rand(4, 3, 4, 4), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("memory", ["1T", "256M"])
def test_asked_to_stop_it_goes_on_later_to_the_same_bytes(tiny_folder, tmp_path, number, memory):
    source = tiny_folder(per_class=60)
    command = [sys.executable, "-m", "fastue", "protect", str(source), "--arch", "cnn-w8"]
    command += ["--precision", "float32", "--max-sweeps", "60", "--no-check"]
    command += ["--max-memory", memory]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    run = subprocess.Popen(
        [*command, "--out", str(out)], stderr=subprocess.PIPE, text=True, env=environment
    )
    while not (out / "run.json").exists():  # asked while it works
        assert run.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    run.send_signal(number)
    errors = run.communicate()[1]
    assert run.returncode == 4, errors
    assert "stopping where it can go on from" in errors and "interrupted" in errors
    assert (out / "work" / "checkpoint.safetensors").exists()
