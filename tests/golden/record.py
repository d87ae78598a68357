"""Record what the commands of a commit write: hashes.json and small directories.

    git worktree add ../old 3d645ad
    python -m tests.golden.record --of ../old

Run it again for a commit whose results may change on purpose, and say why in CHANGELOG.md.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .commands import UNFINISHED, environment

HERE = Path(__file__).parent
# Of what is stored whole, the parts that a later version reads again.
DIRECTORIES = {
    "emn-class": ("images", "noise", "manifest.json", "run.json", "surrogate.safetensors"),
    UNFINISHED: ("run.json", "work"),
    "certificate": ("declared.json", "draws-r0.log", "certificate.json"),
    "attack": ("attack.json", "results.json", "rows"),
}


def run(checkout: Path, folder: Path, *words: str) -> dict:
    """Run the commands of `checkout` in `folder`; their results."""
    command = [sys.executable, str(HERE / "commands.py"), str(folder), *words]
    subprocess.run(command, env=environment(checkout), check=True, capture_output=True, text=True)
    return json.loads((folder / "results.json").read_text())


def store(folder: Path, target: Path) -> None:
    """Copy DIRECTORIES, without what they say of the machine they were made on."""
    for name, parts in DIRECTORIES.items():
        for part in parts:
            source, copy = folder / name / part, target / name / part
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    for path in target.glob("*/*.json"):
        document = json.loads(path.read_text())
        if "versions" in document:
            versions = document["versions"]
            document["versions"] = {key: versions[key] for key in ("fastue", "packages", "python")}
            if path.name == "run.json":
                document["source"] = Path(document["source"]).name
            path.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", type=Path, required=True, metavar="CHECKOUT")
    checkout = parser.parse_args().of.resolve()
    commit = ["git", "-C", str(checkout), "rev-parse", "--short=7", "HEAD"]
    name = subprocess.run(commit, check=True, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        summary = {"commit": name, **run(checkout, folder, "stopped")}
        (HERE / "hashes.json").write_text(json.dumps(summary, indent=1) + "\n")
        shutil.rmtree(HERE / name, ignore_errors=True)
        store(folder, HERE / name)


if __name__ == "__main__":
    main()
