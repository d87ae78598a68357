"""The protect job: what is in its directory, what a kill leaves, and what it refuses."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from fastue.commands.protect import protect
from fastue.core.errors import UsageError
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.verify import open_protected, verify

SMALL = {
    "arch": "cnn-w8", "precision": "float32", "batch": 32, "train_steps": 3, "max_sweeps": 2, "steps": 2,
    "device": "cpu", "check": False,
}  # fmt: skip


def digests(folder):
    files = [
        folder / "manifest.json",
        *(folder / "noise").iterdir(),
        *(folder / "images").rglob("*.png"),
    ]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


@pytest.mark.parametrize("mode", ["sample", "class"])
def test_written_pictures_are_original_plus_noise(tiny_folder, tmp_path, mode):
    data = open_dataset(tiny_folder())
    protect(data, tmp_path / "out", mode=mode, subset=1.0, **SMALL)
    store, written = NoiseStore.open(tmp_path / "out"), open_protected(tmp_path / "out")
    noise = store.rows(torch.arange(len(data)))
    assert noise.abs().max() <= 8 and (noise < 0).any() and (noise > 0).any()
    assert torch.equal(
        written.images, (data.images.int() + noise.int()).clamp(0, 255).to(torch.uint8)
    )
    assert written.labels.tolist() == data.labels.tolist() and written.ids == data.ids
    assert verify(tmp_path / "out", data).ok
    assert not (tmp_path / "out" / "work").exists()


@pytest.mark.parametrize("mode", ["sample", "class"])
def test_l2_noise_is_written_checked_and_found_out(tiny_folder, tmp_path, mode):
    data, out = open_dataset(tiny_folder()), tmp_path / "out"
    protect(data, out, "lsp", norm="l2", eps=0.9, patch=4, mode=mode, check=False)
    assert not (out / "surrogate.safetensors").exists() and (out / "preview.png").exists()
    store, check = NoiseStore.open(out), verify(out, data)
    assert (store.manifest["norm"], store.manifest["eps"]) == ("l2", 0.9)
    assert check.ok and "largest 2-norm" in check.text()
    assert 0.8 < check.max_l2 <= 0.9 + 1e-8 and check.max_levels > 8
    again = protect(data, out, "lsp", norm="l2", eps=0.9, patch=4, mode=mode, check=False)
    assert again.perturbation is None
    # A pixel more than was written is within int8, but not within the length.
    path = out / store.manifest["pictures"]["files"][0]
    picture = Image.open(path)
    picture.putpixel((0, 0), tuple(255 if v < 128 else 0 for v in picture.getpixel((0, 0))))
    picture.save(path)
    check = verify(out, data)
    assert check.over_budget and "over the budget of 0.9 (2-norm)" in check.text()


def test_a_run_of_an_earlier_version_goes_on(tiny_folder, tmp_path):
    """Its run.json, with keys in another order, is that of the same arguments."""
    data, out = open_dataset(tiny_folder()), tmp_path / "out"
    settings = {**SMALL, "grain": 1}  # as all noise was
    protect(data, out, **settings)
    run = json.loads((out / "run.json").read_text())
    run["config"] = dict(reversed(run["config"].items()))
    (out / "run.json").write_text(json.dumps(dict(reversed(run.items()))))
    names = "arch batch clip compile eps lr max_sweeps mode precision seed step steps stop_error stop_sweeps subset"
    assert sorted(run["config"]) == [*names.split(), "train_steps"] and run["compat"] == "none"
    assert protect(data, out, **settings).perturbation is None
    before = digests(out)
    for entry in set(out.iterdir()) - {out / "run.json"}:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    assert protect(data, out, **settings).perturbation is not None and digests(out) == before


def test_a_source_by_path_with_notes_and_a_plan(tiny_folder, tmp_path):
    source, told = tiny_folder(), []
    (source / "notes.txt").write_text("mine")
    result = protect(source, tmp_path / "P", plan=True, tell=told.append, **SMALL)
    assert "a sweep" in result.plan.text() and not (tmp_path / "P").exists()
    assert "notes.txt" in told[0] and "96 pictures of 12x12" in told[1]
    with pytest.raises(UsageError, match="open already"):
        protect(open_dataset(source), tmp_path / "P", size=12)


def test_compat_drops_negative_noise_in_the_pictures_only(tiny_folder, tmp_path):
    data = open_dataset(tiny_folder())
    protect(data, tmp_path / "out", compat="emn2021", **SMALL)
    change = open_protected(tmp_path / "out").images.int() - data.images.int()
    assert change.min() == 0 < change.max() <= 8
    assert NoiseStore.open(tmp_path / "out").rows(torch.arange(len(data))).min() < 0
    manifest = NoiseStore.open(tmp_path / "out").manifest
    assert manifest["compat"] == "emn2021" and manifest["config"]["stop_sweeps"] == 1
    assert verify(tmp_path / "out", data).ok


def test_the_same_arguments_again_do_nothing_and_others_are_refused(tiny_folder, tmp_path):
    data, out = open_dataset(tiny_folder()), tmp_path / "out"
    assert protect(data, out, **SMALL).perturbation is not None
    before = digests(out)
    assert protect(data, out, **SMALL).perturbation is None
    with pytest.raises(UsageError, match="another config.seed"):
        protect(data, out, seed=1, **SMALL)
    with pytest.raises(UsageError, match="source_fingerprint"):
        protect(open_dataset(tiny_folder("other", seed=5)), out, **SMALL)
    assert digests(out) == before


def test_a_directory_with_something_else_is_refused_untouched(tiny_folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="thesis.tex"):
        protect(open_dataset(tiny_folder()), out, **SMALL)
    assert (out / "thesis.tex").read_text() == "mine" and not (out / "run.json").exists()


def test_a_kill_while_the_first_file_is_written_does_not_block_the_next_start(
    tiny_folder, tmp_path
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "run.json.4711.fastue-tmp").write_text('{"meth')
    assert protect(open_dataset(tiny_folder()), tmp_path / "out", **SMALL).perturbation
    assert not list((tmp_path / "out").glob("*.fastue-tmp"))


def test_a_kill_after_the_manifest_leaves_nothing_behind(tiny_folder, tmp_path):
    data, out = open_dataset(tiny_folder()), tmp_path / "out"
    protect(data, out, **SMALL)
    (out / "work").mkdir()
    (out / "work" / "checkpoint.safetensors").touch()
    (out / "noise" / "unfinished.json").write_text("{}")
    assert protect(data, out, **SMALL).perturbation is None
    assert not (out / "work").exists() and not (out / "noise" / "unfinished.json").exists()


def test_two_runs_in_one_directory_are_refused(tiny_folder, tmp_path):
    data, out = open_dataset(tiny_folder()), tmp_path / "out"

    def second(phase, done, total, info):
        with pytest.raises(UsageError, match="another fastue"):
            protect(data, out, **SMALL)

    protect(data, out, progress=second, **SMALL)


def kill_and_resume(source, tmp_path, kills, seed, extra=()):
    """Run `fastue protect` to the end once, then again under `kills` random SIGKILLs; both directories."""
    command = [
        sys.executable, "-m", "fastue", "protect", str(source), "--arch", "cnn-w8", "--precision", "float32",
        "--checkpoint-seconds", "0.05", "--steps", "3", "--seed", "3", "--no-check", *extra,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    subprocess.run(
        [*command, "--out", str(tmp_path / "whole")],
        check=True,
        capture_output=True,
        env=environment,
    )
    duration = time.monotonic() - start
    draw, done = random.Random(seed), 0
    for _ in range(20 * kills):
        run = subprocess.Popen(
            [*command, "--out", str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env=environment,
        )  # fmt: skip
        # Past the time that Python and torch take to start, or nothing would ever be in progress.
        wait = draw.uniform(0.3, 0.95) * duration if done < kills else None
        try:
            _, errors = run.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            os.kill(run.pid, signal.SIGKILL)
            run.communicate()
            done += 1
            continue
        assert run.returncode == 0, errors.decode()
        if done >= kills:
            break
        # it ended before the kill: start over, so that all the kills hit something
        shutil.rmtree(tmp_path / "killed")
    assert done == kills
    return tmp_path / "whole", tmp_path / "killed"


def test_two_kills_leave_the_same_bytes(tiny_folder, tmp_path):
    whole, killed = kill_and_resume(tiny_folder(), tmp_path, kills=2, seed=0)
    assert digests(whole) == digests(killed)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sample", "class"])
def test_twenty_random_kills_leave_the_same_bytes(tiny_folder, tmp_path, mode):
    whole, killed = kill_and_resume(
        tiny_folder(per_class=150), tmp_path, kills=20, seed=1, extra=("--mode", mode)
    )
    assert digests(whole) == digests(killed)
    assert [s["sha256"] for s in json.loads((whole / "manifest.json").read_text())["shards"]] == [
        s["sha256"] for s in json.loads((killed / "manifest.json").read_text())["shards"]
    ]
