"""docs/: API.md is what the docstrings say, the tutorial runs as written, links lead somewhere."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .document import PAGE, page

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_api_page_is_what_the_docstrings_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m tests.api.document"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (path.parent / link).exists()] == []


def blocks(path: Path) -> list[tuple[str, str]]:
    """(language, text) of the blocks to run; neighbours in one language are one program."""
    text = path.read_text(encoding="utf-8")
    fences = re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    groups = itertools.groupby(fences, key=lambda fence: fence[0])
    return [(language, "\n".join(code for _, code in members)) for language, members in groups]


def test_the_tutorial_runs_as_written(tmp_path):
    pytest.importorskip("skimage", reason="the demo's photographs come with scikit-image")
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([scripts, os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
    }
    program = {"sh": ["bash", "-e", "-c"], "python": [sys.executable, "-c"]}
    printed = ""
    for language, code in blocks(ROOT / "docs" / "TUTORIAL.md"):
        run = subprocess.run(
            [*program[language], code],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert run.returncode == 0, code + run.stdout + run.stderr
        printed += run.stdout
    assert printed.count("ok: nothing is wrong") == 2
    rows = json.loads((tmp_path / "protected" / "attack" / "results.json").read_text())
    final = {row["arm"]: row["accuracy_final"] for row in rows}
    assert final["protected"] < final["clean"] - 15, final
    assert (tmp_path / "certificate" / "certificate.json").exists()
