"""Do pictures that are protected at full size stay protected? `python -m bench.fullsize PICTURES
--work FOLDER`, where PICTURES is a folder of photographs, one class folder each or more.

Ten of the photographs are ten classes: random crops of each, resized so that the shorter side is 64
to 256, saved as JPEG. `fastue protect --size 64 --full-size` makes noise for them, and victims
learn 64 x 64 views: of the clean pictures, of the pictures with the noise at its own size, and of
the files that were written at full size, cut out of their centre as protect does or of their
corner. They are tested on clean crops, and each is a row of bench/results/fullsize.csv. Large crops
in colour (`--crops colour`) are learnt to 100 %, small ones in grey, the default, to 75 or 80 %;
EMN's class-wise noise (`--method emn`) protects neither of them at any size.

`--filters` instead prints how much of the noise the view of an enlarged picture shows, for each of
Pillow's filters: the reason for the one in fastue/data/fullsize.py.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.ops import facts, write
from fastue.commands.protect import protect
from fastue.data import fullsize
from fastue.data.dataset import ImageDataset
from fastue.data.keyed import keyed_generator
from fastue.data.pictures import placed
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.verify import open_protected, verify
from fastue.data.writers import protected_pictures
from fastue.models.training import resolve_device
from fastue.victims.train import VictimConfig, train_victim

SIZE, CLASSES, QUALITY = 64, 10, 90
PARTS = {"train": 150, "test": 50}  # pictures a class
CROPS = {"grey": ("L", 0.15, 0.35), "colour": ("RGB", 0.4, 0.8)}  # and shares of the sides
ARMS = ("clean", "own size", "full size", "full size, corner")
FIELDS = (
    "pictures", "crops", "size", "method", "arm", "victim", "epochs", "seed", "best", "final",
    "victim_s", "device", "threads", "torch", "fastue", "commit", "time",
)  # fmt: skip


def make_folders(photographs: Path, work: Path, crops: str) -> None:
    """work/train and work/test: JPEG pictures of mixed sizes, the same on every call."""
    files = sorted(path for path in photographs.rglob("*") if path.suffix.lower() == ".jpeg")
    for path in files[:CLASSES]:
        mode, least, most = CROPS[crops]
        whole = Image.open(path).convert(mode)
        for part, count in PARTS.items():
            (work / part / path.parent.name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                draw = keyed_generator(0, f"fullsize-{part}-{path.stem}", number)
                width, height = (round(side * draw.uniform(least, most)) for side in whole.size)
                left, top = (
                    draw.uniform(0, whole.width - width),
                    draw.uniform(0, whole.height - height),
                )
                scale = draw.uniform(64, 256) / min(width, height)
                picture = whole.resize(
                    (max(64, round(width * scale)), max(64, round(height * scale))),
                    Image.Resampling.BICUBIC,
                    (left, top, left + width, top + height),
                )
                name = work / part / path.parent.name / f"{number:03d}.jpg"
                picture.save(name, quality=QUALITY)


def corners(out: Path, like: ImageDataset) -> ImageDataset:
    """The upper left S x S of each written picture, its shorter side resized to S."""
    views = []
    for name in NoiseStore.open(out, shards=False).manifest["pictures"]["files"]:
        picture = Image.open(out / name)
        width, height, _, _ = placed(*picture.size, SIZE)
        small = picture.resize((width, height), Image.Resampling.BICUBIC)
        views.append(np.asarray(small.crop((0, 0, SIZE, SIZE))).reshape(SIZE, SIZE, -1))
    return replace(like, images=torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2))


def run(given: argparse.Namespace) -> list[dict]:
    work, out = given.work, given.work / given.method
    make_folders(given.photographs, work, given.crops)
    source = work / "train"
    settings = {"mode": "class", "arch": "cnn-w16"} if given.method == "emn" else {}
    protect(
        source, out, given.method, size=SIZE, full_size=True, check=False, tell=print,
        device=given.device, **settings,
    )  # fmt: skip
    print(verify(out, source).text(), flush=True)
    clean, test = open_dataset(source, size=SIZE), open_dataset(work / "test", size=SIZE)
    every = torch.arange(len(clean))
    noisy = protected_pictures(clean.images, NoiseStore.open(out).rows(every), every)
    sets = (clean, replace(clean, images=noisy), open_protected(out), corners(out, clean))
    device = resolve_device(given.device)
    rows = []
    for victim in given.victims.split(","):
        config = VictimConfig(arch=victim, epochs=given.epochs, batch=64, precision="float32")
        for arm, pictures in zip(ARMS, sets, strict=True):
            for seed in range(given.seeds):
                start = time.perf_counter()
                curve = train_victim(pictures.to(device), test.to(device), config, seed=seed)
                accuracy = curve["accuracy"]
                row = dict(
                    pictures=len(clean), crops=given.crops, size=SIZE, method=given.method, arm=arm,
                    victim=victim, epochs=given.epochs, seed=seed, best=f"{max(accuracy):.1f}",
                    final=f"{accuracy[-1]:.1f}", victim_s=f"{time.perf_counter() - start:.0f}",
                    **facts(device),
                )  # fmt: skip
                rows.append({name: row[name] for name in FIELDS})
                write(rows[-1:], "fullsize", FIELDS)
                print(*rows[-1].values(), flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """Mean over the seeds of the best and the last epoch, as Markdown."""
    lines = ["| victim | " + " | ".join(ARMS) + " |", "|---" * (len(ARMS) + 1) + "|"]
    for victim in dict.fromkeys(row["victim"] for row in rows):
        cells = []
        for arm in ARMS:
            mine = [row for row in rows if (row["victim"], row["arm"]) == (victim, arm)]
            best, final = (
                np.mean([float(row[name]) for row in mine]) for name in ("best", "final")
            )
            cells.append(f"{best:.1f} ({final:.1f})")
        lines.append(f"| {victim} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def filters() -> str:
    """A table: how much of the noise a view shows (1: all), and its correlation with the noise."""
    kinds = {
        f"{grain} x {grain}": np.kron(
            keyed_generator(0, "signs", grain).choice([-8, 8], (3, SIZE // grain, SIZE // grain)),
            np.ones((1, grain, grain)),
        ).astype(np.int8)
        for grain in (1, 4, 8)
    }
    names = ("BOX", "NEAREST", "BILINEAR", "BICUBIC", "LANCZOS")
    lines = [
        "| squares of one sign | picture | " + " | ".join(n.lower() for n in names) + " |",
        "|---" * (2 + len(names)) + "|",
    ]
    for kind, noise in kinds.items():
        for height, width in ((32, 40), (48, 48), (72, 96), (100, 130), (256, 256), (375, 500)):
            cells = []
            for name in names:
                fullsize.FILTER = Image.Resampling[name]
                own = fullsize.enlarge(noise, height, width).clip(-8, 8)
                grey = (128 + own.transpose(1, 2, 0).astype(int)).astype(np.uint8)
                shown = fullsize.view(grey, SIZE).transpose(2, 0, 1).astype(int) - 128
                product, length = (shown * noise).sum(), (noise.astype(int) ** 2).sum()
                cells.append(
                    f"{product / length:.2f} ({product / (length * (shown**2).sum()) ** 0.5:.2f})"
                )
            lines.append(f"| {kind} | {width}x{height} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("photographs", nargs="?", type=Path)
    parser.add_argument("--work", type=Path, help="a new folder, or one that a killed run left")
    parser.add_argument("--method", default="lsp", choices=("lsp", "emn"))
    parser.add_argument("--crops", default="grey", choices=tuple(CROPS))
    parser.add_argument("--victims", default="cnn-w16,resnet10-w8")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1, help="how many")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--filters", action="store_true")
    given = parser.parse_args()
    if given.filters:
        print(filters())
        return
    if given.photographs is None or given.work is None:
        parser.error("name PHOTOGRAPHS and --work, or --filters")
    rows = run(given)
    print(table(rows))


if __name__ == "__main__":
    main()
