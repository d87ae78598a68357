"""The same command gives the same bytes, and what an earlier commit wrote still opens.

hashes.json and the directory named after its commit are what `python -m tests.golden.record` kept.
"""

import json
import shutil
from pathlib import Path

import pytest

from fastue.cli import main
from fastue.data.store import NoiseStore
from fastue.data.tensorfile import read_tensors, write_tensors
from fastue.data.verify import verify

from .commands import COMMANDS, PICTURES, UNFINISHED, arguments, certified, write_pictures

HERE = Path(__file__).parent
RECORD = json.loads((HERE / "hashes.json").read_text())
OLD = HERE / RECORD["commit"]


@pytest.fixture(scope="module")
def today(tmp_path_factory):
    """The results of this checkout's commands."""
    from .record import run

    return run(HERE.parents[1], tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_same_command_gives_the_same_bytes(today, name):
    if today["canary"] != RECORD["canary"]:
        pytest.skip(
            "this machine's float arithmetic differs from the one the hashes were recorded on"
        )
    assert today[name] == RECORD[name]


def test_the_hashes_tell_runs_apart():
    """What is compared moves when a result does: no two protections share their noise."""
    shards = [RECORD[name]["noise/shard-00000.safetensors"] for name in ("emn-class", "pue")]
    assert len({*shards, RECORD["emn-sample"]["noise/shard-00000.safetensors"]}) == 3
    assert len(RECORD["attack"]) == 8 and len(set(RECORD["certificate"]["correct"])) > 4


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A folder with the pictures and with what the recorded commit wrote; commands run in it."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    write_pictures(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_an_old_store_opens_and_verifies(old):
    store = NoiseStore.open("emn-class")
    assert store.manifest["method"] == "emn" and store.bank().shape == (3, 3, 8, 8)
    result = verify("emn-class", PICTURES)
    assert result.ok, result.text()
    assert result.checked == 24 and 1 <= result.max_levels <= 8


def test_a_finished_run_of_old_is_left_as_it_is(old, capsys):
    before = contents(old / "emn-class")
    assert main(arguments("emn-class")) == 0
    assert "already holds this result" in capsys.readouterr().out
    after = contents(old / "emn-class")
    after.pop("preview.png", None)  # not among the stored files; it may be drawn again
    assert after == before


def test_an_unfinished_run_of_old_goes_on(old):
    # A history that no run would write shows that the old checkpoint is read, not begun anew.
    checkpoint = old / UNFINISHED / "work" / "checkpoint.safetensors"
    tensors, state = read_tensors(checkpoint)
    state["history"][0]["error"] = 0.4242
    write_tensors(checkpoint, tensors, state)
    assert main(arguments("emn-class", UNFINISHED)) == 0
    history = NoiseStore.open(UNFINISHED).manifest["history"]
    assert history[0]["error"] == 0.4242 and len(history) > 1
    assert verify(UNFINISHED, PICTURES).ok and not (old / UNFINISHED / "work").exists()


def test_draws_of_old_are_merged_but_not_mixed(old, capsys):
    """They say less of the machine that made them than today's: no more can be added to them."""
    before = json.loads((old / "certificate" / "certificate.json").read_text())
    there = contents(old / "certificate")
    assert main(["certify", "--merge", "certificate", "--out", "again"]) == 0
    after = json.loads((old / "again" / "certificate.json").read_text())
    assert certified(after) == certified(before) and after["missing"] == 0
    assert main(arguments("certificate")) == 2
    assert "name a new --out" in capsys.readouterr().err
    assert contents(old / "certificate") == there


def test_rows_of_old_are_not_trained_again(old):
    rows = contents(old / "attack" / "rows")
    assert len(rows) == 8 and main(arguments("attack")) == 0
    assert contents(old / "attack" / "rows") == rows
    assert len(json.loads((old / "attack" / "results.json").read_text())) == 8
