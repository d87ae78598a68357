"""`fastue.commands.attack.attack` as a program calls it, and the flags of the command."""

import inspect
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastue.cli import main
from fastue.commands.attack import attack
from fastue.commands.protect import protect
from fastue.core.errors import DataError, UsageError
from fastue.countermeasures import SUITES
from fastue.countermeasures.base import Countermeasure
from fastue.data.sources import open_dataset
from fastue.protocol import cells

PROTECT = ["--mode", "class", "--arch", "cnn-w8", "--steps", "2", "--precision", "float32"]
PROTECT.append("--no-check")
SHORT = {"arch": "cnn-w8", "epochs": 1, "batch": 16}


@pytest.fixture
def pictures(tiny_folder, tmp_path):
    """Paths: what was protected, the originals, clean test pictures."""
    source, test, out = tiny_folder(), tiny_folder("test", seed=1), tmp_path / "P"
    assert main(["protect", str(source), "--out", str(out), *PROTECT]) == 0
    return out, source, test


@pytest.fixture
def victims(monkeypatch):
    """Nothing is trained; the training pictures of every victim are in the list."""
    calls = []

    def fake(train, test, config, **options):
        calls.append((train, test, config))
        curves = dict.fromkeys(("accuracy", "picking", "scoring"), [50.0])
        return {**curves, "loss": [1.0], "train_accuracy": [99.0]}

    monkeypatch.setattr(cells, "train_victim", fake)
    return calls


def test_a_cpu_trains_small_victims_unless_told_otherwise(pictures, victims):
    protected, _, test = pictures
    attack(protected, test, arms=["protected"], device="cpu")
    attack(protected, test, arms=["protected"], device="cpu", arch=["auto", "cnn-w8"], epochs=3)
    asked = [(config.arch, config.epochs) for _, _, config in victims]
    assert asked == [("cnn-w16", 10), ("cnn-w16", 3), ("cnn-w8", 3)]


def test_quick_suite_trains_all_and_says_which_is_worst(pictures, tmp_path):
    protected, _, test = pictures
    result = attack(protected, test, suite="quick", arms=["clean", "protected"], **SHORT)
    assert [(row["countermeasure"], row["arm"]) for row in result.rows] == [
        (name, arm) for name in SUITES["quick"] for arm in ("clean", "protected")
    ]
    stopped = {r["countermeasure"]: r["accuracy_stopped"] for r in result.rows[1::2]}
    worst = max(stopped, key=stopped.get)
    assert f"{stopped[worst]:.1f} %" in result.verdict and "of 6 settings" in result.verdict
    assert (worst == "none") == (" after " not in result.verdict)
    assert [path.name for path in result.files] == [
        *("results.json", "results.csv", "report.md", "report.html")
    ]
    assert all(path.parent == protected / "attack" for path in result.files)
    settings = json.loads((protected / "attack" / "attack.json").read_text())
    assert settings["suite"] == ",".join(SUITES["quick"]) and settings["seeds"] == [0]
    assert settings["survival"][0] == {"handling": "PNG", "energy": 1.0, "correlation": 1.0}


def test_sets_in_memory_and_a_countermeasure_of_ones_own(pictures, victims, tmp_path):
    protected, source, test = pictures
    mine = Countermeasure("darker", lambda images, labels, seed: images // 2)
    sets = {"clean": open_dataset(test), "source": open_dataset(source)}
    result = attack(protected, out=tmp_path / "A", suite=["none", mine], **sets, **SHORT)
    assert len(result.rows) == len(victims) == 8
    assert torch.equal(victims[4][0].images, sets["source"].images // 2)
    settings = json.loads((tmp_path / "A" / "attack.json").read_text())
    assert settings["clean"] == str(test) and settings["suite"] == "none,darker"


def test_rows_serve_an_attack_with_a_larger_suite(pictures, victims):
    protected, _, test = pictures
    attack(protected, test, **SHORT)
    attack(protected, test, suite="none,grayscale,jpeg", **SHORT)
    assert len(victims) == 12


def test_unsorted_folders(tiny, tmp_path, victims):
    """The table has the classes of the test pictures, the manifest those of the originals."""
    from PIL import Image

    tables = {}
    for name, seed in (("train", 0), ("test", 1)):
        data = tiny(seed=seed)
        (tmp_path / name).mkdir()
        lines = []
        for number, (picture, label) in enumerate(zip(data.images, data.labels, strict=True)):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(
                tmp_path / name / f"{number}.png"
            )
            lines.append(f"{number}.png,{data.classes[label]}")
        tables[name] = tmp_path / f"{name}.csv"
        tables[name].write_text("\n".join(lines))
    source, out = str(tmp_path / "train"), tmp_path / "P"
    protect = ["protect", source, "--labels", str(tables["train"]), "--out", str(out), *PROTECT]
    assert main(protect) == 0
    command = ["attack", str(out), "--clean", str(tmp_path / "test"), "--arch", "cnn-w8"]
    assert main(command) == 3, "the test pictures have no classes"
    assert main([*command, "--labels", str(tables["test"])]) == 0
    assert len(victims) == 4
    moved = tmp_path / "moved"
    shutil.move(source, moved)
    result = attack(out, tmp_path / "test", source=moved, labels=tables["test"], arch="cnn-w8")
    assert len(result.rows) == 4 and len(victims) == 4


@pytest.mark.parametrize(
    "options, error, text",
    [
        (
            {"suite": "everything"},
            UsageError,
            "--suite everything: unknown.*quick.*grayscale, jpeg",
        ),
        ({"arms": ["noisy"]}, UsageError, "--arms noisy"),
        ({"arch": ["cnn", "resnet5"]}, UsageError, "resnet5"),
        ({"device": "tpu"}, UsageError, "--device tpu"),
        ({"source": "no/such/folder"}, DataError, "no/such/folder"),
    ],
)
def test_mistakes_are_told_before_any_work(pictures, victims, tmp_path, options, error, text):
    protected, _, test = pictures
    with pytest.raises(error, match=text):
        attack(protected, test, out=tmp_path / "A", **(SHORT | options))
    assert not victims and not (tmp_path / "A").exists()


def test_other_originals_are_refused_and_lost_ones_done_without(pictures, victims, tmp_path):
    protected, source, test = pictures
    with pytest.raises(DataError, match="not the pictures that were protected"):
        attack(protected, test, source=test, **SHORT)
    with pytest.raises(DataError, match="not the pictures that were protected"):
        attack(protected, test, source=open_dataset(test), **SHORT)
    shutil.rmtree(source)
    with pytest.raises(UsageError, match="pass --source"):
        attack(protected, test, arms=["clean"], **SHORT)
    assert [row["arm"] for row in attack(protected, test, **SHORT).rows] == ["protected"]


def test_controls_follow_the_norm_in_the_manifest(pictures, victims, monkeypatch):
    protected, source, test = pictures
    manifest = protected / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"norm": "l2", "eps": 0.5}))
    attack(protected, test, arms=["random-sample"], **SHORT)
    change = victims[0][0].images.float() - open_dataset(source).images.float()
    lengths = change.flatten(1).norm(dim=1)
    assert lengths.min() > 100 and lengths.max() <= 127.5


def test_the_command_takes_its_defaults_from_the_function(pictures, monkeypatch):
    """Every argument is a flag (or the program's own callback), and none repeats a default."""
    from fastue.cli import attack as command

    seen = {}

    def spy(**arguments):
        seen.update(arguments)
        raise UsageError("stop")

    signature = inspect.signature(attack)
    spy.__signature__ = signature
    monkeypatch.setattr(command, "attack", spy)
    assert main(["attack", "P", "--clean", "T"]) == 2
    assert set(seen) == set(signature.parameters)
    for name in set(seen) - {"directory", "clean", "progress", "on_row"}:
        default = signature.parameters[name].default
        same = (default, [default], list(default) if name == "seeds" else default)
        assert seen[name] in same, name


def test_help_needs_no_torch():
    code = (
        "import sys; from fastue.cli import main\n"
        "try: main(['attack', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "quick =" in printed.stdout and "--labels" in printed.stdout


def face(identity: int, number: int) -> Image.Image:
    """A synthetic face, 24 x 24: skin, hair, eyes and mouth are of the identity, pose and light are
    not."""
    own, pose = np.random.default_rng(identity), np.random.default_rng((identity, number))
    skin, hair = own.integers(90, 230, 3), own.integers(10, 120, 3)
    eyes, mouth = own.uniform(0.15, 0.3), own.uniform(0.1, 0.3)
    down, right = pose.uniform(-0.08, 0.08, 2)
    y, x = np.meshgrid(np.linspace(-1, 1, 24) - down, np.linspace(-1, 1, 24) - right, indexing="ij")
    picture = np.full((24, 24, 3), pose.integers(0, 255, 3), float)
    picture[(x / 0.65) ** 2 + (y / 0.9) ** 2 < 1] = skin
    picture[((x / 0.7) ** 2 + (y / 0.95) ** 2 < 1) & (y < -0.35)] = hair
    for side in (-1, 1):
        picture[(x - side * eyes) ** 2 + (y + 0.1) ** 2 < 0.01] = 0
    picture[(abs(x) < mouth) & (abs(y - 0.45) < 0.07)] = (150, 30, 40)
    light = pose.uniform(0.8, 1.2) + pose.normal(0, 0.05, (24, 24, 1))
    return Image.fromarray((picture * light).clip(0, 255).astype(np.uint8))


def test_faces_of_some_identities_are_protected_beside_others(tmp_path):
    for part, numbers in (("train", range(24)), ("test", range(100, 108))):
        for identity in range(4):
            folder = tmp_path / part / f"person{identity}"
            folder.mkdir(parents=True)
            for number in numbers:
                face(identity, number).save(folder / f"{number}.png")
    settings = {"mode": "class", "arch": "cnn-w8", "max_sweeps": 3, "train_steps": 4, "batch": 16}
    protect(
        tmp_path / "train", tmp_path / "out", check=False, identities="person0,person2", **settings
    )
    changed = {
        path.parent.name
        for path in (tmp_path / "out" / "images").rglob("*.png")
        if (np.asarray(Image.open(path)) != np.asarray(
            Image.open(tmp_path / "train" / path.parent.name / path.name))).any()
    }  # fmt: skip
    assert changed == {"person0", "person2"}, "the others are as they were"
    result = attack(
        tmp_path / "out",
        tmp_path / "test",
        arch="cnn-w8",
        epochs=2,
        batch=16,
        arms=("clean", "protected"),
    )
    for row in result.rows:
        assert 0 <= row["others_final"] <= row["others_peak"] <= 100
        assert row["accuracy_final"] * 16 / 100 % 1 == pytest.approx(0), "of 16 pictures of two"
    page = (tmp_path / "out" / "attack" / "report.md").read_text()
    assert "| others final |" in page
