"""Noise in shard files is the noise that memory would hold, however often the run is killed."""

import pytest
import torch

from fastue.core.errors import DataError
from fastue.data.bank import Bank
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
