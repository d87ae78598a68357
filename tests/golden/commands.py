"""Small commands whose results must not change, run in a folder of their own.

    python commands.py FOLDER           canary first; then every command, each into FOLDER/<name>
    python commands.py FOLDER stopped   also the first one again, left as a kill would leave it

It imports nothing of fastue but the command line, so that it runs any commit's (PYTHONPATH says
which). Floats depend on the processor: `environment()` asks torch, MKL and oneDNN for code that
every x86-64 machine has, and `canary()` tells whether that worked.
"""

import hashlib
import json
import os
import shlex
import sys
from pathlib import Path

PORTABLE = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "ATEN_CPU_CAPABILITY": "default",
    "FASTUE_BACKEND": "reference",
}
PICTURES, TEST = "pictures", "test"  # the folders that all commands read
CLASSES, SIDE = ("circle", "square", "stripe"), 8

# What is looked at is the noise, which the check of a protection would leave as it is or replace.
_EMN = (
    "--arch cnn-w2 --steps 2 --max-sweeps 3 --precision float32 --device cpu --seed 3 "
    "--recipe paper --grain 1 --no-check"
)
_PUE = f"{_EMN} --method pue --sigma 0.05 --levels 2 --train-draws 2 --noise-draws 2"
COMMANDS = {
    "emn-class": f"protect {PICTURES} --out emn-class --mode class {_EMN}",
    "emn-sample": f"protect {PICTURES} --out emn-sample --mode sample {_EMN}",
    "pue": f"protect {PICTURES} --out pue --mode sample {_PUE}",
    "certificate": (
        f"certify --surrogate emn-class --clean {TEST} --out certificate --N 40 --sigma 0.1 "
        "--q 0.5,0.9 --eta 0.01,0.02 --batch 8 --seed 5 --device cpu "
        "--compat pue2025"
    ),
    "attack": (
        f"attack emn-class --clean {TEST} --source {PICTURES} --out attack --arch cnn-w2 "
        "--epochs 1 --batch 8 --seeds 0,1 --precision float32 --device cpu"
    ),
}
PROTECTED = ("emn-class", "emn-sample", "pue")
UNFINISHED = "unfinished"


def arguments(name: str, out: str | None = None) -> list[str]:
    """The words of a command, with another `--out` where one is named."""
    return shlex.split(COMMANDS[name].replace(f"--out {name}", f"--out {out or name}"))


def environment(checkout: Path) -> dict[str, str]:
    """For a process that runs the commands of `checkout` in portable arithmetic."""
    ours = [name for name in os.environ if name.startswith(("FASTUE_", "TRITON_", "DNNL_"))]
    outside = {name: value for name, value in os.environ.items() if name not in ours}
    return {**outside, **PORTABLE, "PYTHONPATH": str(checkout)}


def write_pictures(folder: Path) -> None:
    """FOLDER/pictures and FOLDER/test: a bright shape a class on noise from a hash."""
    import numpy as np
    from PIL import Image

    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE // 2
    shapes = (rows**2 + columns**2 < 9, np.maximum(abs(rows), abs(columns)) < 3, rows % 3 == 0)
    for split, count in ((PICTURES, 8), (TEST, 6)):
        for name, shape in zip(CLASSES, shapes, strict=True):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                key = f"{split} {name} {number}".encode()
                noise = np.frombuffer(hashlib.shake_256(key).digest(3 * SIDE**2), np.uint8)
                pixels = noise.reshape(SIDE, SIDE, 3) // 2 + 100 * shape[:, :, None]
                path = folder / split / name / f"{number}.png"
                Image.fromarray(pixels.astype(np.uint8)).save(path)


def canary() -> str:
    """A hash of a network's first steps in plain torch: equal where the results should be."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).to(memory_format=torch.channels_last)  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    x = torch.rand(24, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = torch.arange(24) % 3
    for _ in range(5):
        optimizer.zero_grad()
        x.grad = None
        F.cross_entropy(model(x), y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
    wide = torch.randn(64, 96) @ torch.randn(96, 64)
    values = [*model.state_dict().values(), x.grad, wide.softmax(1), wide.exp(), wide.cos()]
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def certified(document: dict) -> dict:
    """Of certificate.json: what was counted and what follows from it."""
    columns = [[c[key] for key in ("q", "eta", "k", "correct")] for c in document["certificates"]]
    kept = {key: document[key] for key in ("correct", "noiseless_correct")}
    return {**kept, "certificates": columns}


def results(folder: Path) -> dict:
    """What must stay of what the commands wrote: hashes of files, values of JSON."""
    summary = {name: _protected(folder / name) for name in PROTECTED}
    document = json.loads((folder / "certificate" / "certificate.json").read_text())
    summary["certificate"] = certified(document)
    rows = {}
    for path in sorted((folder / "attack" / "rows").iterdir()):
        row = json.loads(path.read_text())
        # Seconds differ; the others came after the recorded commit.
        apart = {"seconds", "accuracy_stopped", "epoch_stopped"}
        rows[path.name] = {key: value for key, value in row.items() if key not in apart}
    summary["attack"] = rows
    return summary


def _protected(directory: Path) -> dict[str, str]:
    """Hashes of files, of the manifest's entries, and of the pictures' pixels.

    The bytes of a PNG file are left out: they change with the version of Pillow.
    """
    import numpy as np
    from PIL import Image

    files = [*sorted((directory / "noise").iterdir()), directory / "surrogate.safetensors"]
    summary = {str(path.relative_to(directory)): _hash(path.read_bytes()) for path in files}
    pictures = hashlib.sha256()
    for path in sorted((directory / "images").rglob("*.png")):
        pictures.update(path.relative_to(directory).as_posix().encode())
        pictures.update(np.asarray(Image.open(path)).tobytes())
    summary["images"] = pictures.hexdigest()
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["version"]
    manifest.pop("visibility", None)  # came after the recorded commit
    for key, value in sorted(manifest.items()):
        summary[f"manifest.json: {key}"] = _hash(json.dumps(value, sort_keys=True).encode())
    return summary


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _interrupt(main) -> None:
    """The first command into UNFINISHED, stopped in its second sweep with a checkpoint."""
    from fastue.cli.progress import Progress

    def update(self, name, done, total, info):
        if name.startswith("sweep 2, noise"):
            raise KeyboardInterrupt

    Progress.update = update
    code = main([*arguments("emn-class", UNFINISHED), "--checkpoint-seconds", "0"])
    assert code == 4, code


if __name__ == "__main__":
    from fastue.cli import main, protect

    if "--no-check" not in Path(protect.__file__).read_text():  # a commit before these flags
        for flag in (" --no-check", " --grain 1"):
            COMMANDS = {name: text.replace(flag, "") for name, text in COMMANDS.items()}

    # First, so that nothing that a command leaves behind in this process can bend it.
    summary = {"canary": canary()}
    os.chdir(sys.argv[1])
    write_pictures(Path())
    for name in COMMANDS:
        if code := main(arguments(name)):
            sys.exit(code)
    Path("results.json").write_text(json.dumps({**summary, **results(Path())}))
    if "stopped" in sys.argv:
        _interrupt(main)
