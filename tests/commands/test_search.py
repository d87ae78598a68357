"""`protect` checks itself: what it does where the check fails, what it writes, and what a kill
leaves."""

import json
import shutil
import sys
import types
from dataclasses import dataclass, replace

import pytest
from test_protect import digests  # beside this file

from fastue import methods
from fastue.cli import main
from fastue.commands import search
from fastue.commands.protect import protect
from fastue.core.errors import UsageError
from fastue.data import atomic, writers
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.verify import verify
from fastue.methods.base import Method
from fastue.methods.emn import EMNConfig, emn
from fastue.protocol.check import CheckResult

EPS = (2 / 255, 4 / 255, 8 / 255)
QUICK = {
    "arch": "cnn-w2", "precision": "float32", "batch": 32, "train_steps": 1, "max_sweeps": 2, "steps": 1,
    "device": "cpu", "mode": "class",
}  # fmt: skip


@dataclass(frozen=True)
class WeakConfig(EMNConfig):
    method = "weak"
    eps: float = EPS[0]

    def stronger(self):
        larger = [eps for eps in EPS if eps > self.eps]
        return replace(self, eps=larger[0]) if larger else None


@pytest.fixture
def weak(monkeypatch):
    """A function of what the victim reaches in each attempt: EMN under another name, with two
    stronger settings, whose check says that."""
    module = types.ModuleType("fastue.methods.weak")
    module.METHOD = Method(WeakConfig, emn)
    monkeypatch.setitem(sys.modules, "fastue.methods.weak", module)
    monkeypatch.setitem(methods.METHODS, "weak", "EMN of little noise")

    def plant(*reached, clean=80.0):
        def check(data, noise, config, *, before, progress):
            progress("check, protected pictures", 1, 1, {})
            longer = config.min_sweeps > 0
            number = 1 if longer else (0, 2, 3)[EPS.index(config.eps)]
            assert noise.eps == config.eps and (before is None) == (number == 0)
            assert len(noise.history) == (4 if longer else 2)
            return CheckResult("cnn-w16", 7, 6, 900, 100, reached[number], clean, 25.0)

        monkeypatch.setattr(search, "check_protection", check)

    return plant


def manifest(out):
    return NoiseStore.open(out).manifest


def test_a_check_that_passes_is_told_and_kept(weak, tiny_folder, tmp_path):
    weak(30.0)
    told, out = [], tmp_path / "out"
    result = protect(tiny_folder(), out, "weak", tell=told.append, **QUICK)
    line = "check: a small victim (cnn-w16) reaches 30 % at its best epoch, 80 % on clean pictures"
    assert result.check.holds is True and line in told
    kept = manifest(out)["check"]
    (attempt,) = kept.pop("attempts")
    assert kept["reached"] == 30 and kept["holds"] is True and kept["arch"] == "cnn-w16"
    assert attempt["sweeps"] == 2 and attempt["config"] == manifest(out)["config"]
    assert json.loads((out / "run.json").read_text())["check"] is True
    assert verify(out, tmp_path / "source").ok and not (out / "work").exists()
    seen = [line for line in told if line.startswith("visibility: PSNR ")]
    assert len(seen) == 1 and manifest(out)["visibility"]["ssim"] < 1


def test_more_sweeps_go_on_from_where_the_search_stopped(weak, tiny_folder, tmp_path):
    weak(70.0, 40.0)
    source, told = tiny_folder(), []
    result = protect(source, tmp_path / "out", "weak", tell=told.append, **QUICK)
    protect(source, tmp_path / "first", "weak", check=False, **QUICK)
    protect(source, tmp_path / "long", "weak", check=False, min_sweeps=4, **QUICK)
    history = manifest(tmp_path / "out")["history"]
    assert history[:2] == manifest(tmp_path / "first")["history"] and len(history) == 4
    shard = "noise/shard-00000.safetensors"
    assert digests(tmp_path / "out")[shard] == digests(tmp_path / "long")[shard]
    assert result.check.holds and len(manifest(tmp_path / "out")["check"]["attempts"]) == 2
    assert any("goes on, to 4 sweeps" in line for line in told)


def test_a_stronger_setting_is_the_one_written(weak, tiny_folder, tmp_path):
    weak(70.0, 71.0, 40.0)
    source, told = tiny_folder(), []
    result = protect(source, tmp_path / "out", "weak", tell=told.append, **QUICK)
    protect(source, tmp_path / "strong", "weak", check=False, eps=EPS[1], **QUICK)
    assert result.check.holds and any("eps 4/255" in line for line in told)
    assert (
        manifest(tmp_path / "out")["eps"] == manifest(tmp_path / "out")["config"]["eps"] == EPS[1]
    )
    assert json.loads((tmp_path / "out" / "run.json").read_text())["config"]["eps"] == EPS[0]
    shard = "surrogate.safetensors"
    files = [tmp_path / name / shard for name in ("out", "strong")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert protect(source, tmp_path / "out", "weak", **QUICK).check == result.check


def test_the_best_of_all_failures_is_written_and_called_one(weak, tiny_folder, tmp_path, capsys):
    weak(70.0, 60.0, 75.0, 60.0)
    out = tmp_path / "out"
    command = ["protect", str(tiny_folder()), "--out", str(out), "--method", "weak"]
    command += ["--arch", "cnn-w2", "--max-sweeps", "2", "--mode", "class"]
    for attempt in ("first", "again"):  # the second time it is all there already
        assert main(command) == 1
        printed = capsys.readouterr().out
        assert "this does not protect: a small victim" in printed and "60 %, 80 %" in printed
        assert ("attempt 2 of 4 is written" in printed) == (attempt == "first")
    assert [row["reached"] for row in manifest(out)["check"]["attempts"]] == [70, 60, 75, 60]
    assert manifest(out)["eps"] == EPS[0] and len(manifest(out)["history"]) == 4
    assert main(["verify", str(out)]) == 0


def test_a_check_that_says_nothing_is_a_warning(weak, tiny_folder, tmp_path, capsys):
    weak(26.0, clean=30.0)
    command = ["protect", str(tiny_folder()), "--out", str(tmp_path / "out"), "--method", "weak"]
    assert main([*command, "--arch", "cnn-w2", "--max-sweeps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "check: says nothing" in printed and "warning: not checked" in printed
    assert "fastue attack" in printed and manifest(tmp_path / "out")["check"]["holds"] is None


def test_a_public_codes_bug_is_repeated_not_mended(weak, tiny_folder, tmp_path):
    weak(70.0)
    result = protect(tiny_folder(), tmp_path / "out", "weak", compat="emn2021", **QUICK)
    assert result.check.holds is False
    assert len(manifest(tmp_path / "out")["check"]["attempts"]) == 1


def test_unchecked_runs_say_so(weak, tiny_folder, tmp_path):
    source, out = tiny_folder(), tmp_path / "out"
    assert protect(source, out, "weak", check=False, **QUICK).check is None
    assert "check" not in manifest(out)
    with pytest.raises(UsageError, match=r"another check \(False, now True\)"):
        protect(source, out, "weak", **QUICK)
    run = json.loads((out / "run.json").read_text())
    assert run.pop("check") is False
    (out / "run.json").write_text(json.dumps(run))  # as an earlier version wrote it
    for entry in set(out.iterdir()) - {out / "run.json"}:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    assert protect(source, out, "weak", **QUICK).check is None and "check" not in manifest(out)


def test_real_noise_that_is_too_weak_is_found_out(tiny, tmp_path):
    result = protect(tiny(60), tmp_path / "out", "lsp", eps=1 / 255, mode="class", patch=3)
    assert result.check.holds is False and result.check.reached > 60
    checked = manifest(tmp_path / "out")["check"]
    assert CheckResult.of(checked) == result.check and len(checked["attempts"]) == 1


class Kill(BaseException):
    """Nothing catches it but the tests."""


@pytest.mark.parametrize("reached", [(70.0, 60.0, 75.0, 65.0), (70.0, 71.0, 40.0)])
def test_a_kill_at_any_file_leaves_the_same_bytes(
    weak, tiny_folder, tmp_path, monkeypatch, reached
):
    """Killed before each file but the pictures takes its place, and at each step that is told."""
    weak(*reached)
    data, whole = open_dataset(tiny_folder(per_class=8)), tmp_path / "whole"
    replacing, moments, left = atomic.os.replace, [], [None]

    def moment(name):
        moments.append(name)
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                raise Kill

    def moved(source, target):
        if not str(target).endswith(".png"):
            moment(str(target))
        replacing(source, target)

    monkeypatch.setattr(atomic.os, "replace", moved)
    monkeypatch.setattr(atomic.os, "fsync", lambda file: None)  # no power is cut here
    monkeypatch.setattr(writers, "sync_all", lambda: None)
    watch = {"tell": moment, "progress": lambda name, *rest: moment(name)}
    watch |= {"checkpoint_seconds": 0.0}
    protect(data, whole, "weak", **watch, **QUICK)
    steps = [i for i, name in enumerate(moments) if "attempts" in name or "check" in name]
    steps += range(0, len(moments), 16)
    assert len([name for name in moments if name.endswith("attempts.safetensors")]) == len(reached)
    for number in sorted(set(steps)):
        out, left[0] = tmp_path / f"killed-{number}", number
        with pytest.raises(Kill):
            protect(data, out, "weak", **watch, **QUICK)
        left[0] = None
        protect(data, out, "weak", **watch, **QUICK)
        assert digests(out) == digests(whole), moments[number]
        surrogate = "surrogate.safetensors"
        assert (out / surrogate).read_bytes() == (whole / surrogate).read_bytes()
