"""The certificate as a job: declared first, resumed, sharded, merged, and honest in words."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fastue.cli import main
from fastue.commands import certify as certificate

FLAGS = ["--sigma", "0.1", "--q", "0.5,0.9", "--eta", "0.01,0.05", "--batch", "50"]


@pytest.fixture(scope="module")
def surrogate(tiny, tmp_path_factory):
    """(file of a trained network, folder of test pictures)"""
    from PIL import Image

    from fastue.models import saved
    from fastue.victims.train import VictimConfig, fit

    folder = tmp_path_factory.mktemp("certificate")
    config = VictimConfig(arch="cnn-w8", epochs=8, batch=32, augment=False)
    model, _ = fit(tiny(60, 1, contrast=18), tiny(40, 2, contrast=18), config, seed=0)
    saved.save(folder / "net.safetensors", model, arch="cnn-w8", classes=list("0123"), channels=3)
    data = tiny(40, 2, contrast=18)
    for picture, identity in zip(data.images, data.ids, strict=True):
        path = folder / "test" / identity
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(path)
    return folder / "net.safetensors", folder / "test"


def certify(surrogate, out, *flags, n=60):
    net, test = surrogate
    return main(
        [
            "certify",
            "--surrogate",
            str(net),
            "--clean",
            str(test),
            "--out",
            str(out),
            "--N",
            str(n),
            *FLAGS,
            *flags,
        ]
    )


def document(out):
    found = json.loads((out / "certificate.json").read_text())
    return {k: v for k, v in found.items() if k not in ("versions",)}


def test_certificate_of_a_run(surrogate, tmp_path, capsys):
    assert certify(surrogate, tmp_path / "a") == 0
    printed = capsys.readouterr().out
    found = document(tmp_path / "a")
    assert len(found["correct"]) == 60 and found["missing"] == 0 and found["total"] == 160
    assert (
        "Not certified: the networks without noise" in printed
        and (tmp_path / "a" / "certificate.png").exists()
    )
    by = {(c["q"], c["eta"]): c["accuracy"] for c in found["certificates"]}
    assert by[0.5, 0.01] <= by[0.5, 0.05] and by[0.5, 0.01] <= 100
    said = [c for c in found["certificates"] if c["accuracy"] is not None]
    assert all(sorted(found["correct"])[c["k"] - 1] == c["correct"] for c in said) and said
    assert by[0.9, 0.05] is None and f"{'-':>7}" in printed  # 60 draws say nothing there
    assert certify(surrogate, tmp_path / "a") == 0  # nothing to do, same answer
    assert document(tmp_path / "a") == found


def test_resumed_and_sharded_gives_the_same(surrogate, tmp_path):
    certify(surrogate, tmp_path / "whole")
    wanted = document(tmp_path / "whole")
    certify(surrogate, tmp_path / "a", "--draws", "0:25")
    log = tmp_path / "a" / "draws-r0.log"
    log.write_bytes(log.read_bytes()[:-5])  # as a kill leaves it
    certify(surrogate, tmp_path / "a", "--draws", "0:30")
    assert not (tmp_path / "a" / "certificate.json").exists()
    certify(surrogate, tmp_path / "b", "--draws", "30:60")
    assert (
        main(
            [
                "certify",
                "--merge",
                str(tmp_path / "a"),
                str(tmp_path / "b"),
                "--out",
                str(tmp_path / "c"),
            ]
        )
        == 0
    )
    assert document(tmp_path / "c") == wanted
    certify(surrogate, tmp_path / "a")
    assert document(tmp_path / "a") == wanted


def test_missing_draws_count_as_all_right(surrogate, tmp_path, capsys):
    certify(surrogate, tmp_path / "a", "--draws", "0:58")
    assert main(["certify", "--merge", str(tmp_path / "a"), "--out", str(tmp_path / "c")]) == 0
    found = document(tmp_path / "c")
    assert (
        found["missing"] == 2
        and "2 of 60 draws are missing and count as 100 % right" in capsys.readouterr().out
    )
    full = certify(surrogate, tmp_path / "whole") or document(tmp_path / "whole")
    for mine, theirs in zip(found["certificates"], full["certificates"], strict=True):
        if theirs["accuracy"] is not None:
            assert mine["accuracy"] >= theirs["accuracy"]


def test_refusals(surrogate, tmp_path, capsys):
    certify(surrogate, tmp_path / "a", "--draws", "0:5")
    for change in (
        ["--N", "70"],
        ["--q", "0.4"],
        ["--alpha", "0.05"],
        ["--seed", "3"],
        ["--sigma", "0.2"],
    ):
        assert certify(surrogate, tmp_path / "a", *change) == 2
        assert "before the draws are seen" in capsys.readouterr().err
    certify(surrogate, tmp_path / "b", "--draws", "3:6")
    assert (
        main(
            [
                "certify",
                "--merge",
                str(tmp_path / "a"),
                str(tmp_path / "b"),
                "--out",
                str(tmp_path / "c"),
            ]
        )
        == 3
    )
    assert "draw 3 is in" in capsys.readouterr().err
    certify(surrogate, tmp_path / "d", "--seed", "3", "--draws", "6:9")
    assert (
        main(
            [
                "certify",
                "--merge",
                str(tmp_path / "a"),
                str(tmp_path / "d"),
                "--out",
                str(tmp_path / "c"),
            ]
        )
        == 3
    )
    assert (
        main(["certify", "--merge", str(tmp_path / "nothing"), "--out", str(tmp_path / "c")]) == 3
    )
    assert certify(surrogate, tmp_path / "e", "--resume") == 2
    assert certify(surrogate, tmp_path / "e", "--q", "1.5") == 2
    assert certify(surrogate, tmp_path / "e", "--draws", "50:80") == 2
    net, test = surrogate
    assert main(["certify", "--clean", str(test), "--out", str(tmp_path / "e")]) == 2
    assert (
        main(
            [
                "certify",
                "--surrogate",
                str(test / "x.safetensors"),
                "--clean",
                str(test),
                "--out",
                "e",
            ]
        )
        == 3
    )
    capsys.readouterr()


def test_ranks_share_the_draws(surrogate, tmp_path):
    """Two gloo ranks under torchrun: the counts of one process."""
    certify(surrogate, tmp_path / "one")
    net, test = surrogate
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "fastue",
    ]
    command += [
        "certify",
        "--surrogate",
        str(net),
        "--clean",
        str(test),
        "--out",
        str(tmp_path / "two"),
        "--N",
        "60",
    ]
    done = subprocess.run([*command, *FLAGS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "two").glob("draws-*.log"))) == 2
    assert document(tmp_path / "two") == document(tmp_path / "one")


def test_plan(surrogate, capsys):
    assert (
        main(["certify", "--plan", "--sigma", "0.25", "--q", "0.9", "--eta", "0.5", "--pointwise"])
        == 0
    )
    printed = capsys.readouterr().out
    assert (
        "1000 draws reach eta 0.3308" in printed and "eta 0.5      needs 8" in printed
    )  # spec pue.md 1.2
    net, test = surrogate
    assert (
        main(["certify", "--plan", "--surrogate", str(net), "--clean", str(test), "--sigma", "0.1"])
        == 0
    )
    assert "s a draw of 160 pictures" in capsys.readouterr().out


def test_train_on_and_recover(surrogate, tiny_folder, tmp_path, capsys, monkeypatch):
    """A surrogate trained here, its certificate, and the recovery attack beside it."""
    _, test = surrogate
    monkeypatch.setattr(certificate, "RecoveryConfig", lambda **k: certificate_config(**k))
    train = tiny_folder("train", 60, 1)
    command = [
        "certify",
        "--train-on",
        str(train),
        "--clean",
        str(test),
        "--out",
        str(tmp_path / "a"),
        "--N",
        "40",
    ]
    command += [
        "--arch",
        "cnn-w8",
        "--epochs",
        "2",
        "--sigma",
        "0.1",
        "--eta",
        "0.02",
        "--q",
        "0.5",
        "--seed",
        "1",
    ]
    assert main([*command, "--recover", "--aux", str(train)]) == 0
    assert (tmp_path / "a" / "surrogate.safetensors").exists()
    rows = json.loads((tmp_path / "a" / "recovery.json").read_text())["rows"]
    assert [row["attack"] for row in rows] == [
        "sgd",
        "random",
    ] and "without noise" in capsys.readouterr().out
    assert all(row["noisy_lower"] <= row["certified"] for row in rows)
    assert main([*command, "--recover"]) == 2


def certificate_config(**keywords):
    from fastue.victims.recovery import RecoveryConfig

    return RecoveryConfig(epochs=1, batch=32, tries=2, **keywords)


@pytest.mark.slow
def test_ten_thousand_draws_killed_twice_and_merged(surrogate, tmp_path):
    """Done-when of the issue, on the small set: kill -9 twice, two shards, the certificate of one run."""
    n = 10_000
    certify(surrogate, tmp_path / "whole", n=n)
    net, test = surrogate
    for name, draws in (("a", "0:6000"), ("b", "6000:10000")):
        command = [
            sys.executable,
            "-m",
            "fastue",
            "certify",
            "--surrogate",
            str(net),
            "--clean",
            str(test),
        ]
        command += ["--out", str(tmp_path / name), "--N", str(n), *FLAGS, "--draws", draws]
        running = subprocess.Popen(command, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        log = tmp_path / name / "draws-r0.log"
        while not (log.exists() and log.read_bytes().count(b"\n") > 50):
            assert running.poll() is None, "finished before it could be killed"
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        running.wait()
        assert subprocess.run(command).returncode == 0
    main(
        [
            "certify",
            "--merge",
            str(tmp_path / "a"),
            str(tmp_path / "b"),
            "--out",
            str(tmp_path / "c"),
        ]
    )
    assert document(tmp_path / "c") == document(tmp_path / "whole")
