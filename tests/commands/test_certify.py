"""The certificate as a job: declared first, resumed, sharded, merged, and honest in words."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fastue.cli import main
from fastue.commands import certify as command
from fastue.core.errors import UsageError

FLAGS = "--sigma 0.1 --q 0.5,0.9 --eta 0.01,0.05 --batch 50"


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


def words_of(surrogate, out, flags="", n=60) -> list[str]:
    """The command as words, for main or for a process."""
    network, test = surrogate
    named = ["--surrogate", network, "--clean", test, "--out", out, "--N", n]
    return ["certify", *map(str, named), *FLAGS.split(), *flags.split()]


def certify(surrogate, out, flags="", n=60) -> int:
    return main(words_of(surrogate, out, flags, n))


def merge(folders, out) -> int:
    return main(["certify", "--merge", *map(str, folders), "--out", str(out)])


def document(out) -> dict:
    content = json.loads((out / "certificate.json").read_text())
    return {key: value for key, value in content.items() if key != "versions"}


def test_certificate_of_a_run(surrogate, tmp_path, capsys):
    assert certify(surrogate, tmp_path / "a") == 0
    printed = capsys.readouterr().out
    first = document(tmp_path / "a")
    assert len(first["correct"]) == 60 and first["missing"] == 0 and first["total"] == 160
    assert "Not certified: the networks without noise" in printed
    assert (tmp_path / "a" / "certificate.png").exists()
    accuracy = {(c["q"], c["eta"]): c["accuracy"] for c in first["certificates"]}
    assert accuracy[0.5, 0.01] <= accuracy[0.5, 0.05] and accuracy[0.5, 0.01] <= 100
    certificates = [c for c in first["certificates"] if c["accuracy"] is not None]
    assert certificates
    assert all(sorted(first["correct"])[c["k"] - 1] == c["correct"] for c in certificates)
    assert accuracy[0.9, 0.05] is None and f"{'-':>7}" in printed  # 60 draws say nothing there
    assert certify(surrogate, tmp_path / "a") == 0  # nothing to do, same answer
    assert document(tmp_path / "a") == first


def test_resumed_and_sharded_gives_the_same(surrogate, tmp_path):
    certify(surrogate, tmp_path / "whole")
    whole = document(tmp_path / "whole")
    certify(surrogate, tmp_path / "a", "--draws 0:25")
    log = tmp_path / "a" / "draws-r0.log"
    log.write_bytes(log.read_bytes()[:-5])  # as a kill leaves it
    certify(surrogate, tmp_path / "a", "--draws 0:30")
    assert not (tmp_path / "a" / "certificate.json").exists()
    certify(surrogate, tmp_path / "b", "--draws 30:60")
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c") == 0
    assert document(tmp_path / "c") == whole
    certify(surrogate, tmp_path / "a")
    assert document(tmp_path / "a") == whole


def test_missing_draws_count_as_all_right(surrogate, tmp_path, capsys):
    certify(surrogate, tmp_path / "a", "--draws 0:58")
    assert merge([tmp_path / "a"], tmp_path / "c") == 0
    short = document(tmp_path / "c")
    assert short["missing"] == 2
    assert "2 of 60 draws are missing and count as 100 % right" in capsys.readouterr().out
    certify(surrogate, tmp_path / "whole")
    whole = document(tmp_path / "whole")
    for mine, theirs in zip(short["certificates"], whole["certificates"], strict=True):
        if theirs["accuracy"] is not None:
            assert mine["accuracy"] >= theirs["accuracy"]


def test_another_claim_or_smoothing_is_refused(surrogate, tmp_path, capsys):
    certify(surrogate, tmp_path / "a", "--draws 0:5")
    for change in ("--N 70", "--q 0.4", "--alpha 0.05", "--seed 3", "--sigma 0.2"):
        assert certify(surrogate, tmp_path / "a", change) == 2
        assert "before the draws are seen" in capsys.readouterr().err


def test_refused_merges(surrogate, tmp_path, capsys):
    certify(surrogate, tmp_path / "a", "--draws 0:5")
    certify(surrogate, tmp_path / "overlapping", "--draws 3:6")
    assert merge([tmp_path / "a", tmp_path / "overlapping"], tmp_path / "c") == 3
    assert "draw 3 is in" in capsys.readouterr().err
    certify(surrogate, tmp_path / "other", "--seed 3 --draws 6:9")
    assert merge([tmp_path / "a", tmp_path / "other"], tmp_path / "c") == 3
    assert "declares another certificate" in capsys.readouterr().err
    assert merge([tmp_path / "nothing"], tmp_path / "c") == 3
    assert "holds no declared.json" in capsys.readouterr().err


def test_refused_arguments(surrogate, tmp_path, capsys):
    network, test = surrogate
    out = tmp_path / "e"
    for flags, reason in (
        ("--resume", "no draws to go on with"),
        ("--q 1.5", "--q 1.5"),
        ("--eta -1", "--eta -1"),
        ("--draws 50:80", "declared draws are 0:60"),
        ("--train-on somewhere", "either --surrogate FILE or --train-on DIR"),
        ("--labels nowhere.csv", "nowhere.csv"),
    ):
        assert certify(surrogate, out, flags) == 2
        assert reason in capsys.readouterr().err
    assert main(["certify", "--clean", str(test), "--out", str(out)]) == 2
    assert main(["certify", "--surrogate", str(network), "--clean", str(test)]) == 2
    assert certify((test / "x.safetensors", test), out) == 3
    assert not out.exists()


def test_ranks_share_the_draws(surrogate, tmp_path):
    """Two gloo ranks under torchrun: the counts of one process."""
    certify(surrogate, tmp_path / "one")
    torchrun = "torch.distributed.run --standalone --nproc-per-node 2 -m fastue"
    words = [sys.executable, "-m", *torchrun.split(), *words_of(surrogate, tmp_path / "two")]
    process = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    assert len(list((tmp_path / "two").glob("draws-*.log"))) == 2
    assert document(tmp_path / "two") == document(tmp_path / "one")


def test_plan(surrogate, capsys):
    flags = "certify --plan --sigma 0.25 --q 0.9 --eta 0.5 --pointwise"
    assert main(flags.split()) == 0
    printed = capsys.readouterr().out
    # the figures of the paper's bound
    assert "1000 draws reach eta 0.3308" in printed and "eta 0.5      needs 8" in printed
    network, test = surrogate
    assert main([*flags.split(), "--surrogate", str(network), "--clean", str(test)]) == 0
    assert "s a draw of 160 pictures" in capsys.readouterr().out


def test_train_on_and_recover(surrogate, tiny_folder, tmp_path, capsys, monkeypatch):
    """A surrogate trained here, its certificate, and the recovery attack beside it."""
    _, test = surrogate
    monkeypatch.setattr(command, "RecoveryConfig", short_recovery)
    train = tiny_folder("train", 60, 1)
    flags = "--N 40 --arch cnn-w8 --epochs 2 --sigma 0.1 --eta 0.02 --q 0.5 --seed 1"
    named = ["--train-on", train, "--clean", test, "--out", tmp_path / "a"]
    words = ["certify", *map(str, named), *flags.split()]
    assert main([*words, "--recover", "--aux", str(train)]) == 0
    assert (tmp_path / "a" / "surrogate.safetensors").exists()
    rows = json.loads((tmp_path / "a" / "recovery.json").read_text())["rows"]
    assert [row["attack"] for row in rows] == ["sgd", "random"]
    assert "without noise" in capsys.readouterr().out
    assert all(row["noisy_lower"] <= row["certified"] for row in rows)
    assert main([*words, "--recover"]) == 2


def short_recovery(**arguments):
    from fastue.victims.recovery import RecoveryConfig

    return RecoveryConfig(epochs=1, batch=32, tries=2, **arguments)


def test_plain_arguments_give_what_the_command_gives(surrogate, tmp_path):
    """Also for pictures in memory, and with whole numbers where a length is meant."""
    from fastue.data.sources import open_dataset

    network, test = surrogate
    certify(surrogate, tmp_path / "a", "--sigma 1 --eta 0,1 --pointwise --alpha 0.1", n=20)
    certified = command.certify(
        surrogate=str(network),
        clean=open_dataset(test),
        out=str(tmp_path / "b"),
        sigma=1,
        q=[0.5, 0.9],
        eta=[0, 1],
        N=20,
        alpha=0.1,
        pointwise=True,
        batch=50,
    )
    assert certified.document["claim"]["eta"] == [0, 1]
    declared = [(tmp_path / name / "declared.json").read_bytes() for name in "ab"]
    assert declared[0] == declared[1]
    assert document(tmp_path / "a") == document(tmp_path / "b")
    assert certified.words == document(tmp_path / "a")["statement"]


def test_pictures_in_memory_take_no_size(surrogate, tiny, tmp_path):
    with pytest.raises(UsageError, match="ImageDataset"):
        command.certify(surrogate=surrogate[0], clean=tiny(4), out=tmp_path / "a", size=10)


def test_labels_for_an_unsorted_folder(surrogate, tmp_path):
    """The same pictures, flat and with a table, give the same counts."""
    network, test = surrogate
    flat, table = tmp_path / "flat", ["file,class"]
    flat.mkdir()
    for path in sorted(test.rglob("*.png")):
        name = f"{path.parent.name}-{path.name}"  # the order of the sorted folder
        (flat / name).write_bytes(path.read_bytes())
        table.append(f"{name},{path.parent.name}")
    (tmp_path / "labels.csv").write_text("\n".join(table))
    assert certify(surrogate, tmp_path / "sorted", n=5) == 0
    labels = f"--labels {tmp_path / 'labels.csv'}"
    assert certify((network, flat), tmp_path / "unsorted", labels, n=5) == 0
    counts = [document(tmp_path / name)["correct"] for name in ("sorted", "unsorted")]
    assert counts[0] == counts[1] and len(set(counts[0])) > 1


def test_a_default_is_the_same_in_the_flag_and_in_the_function():
    import argparse

    from fastue.cli.certify import add_arguments

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = vars(parser.parse_args([]))
    for name, parameter in inspect.signature(command.certify).parameters.items():
        if name not in ("clean", "out", "progress"):
            assert flags[name] == parameter.default, name


def test_help_loads_no_torch():
    code = (
        "import sys; from fastue.cli import main\n"
        "try: main(['certify', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "--sigma" in process.stdout and "(default: 0.25)" in process.stdout


@pytest.mark.slow
def test_ten_thousand_draws_killed_twice_and_merged(surrogate, tmp_path):
    """On the small set: kill -9 twice, two shards, the certificate of one run."""
    n = 10_000
    certify(surrogate, tmp_path / "whole", n=n)
    for name, draws in (("a", "0:6000"), ("b", "6000:10000")):
        words = words_of(surrogate, tmp_path / name, f"--draws {draws}", n)
        words = [sys.executable, "-m", "fastue", *words]
        process = subprocess.Popen(words, env=os.environ | {"PYTHONUNBUFFERED": "1"})
        log = tmp_path / name / "draws-r0.log"
        while not (log.exists() and log.read_bytes().count(b"\n") > 50):
            assert process.poll() is None, "finished before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert subprocess.run(words).returncode == 0
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert document(tmp_path / "c") == document(tmp_path / "whole")
