"""Whole or absent: atomic files, full disks, stale leftovers, checkpoints."""

import errno
import json
import os
import resource
import subprocess
import time

import numpy as np
import pytest
import torch
from data_helpers import Child

from fastue.core.errors import DataError
from fastue.data import atomic, checkpoint
from fastue.data.tensorfile import read_tensors, write_tensors


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_writes_replace_and_leave_nothing_else(tmp_path):
    atomic.atomic_write_bytes(tmp_path / "a", b"one")
    atomic.atomic_write_bytes(tmp_path / "a", b"two", durable=False)
    atomic.atomic_write_text(tmp_path / "b", "été")
    assert (tmp_path / "a").read_bytes() == b"two" and (tmp_path / "b").read_text(
        encoding="utf-8"
    ) == "été"
    assert names(tmp_path) == ["a", "b"]


def test_equal_values_give_equal_json(tmp_path):
    atomic.atomic_write_json(tmp_path / "a", {"b": [1, 2], "a": 0.1})
    atomic.atomic_write_json(tmp_path / "b", {"a": 0.1, "b": (1, 2)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with pytest.raises(ValueError):
        atomic.atomic_write_json(tmp_path / "a", {"x": float("nan")})
    assert json.loads((tmp_path / "a").read_text()) == {"a": 0.1, "b": [1, 2]}


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "no permission"),
    ],
)
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failed_write_keeps_the_old_file_and_no_temporary(
    tmp_path, monkeypatch, number, message, where
):
    (tmp_path / "a").write_bytes(b"old")

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, where, fail)
    with pytest.raises(DataError, match=message):
        atomic.atomic_write_bytes(tmp_path / "a", b"new")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_a_write_that_the_system_cuts_short(tmp_path):
    # No patching: the kernel refuses the bytes beyond the limit in the middle of the file.
    def work(say):
        checkpoint.save(tmp_path / "work", {"a": torch.zeros(1000)}, {"step": 1})
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        try:
            checkpoint.save(tmp_path / "work", {"a": torch.ones(1_000_000)}, {"step": 2})
        except DataError as error:
            say(error)

    assert "larger than this system allows" in Child(work).wait()
    tensors, state = checkpoint.load(tmp_path / "work")
    assert state == {"step": 1} and torch.equal(tensors["a"], torch.zeros(1000))
    assert names(tmp_path / "work") == ["checkpoint.safetensors"]


def test_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small disk here: {mounted.stderr.decode().strip()}")
    try:
        checkpoint.save(disk / "work", {"a": torch.zeros(1000)}, {"step": 1})
        with pytest.raises(
            DataError, match="disk is full. Free some space and run the same command again"
        ):
            checkpoint.save(disk / "work", {"a": torch.ones(1_000_000)}, {"step": 2})
        assert checkpoint.load(disk / "work")[1] == {"step": 1}
        assert names(disk / "work") == ["checkpoint.safetensors"]
        with pytest.raises(DataError, match=r"about 1.0 MiB are needed and .* are free"):
            atomic.free_space_check(disk / "not" / "yet", 1 << 20)
        atomic.free_space_check(disk, 1000)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_other_places_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        atomic.atomic_write_bytes(tmp_path / "none" / "a", b"")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="a file stands where a folder is needed"):
        atomic.make_folder(tmp_path / "file" / "below")


def test_stale_temporaries_are_removed_and_other_files_are_not(tmp_path):
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "x.png.123.fastue-tmp").write_bytes(b"half")
    (tmp_path / "below" / "x.png").write_bytes(b"whole")
    assert atomic.remove_stale(tmp_path) == 1
    assert names(tmp_path / "below") == ["x.png"]


def test_the_longest_names(tmp_path):
    name = "ü" * 127
    atomic.atomic_write_bytes(tmp_path / name, b"x")
    assert names(tmp_path) == [name]


TENSORS = {
    "channels_last": torch.randn(4, 3, 6, 5).to(memory_format=torch.channels_last),
    "plain": torch.randn(4, 3, 6, 5),
    "turned": torch.randn(5, 4).t(),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.empty(0, 3),
    "half": torch.tensor([1.0, float("nan"), float("inf"), -0.0, 1e-40]).bfloat16(),
    "odd": torch.tensor([float("nan"), -0.0, 1e-45]),
    "whole": torch.tensor([2**62, -1]),
    "byte": torch.tensor([0, 255], dtype=torch.uint8),
    "yes": torch.tensor([True, False]),
}


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []


def test_checkpoints_come_back_exactly(tmp_path):
    tensors = {**TENSORS, "shared": TENSORS["plain"], "part": TENSORS["plain"][1:3]}
    state = {
        "sweep": 3,
        "loss": 0.1,
        "nothing": None,
        "list": [1, [2]],
        "big": 2**80,
        "nan": float("inf"),
    }
    checkpoint.save(tmp_path / "work", tensors, state)
    loaded, loaded_state = checkpoint.load(tmp_path / "work")
    assert loaded_state == state and set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape, name
        assert bits(loaded[name]) == bits(tensor), name
    assert loaded["channels_last"].stride() == TENSORS["channels_last"].stride()
    assert loaded["plain"].stride() == TENSORS["plain"].stride()


def test_a_checkpoint_is_a_copy_and_can_be_cleared(tmp_path):
    assert checkpoint.load(tmp_path / "work") is None
    checkpoint.clear(tmp_path / "work")
    value = torch.ones(3)
    checkpoint.save(tmp_path / "work", {"a": value}, {})
    value.zero_()
    loaded = checkpoint.load(tmp_path / "work")[0]["a"]
    loaded.add_(1)
    assert checkpoint.load(tmp_path / "work")[0]["a"].tolist() == [1, 1, 1]
    checkpoint.clear(tmp_path / "work")
    assert not (tmp_path / "work").exists() and checkpoint.load(tmp_path / "work") is None


def test_state_that_is_not_json_is_refused_and_the_old_snapshot_stays(tmp_path):
    checkpoint.save(tmp_path, {}, {"step": 1})
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, {}, {"step": torch.ones(1)})
    assert checkpoint.load(tmp_path)[1] == {"step": 1}


def test_equal_content_gives_equal_bytes(tmp_path):
    one = write_tensors(tmp_path / "a", TENSORS, {"x": 1, "y": 2})
    two = write_tensors(tmp_path / "b", dict(reversed(TENSORS.items())), {"y": 2, "x": 1})
    assert one == two and (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_tools_can_read_our_files(tmp_path):
    from safetensors.torch import load_file

    write_tensors(tmp_path / "a", TENSORS, {})
    loaded = load_file(tmp_path / "a")
    assert torch.equal(loaded["plain"], TENSORS["plain"])
    assert torch.equal(loaded["turned"], TENSORS["turned"])


def test_every_kind_of_damage_is_noticed(tmp_path):
    path = tmp_path / "a"
    write_tensors(path, {"a": torch.arange(100.0)}, {"step": 1})
    whole = path.read_bytes()
    head = 8 + int.from_bytes(whole[:8], "little")
    flipped = bytearray(whole)
    flipped[head + 17] ^= 1
    longer_header = (2**40).to_bytes(8, "little") + whole[8:]
    for broken in (
        b"",
        b"x" * 7,
        whole[:-1],
        whole[:head],
        whole + b"\0",
        bytes(flipped),
        longer_header,
        b"\0" * 64,
    ):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="damaged"):
            read_tensors(path)
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        read_tensors(path)


def test_a_damaged_checkpoint_says_what_to_do(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match=r"damaged.*Delete .*checkpoint.safetensors to start again"):
        checkpoint.load(tmp_path)


def test_killed_at_any_moment_a_whole_checkpoint_is_there(tmp_path):
    def work(say):
        for step in range(1, 10**6):
            tensors = {
                "a": torch.from_numpy(np.full(60_000, step)),
                "b": torch.from_numpy(np.full(7, step)),
            }
            checkpoint.save(tmp_path / "work", tensors, {"step": step})
            if step == 1:
                say("started")

    steps = []
    for attempt in range(20):
        child = Child(work)
        assert child.first_word() == "started\n"
        time.sleep(0.003 * attempt)
        child.kill()
        tensors, state = checkpoint.load(tmp_path / "work")
        assert names(tmp_path / "work") == ["checkpoint.safetensors"]
        assert (tensors["a"] == state["step"]).all() and (tensors["b"] == state["step"]).all()
        steps.append(state["step"])
    assert max(steps) > 1
    checkpoint.save(tmp_path / "work", {}, {})
    checkpoint.clear(tmp_path / "work")
    assert names(tmp_path) == []
