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
    for c in certificates:  # the k-th smallest of the first n draws
        assert sorted(first["correct"][: c["n"]])[c["k"] - 1] == c["correct"]
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
    certify(surrogate, tmp_path / "a", "--rule fixed --draws 0:58")
    assert merge([tmp_path / "a"], tmp_path / "c") == 0
    short = document(tmp_path / "c")
    assert short["missing"] == 2
    assert "2 of 60 draws are missing and count as 100 % right" in capsys.readouterr().out
    certify(surrogate, tmp_path / "whole", "--rule fixed")
    whole = document(tmp_path / "whole")
    for mine, theirs in zip(short["certificates"], whole["certificates"], strict=True):
        if theirs["accuracy"] is not None:
            assert mine["accuracy"] >= theirs["accuracy"]


def test_more_draws_go_on_and_a_bound_only_falls(surrogate, tmp_path):
    """Whatever was seen before: N is not part of the claim."""
    found = []
    for n in (20, 60, 40):
        certify(surrogate, tmp_path / "a", n=n)
        found.append(document(tmp_path / "a"))
    assert [content["n"] for content in found] == [20, 60, 60]
    assert found[1] == found[2] and found[1]["correct"][:20] == found[0]["correct"]
    for before, after in zip(found[0]["certificates"], found[1]["certificates"], strict=True):
        assert before["correct"] is None or after["correct"] <= before["correct"]
    certify(surrogate, tmp_path / "once")
    assert document(tmp_path / "once") == found[1]


def test_another_claim_or_smoothing_is_refused(surrogate, tmp_path, capsys):
    certify(surrogate, tmp_path / "a", "--rule fixed --draws 0:5")
    for change in ("--N 70", "--q 0.4", "--alpha 0.05", "--sigma 0.2", "--scale raw"):
        assert certify(surrogate, tmp_path / "a", f"--rule fixed {change}") == 2
        assert "before the draws are seen" in capsys.readouterr().err
    assert certify(surrogate, tmp_path / "a") == 2


def test_a_claim_cannot_be_made_over_draws_that_were_seen(surrogate, tmp_path, capsys):
    """Nor with the declaration gone: other draws belong to another claim."""
    certify(surrogate, tmp_path / "a", "--rule fixed --draws 0:5")
    seen = document_lines(tmp_path / "a")
    (tmp_path / "a" / "declared.json").unlink()
    assert certify(surrogate, tmp_path / "a", "--rule fixed", n=40) == 3
    assert "another certificate (differs in claim" in capsys.readouterr().err
    assert certify(surrogate, tmp_path / "b", "--rule fixed --draws 0:5 --alpha 0.02") == 0
    assert document_lines(tmp_path / "b")[1:] != seen[1:], "another claim, other noise"


def document_lines(out) -> list[str]:
    return (out / "draws-r0.log").read_text().splitlines()


def test_a_seed_goes_with_the_published_form(surrogate, tmp_path, capsys):
    assert certify(surrogate, tmp_path / "a", "--seed 3") == 2
    assert "nobody picks the best of many seeds" in capsys.readouterr().err
    for flags, reason in (("--seed -1", "[0, 2^64)"), (f"--seed {2**64}", "[0, 2^64)")):
        assert certify(surrogate, tmp_path / "a", f"--compat pue2025 {flags}") == 2
        assert reason in capsys.readouterr().err
    counts = []
    for seed in (0, 3, 2**64 - 1):
        out = tmp_path / str(seed)
        assert certify(surrogate, out, f"--compat pue2025 --seed {seed}", n=10) == 0
        content = document(out)
        assert content["smoothing"]["scale"] == "raw" and content["claim"]["n"] == 10
        counts.append(tuple(content["correct"]))
    assert len(set(counts)) == 3


def test_until_it_is_decided(surrogate, tmp_path, capsys):
    """A question that the draws answer early stops them; asked again it needs none."""
    asked = ["--until", "q=0.5,eta=0.1s <= 100%"]
    words = [w for w in words_of(surrogate, tmp_path / "yes", n=500) if w not in FLAGS.split()]
    words += ["--sigma", "0.1", "--batch", "50"]
    assert main([*words, *asked]) == 0
    first = document(tmp_path / "yes")
    assert "q=0.5, eta=0.01 <= 100 %: yes, after " in capsys.readouterr().out
    assert first["n"] < 100 and first["claim"]["q"] == [0.5] and first["claim"]["eta"] == [0.01]
    assert main([*words, *asked]) == 0 and document(tmp_path / "yes") == first
    never = words_of(surrogate, tmp_path / "no", n=500)
    assert main([*never, "--until", "q=0.9,eta=0.05 <= 1%"]) == 0
    assert "<= 1 %: no" in capsys.readouterr().out and document(tmp_path / "no")["n"] < 100
    assert main([*never[:-12], "--until", "q=0.7,eta=0.05 <= 1%"]) == 2
    for flags in ("--rule fixed", "--draws 0:5"):
        assert main([*never, *flags.split(), "--until", "q=0.9,eta=0.05 <= 1%"]) == 2


def test_statistics_come_from_pictures_that_are_not_counted(surrogate, tiny_folder, tmp_path):
    for bn in ("frozen-noisy", "reestimated"):
        assert certify(surrogate, tmp_path / bn, f"--bn {bn}", n=5) == 0
        content = document(tmp_path / bn)
        assert content["held_out"] > 10 and content["held_out"] + content["total"] == 160
        others = f"--bn {bn} --bn-data {tiny_folder('others', 20, 5)}"
        assert certify(surrogate, tmp_path / f"{bn}-2", others, n=5) == 0
        content = document(tmp_path / f"{bn}-2")
        assert content["held_out"] == 0 and content["total"] == 160
    assert certify(surrogate, tmp_path / "s", f"--bn-data {surrogate[1]}", n=5) == 2


def test_refused_merges(surrogate, tmp_path, capsys):
    certify(surrogate, tmp_path / "a", "--draws 0:5")
    certify(surrogate, tmp_path / "overlapping", "--draws 3:6")
    assert merge([tmp_path / "a", tmp_path / "overlapping"], tmp_path / "c") == 3
    assert "draw 3 is in" in capsys.readouterr().err
    certify(surrogate, tmp_path / "other", "--sigma 0.2 --draws 6:9")
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
        ("--draws 50:80", "there are N draws, 0:60"),
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
    flags = "certify --plan --sigma 0.25 --q 0.9 --eta 0.5 --pointwise --rule fixed --N 1000"
    assert main(flags.split()) == 0
    printed = capsys.readouterr().out
    # the figures of the paper's bound
    assert "1000 draws reach eta 0.3308" in printed and "eta 0.5      needs 8" in printed
    network, test = surrogate
    assert main([*flags.split(), "--surrogate", str(network), "--clean", str(test)]) == 0
    assert "s a draw of 160 pictures" in capsys.readouterr().out


@pytest.mark.parametrize("bn", ["stored", "frozen-noisy"])
def test_train_on_and_attack(surrogate, tiny_folder, tmp_path, capsys, monkeypatch, bn):
    """A surrogate trained here, its certificate, and what attacks reach beside it."""
    _, test = surrogate
    monkeypatch.setattr(command, "RecoveryConfig", short_recovery)
    train = tiny_folder("train", 60, 1)
    flags = f"--N 60 --arch cnn-w8 --epochs 2 --sigma 0.1 --eta 0.02,0.1 --q 0.5 --bn {bn}"
    named = ["--train-on", train, "--clean", test, "--out", tmp_path / "a"]
    words = ["certify", *map(str, named), *flags.split()]
    assert main([*words, "--attack", "--aux", str(train)]) == 0
    assert (tmp_path / "a" / "surrogate.safetensors").exists()
    rows = json.loads((tmp_path / "a" / "attack.json").read_text())["rows"]
    assert [row["attack"] for row in rows] == 2 * ["ascent", "sgd", "random"]
    assert "certified, at most" in capsys.readouterr().out
    certified = [row for row in rows if row["certified"] is not None]
    assert certified and all(row["reached"] <= row["certified"] for row in certified)
    assert main([*words, "--aux", str(train)]) == 2
    assert main([*words, "--attack", "--aux", "nowhere", "--N", "61"]) in (2, 3)
    assert document(tmp_path / "a")["n"] == 60, "found out before the draws"


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
    assert certify(surrogate, tmp_path / "sorted", "--compat pue2025", n=5) == 0
    labels = f"--compat pue2025 --labels {tmp_path / 'labels.csv'}"
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
