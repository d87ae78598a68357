"""What is true of every method: settings, flags, pages, memory; a method added by its file and a line."""

import dataclasses
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from fastue import methods
from fastue.core.errors import UsageError
from fastue.methods.base import Config, Method, Perturbation, flag, whole

PAGES = Path(__file__).parents[2] / "docs"
QUICK = {"arch": "cnn-w4", "precision": "float32", "max_sweeps": 1, "train_steps": 1, "batch": 32}
PUE = {**QUICK, "levels": 2, "train_draws": 1, "noise_draws": 1}
QUICK = {"emn": QUICK, "pue": PUE, "keyed": QUICK, "lsp": {}}
QUICK["uge"] = {"arch": "cnn-w4", "epochs": 1, "sweeps": 1, "batch": 32}


@pytest.mark.parametrize("name", methods.METHODS)
def test_the_page_of_a_method_holds_its_flags(name):
    table = methods.flag_table(name)
    page = PAGES / f"{name.upper()}.md"
    assert table in page.read_text(), f"{page.name} should hold:\n{table}"


@pytest.mark.parametrize("name", methods.METHODS)
def test_settings_can_be_written_as_text(name):
    config = methods.get(name).config()
    texts = {s.name: str(getattr(config, s.name)) for s in dataclasses.fields(config)
             if s.metadata["parse"] and getattr(config, s.name) is not None}  # fmt: skip
    assert texts and methods.configure(name, texts) == config


def test_settings_of_another_method_are_refused_and_say_whose_they_are():
    with pytest.raises(UsageError, match="--sigma belongs to --method pue, not to emn"):
        methods.configure("emn", {"sigma": 0.1})
    with pytest.raises(
        UsageError, match="--max-sweeps belongs to --method emn or pue or keyed, not to lsp"
    ):
        methods.configure("lsp", {"max_sweeps": 3})
    with pytest.raises(UsageError, match="--norm belongs to --method lsp, not to pue"):
        methods.configure("pue", {"norm": "l2"})
    with pytest.raises(UsageError, match="--zeal: no setting of emn"):
        methods.configure("emn", {"zeal": 1})
    with pytest.raises(UsageError, match="--method magic: use one of emn"):
        methods.get("magic")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"steps": 2.5}, "--steps 2.5: not a whole number"), ({"steps": "many"}, "--steps many"),
        ({"eps": "8"}, "--eps 8: .*did you mean 8/255"), ({"recipe": "slow"}, "--recipe slow: use paper or fast"),
        ({"compat": "emn2020"}, "--compat"), ({"lr": "quick"}, "--lr quick: not a number"),
        ({"eps": float("nan")}, "--eps nan"), ({"stop_error": 1}, r"--stop-error 1: must be in \[0, 1\)"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(settings, words):
    with pytest.raises(UsageError, match=words):
        methods.configure("emn", settings)


def test_a_record_is_what_old_runs_hold():
    """run.json and manifests of earlier versions compare equal: not a key more, none less."""
    shared = {
        "mode": "class", "eps": 8 / 255, "steps": 1, "step": 0.8 / 255, "arch": "cnn", "train_steps": 10,
        "batch": 128, "lr": 0.1, "clip": 5.0, "subset": 0.2, "stop_error": 0.1, "stop_sweeps": 1,
        "max_sweeps": 100, "precision": "float32", "compile": False, "seed": 0,
    }  # fmt: skip
    typed = {"mode": "class", "arch": "cnn", "precision": "float32", "compat": "emn2021"}
    assert methods.configure("emn", typed).record() == shared
    own = {"sigma": 0.25, "levels": 6, "train_draws": 100, "noise_draws": 10, "smooth_below": 0.5}
    assert methods.configure("pue", typed).record() == {**shared, **own, "train_steps": 20}


def test_auto_follows_the_device():
    config = methods.configure("emn", {}).on(torch.device("cpu"))
    assert config.arch == "resnet10-w16" and config.precision in ("float32", "bf16")
    assert methods.configure("emn", {"arch": "cnn"}).on(torch.device("cpu")).arch == "cnn"


@pytest.mark.parametrize("name", methods.METHODS)
@pytest.mark.parametrize("mode", ["sample", "class"])
def test_in_memory(tiny, name, mode):
    data = tiny(8)
    make = methods.in_memory(name)
    result = make(data.images, data.labels, mode=mode, **QUICK[name])
    assert isinstance(result, Perturbation) and result.per == mode and make.__name__ == name
    assert result.noise.shape == ((32 if mode == "sample" else 4), 3, 12, 12)
    pictures = result.apply(data.images, data.labels)
    rows = result.rows(data.labels)
    by_hand = (data.images.int() + result.quantised()[rows].int()).clamp(0, 255).to(torch.uint8)
    assert torch.equal(pictures, by_hand) and not torch.equal(pictures, data.images)


def test_settings_need_no_torch():
    code = (
        "import sys; from fastue import methods\n"
        "for name in methods.METHODS: methods.flag_table(name), methods.configure(name, {})\n"
        "assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@dataclasses.dataclass(frozen=True)
class GreyConfig(Config):
    method = "grey"
    depth: int = flag(3, "how deep", parse=whole)


def grey(data, config, *, checkpoint=None, clock=None, progress=None):
    noise = torch.full((data.num_classes, *data.shape), config.depth / 255)
    return Perturbation(noise, "class", config.eps, summary="drawn")


@pytest.fixture
def toy(monkeypatch):
    """A method in a file of its own: a config and a function, no hooks."""
    module = types.ModuleType("fastue.methods.grey")
    module.METHOD = Method(GreyConfig, grey)
    monkeypatch.setitem(sys.modules, "fastue.methods.grey", module)
    monkeypatch.setitem(methods.METHODS, "grey", "a toy")


def test_a_new_method_has_its_flag_and_its_files(toy, tiny_folder, tmp_path, capsys):
    from fastue.cli import main

    out = str(tmp_path / "P")
    command = ["protect", str(tiny_folder()), "--out", out, "--method", "grey", "--no-check"]
    assert main([*command, "--plan"]) == 0 and "not known before" in capsys.readouterr().out
    assert main([*command, "--depth", "5"]) == 0 and "drawn" in capsys.readouterr().out
    assert main(["verify", out, "--source", str(tmp_path / "source")]) == 0
    assert "largest difference 5/255" in capsys.readouterr().out
    assert main([*command, "--depth", "4"]) == 2 and "config.depth" in capsys.readouterr().err
    assert main(["protect", "x", "--out", "y", "--depth", "4"]) == 2
    assert "--depth belongs to --method grey, not to emn" in capsys.readouterr().err
