"""The commands as a user types them: what they print, write, and answer to mistakes."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from fastue.cli import main
from fastue.cli.parse import seeds
from fastue.methods.base import pixels

SMALL = ["--arch", "cnn-w8", "--steps", "2", "--precision", "float32", "--no-check"]


@pytest.mark.parametrize(
    "text, value", [("8/255", 8 / 255), ("0.03", 0.03), ("1", 1.0), ("0.5/255", 0.5 / 255)]
)
def test_budgets(text, value):
    assert pixels(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["8", "255/8", "0", "-1/255", "x", "1/0", "nan", "8/255/1", ""])
def test_budgets_without_a_sense_are_refused(text):
    with pytest.raises(Exception, match="pixel units|no number"):
        pixels(text)


def test_a_budget_above_one_names_the_fix(capsys):
    assert main(["protect", "x", "--out", "y", "--eps", "8"]) == 2
    assert "did you mean 8/255" in capsys.readouterr().err


@pytest.mark.parametrize("text, found", [("0,1,2", [0, 1, 2]), ("7", [7]), ("1,1", [1])])
def test_seed_lists(text, found):
    assert seeds(text) == found


def test_protect_verify_attack(tiny_folder, tmp_path, capsys):
    source, test = tiny_folder(), tiny_folder("test", seed=1)
    out = tmp_path / "P"
    assert main(["protect", str(source), "--out", str(out), "--mode", "class", *SMALL]) == 0
    printed = capsys.readouterr().out
    assert "96 pictures of 12x12, 4 classes" in printed and "publish this" in printed
    assert {
        "images",
        "noise",
        "manifest.json",
        "preview.png",
        "run.json",
        "surrogate.safetensors",
    } == {p.name for p in out.iterdir()}
    assert main(["verify", str(out), "--source", str(source)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    attack = [
        "attack",
        str(out),
        "--clean",
        str(test),
        "--arch",
        "cnn-w8",
        "--epochs",
        "2",
        "--batch",
        "16",
    ]
    assert main([*attack, "--seeds", "0,1", "--out", str(tmp_path / "A")]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "A" / "results.json").read_text())
    assert len(rows) == 8 and {row["arm"] for row in rows} == {
        "clean",
        "protected",
        "random-sample",
        "random-class",
    }
    assert all(0 <= row["accuracy_final"] <= row["accuracy_peak"] <= 100 for row in rows)
    assert "Worst of" in printed and (tmp_path / "A" / "report.html").exists()
    config = json.loads((tmp_path / "A" / "attack.json").read_text())
    assert config["victim"]["epochs"] == 2 and config["versions"]["packages"]["torch"]
    assert main(["protect", str(source), "--out", str(out), "--mode", "class", *SMALL]) == 0
    assert "already holds this result" in capsys.readouterr().out


def test_verify_takes_labels_of_an_unsorted_source(tiny_folder, tmp_path, capsys):
    source, out = tiny_folder(), tmp_path / "P"
    flat, lines = tmp_path / "flat", ["file,class"]
    flat.mkdir()
    for path in sorted(source.rglob("*.png")):
        name = f"{path.parent.name}-{path.name}"
        path.rename(flat / name)
        lines.append(f"{name},{path.parent.name}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(lines))
    command = ["protect", str(flat), "--labels", str(table), "--out", str(out), "--method", "lsp"]
    assert main([*command, "--no-check"]) == 0
    assert main(["verify", str(out), "--source", str(flat), "--labels", str(table)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    assert main(["verify", str(out), "--labels", str(table)]) == 2
    assert "--labels goes with --source" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["protect", "verify"])
def test_help_loads_no_torch(command):
    code = (
        "import sys; from fastue.cli import main\n"
        f"try: main(['{command}', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


def test_verify_finds_a_changed_picture(tiny_folder, tmp_path, capsys):
    from PIL import Image

    source, out = tiny_folder(), tmp_path / "P"
    main(["protect", str(source), "--out", str(out), "--mode", "class", *SMALL])
    victim = next((out / "images").rglob("*.png"))
    picture = Image.open(victim).convert("RGB")
    picture.putpixel((0, 0), tuple(255 - v for v in picture.getpixel((0, 0))))
    picture.save(victim)
    assert main(["verify", str(out), "--source", str(source)]) == 1
    assert victim.name in capsys.readouterr().out


def test_attack_without_the_originals_trains_on_the_protected_files_only(
    tiny_folder, tmp_path, capsys
):
    source, test, out = tiny_folder(), tiny_folder("test", seed=1), tmp_path / "P"
    main(["protect", str(source), "--out", str(out), "--mode", "class", *SMALL])
    source.rename(tmp_path / "moved")
    attack = ["attack", str(out), "--clean", str(test), "--arch", "cnn-w8", "--epochs", "1"]
    assert main(attack) == 0
    assert "pass --source" in capsys.readouterr().out
    assert {row["arm"] for row in json.loads((out / "attack" / "results.json").read_text())} == {
        "protected"
    }
    assert main([*attack, "--source", str(tmp_path / "moved")]) == 0
    assert main([*attack, "--source", str(test)]) == 3
    assert "not the pictures that were protected" in capsys.readouterr().err


def test_plan_writes_nothing(tiny_folder, tmp_path, capsys):
    assert (
        main(["protect", str(tiny_folder()), "--out", str(tmp_path / "P"), *SMALL, "--plan"]) == 0
    )
    printed = capsys.readouterr().out
    assert (
        all(word in printed for word in ("time", "memory", "disk"))
        and not (tmp_path / "P").exists()
    )


def test_config_file_and_flags_that_win(tiny_folder, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "mode: class\narch: cnn-w8\nsteps: 3\neps: 4/255\nprecision: float32\nno_check: true\n"
    )
    command = [
        "protect",
        str(tiny_folder()),
        "--out",
        str(tmp_path / "P"),
        "--config",
        str(config),
        "--steps",
        "1",
    ]
    assert main(command) == 0
    run = json.loads((tmp_path / "P" / "run.json").read_text())["config"]
    assert (run["mode"], run["steps"], run["arch"]) == ("class", 1, "cnn-w8") and run[
        "eps"
    ] == pytest.approx(4 / 255)


@pytest.mark.parametrize("text", ["[1, 2]", "no_such_flag: 1", "mode: [", "mode: cluster"])
def test_config_mistakes_are_usage_errors(tmp_path, text, capsys):
    (tmp_path / "run.yaml").write_text(text)
    try:
        code = main(["protect", "x", "--out", "y", "--config", str(tmp_path / "run.yaml")])
    except SystemExit as stop:
        code = stop.code
    assert code == 2 and capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, code, text",
    [
        (["protect", "no/such/folder", "--out", "P"], 3, "no/such/folder"),
        (["protect", "demo:train", "--out", "P", "--arch", "resnet5"], 2, "resnet5"),
        (["protect", "demo:train", "--out", "P", "--device", "tpu"], 2, "--device tpu"),
        (["attack", "no/such/dir", "--clean", "demo:test"], 3, "no/such/dir"),
        (["verify", "no/such/dir"], 3, "no/such/dir"),
    ],
)
def test_mistakes_end_with_their_exit_code_and_write_nothing(
    argv, code, text, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == code
    assert text in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_interrupt_is_resumable(tiny_folder, tmp_path, monkeypatch, capsys):
    from fastue import methods

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    broken = replace(methods.get("emn"), make=stop)
    monkeypatch.setattr(methods, "get", lambda name: broken)
    assert main(["protect", str(tiny_folder()), "--out", str(tmp_path / "P"), *SMALL]) == 4
    assert "goes on from the last checkpoint" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["protect", str(tiny_folder()), "--out", str(tmp_path / "P"), *SMALL]) == 0


def test_help_and_version_load_no_torch():
    code = (
        "import sys; from fastue.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert all(
        command in result.stdout for command in ("protect", "attack", "verify", "demo", "info")
    )


def test_info_prints_the_table(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("linf_step", "apply_noise", "reference", "torch"))
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["backends"]["linf_step"]["reference"] == ""
