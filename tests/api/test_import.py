"""`import fastue` is free, `--help` is quick, and every name of the API is there."""

import subprocess
import sys
import types
from pathlib import Path

import pytest

import fastue
from fastue.cli import COMMANDS

ROOT = Path(__file__).parents[2]
EXTRAS = ("triton", "scipy", "matplotlib", "ffcv", "torchvision", "timm", "fastue._C")


def modules_after(code: str) -> set[str]:
    """The top-level and fastue modules that a fresh interpreter has loaded once `code` ran."""
    report = "\nimport sys; print('LOADED', *sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.rsplit("LOADED", 1)[1].split())


def test_import_loads_nothing_else():
    loaded = modules_after("import fastue; dir(fastue)")
    assert not loaded & {"torch", "numpy", "PIL", *EXTRAS}
    assert {name for name in loaded if name.startswith("fastue.")} == set()


def test_the_api_loads_no_extras():
    """Neither does any of its names, but for the bounds of a certificate, which are scipy's."""
    names = ", ".join(name for name in fastue.__all__ if name != "certify")
    loaded = modules_after(f"from fastue import {names}")
    assert "torch" in loaded and not loaded & set(EXTRAS)
    extras = modules_after("from fastue import certify") & set(EXTRAS)
    assert extras <= {"scipy"}


@pytest.mark.parametrize("name", sorted(fastue.__all__))
def test_names(name):
    value = getattr(fastue, name)
    assert isinstance(value, str) or value.__doc__
    # A function of a method shares its name with the file it stands in.
    assert isinstance(value, types.ModuleType) == (name == "ops")


def test_dir_lists_the_api_and_unknown_names_are_errors():
    assert set(fastue.__all__) <= set(dir(fastue))
    with pytest.raises(AttributeError, match="'fastue' has no attribute 'protekt'"):
        fastue.protekt  # noqa: B018


@pytest.mark.parametrize("name", ["emn", "pue", "uge", "keyed", "lsp"])
def test_a_method_is_a_function_whatever_was_imported_before(name):
    """Importing the file fastue/methods/emn.py sets an attribute `emn` on the package."""
    modules_after(f"import fastue.methods.{name}; import fastue; assert callable(fastue.{name})")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_no_torch(command):
    """Which is what makes it quick: with torch it takes seconds, without a tenth of one."""
    code = f"from fastue.cli import main\ntry: main({command.split()} + ['--help'])\n"
    loaded = modules_after(code + "except SystemExit as stop: assert not stop.code")
    assert not loaded & {"torch", *EXTRAS}
