"""Do pictures that are protected at full size stay protected? `python -m bench.fullsize TRAIN TEST
--work FOLDER`, where TRAIN and TEST are folders with a folder for each class.

Of their first pictures JPEG files of mixed sizes are made: the shorter side 1 to 4 times --size,
the longer one up to half as long again. `fastue protect --size 32 --full-size --mode class` makes
noise for them, every written file has to have the size of its original and to verify, and victims
learn 32 x 32 views with crop and flip: of the pictures with the noise at its own size, of the files
that were written at full size, cut out of their centre as protect does or of their corner, and of
the clean pictures in the same places. They are tested on clean views of TEST, and each is a row of
bench/results/fullsize.csv.

`--filters` instead prints how much of the noise the view of an enlarged picture shows, for each of
Pillow's filters: the reason for the one in fastue/data/fullsize.py.
"""

import argparse
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

QUALITY = 90
ARMS = ("clean", "clean, corner", "own size", "full size", "full size, corner")
FIELDS = (
    "pictures", "size", "arm", "victim", "epochs", "seed", "best", "final", "device", "threads", "torch",
    "fastue", "commit", "time",
)  # fmt: skip


def make_folder(source: Path, made: Path, size: int, per_class: int) -> Path:
    """JPEG pictures of mixed sizes in class folders, the same on every call."""
    for folder in sorted(entry for entry in source.iterdir() if entry.is_dir()):
        (made / folder.name).mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(sorted(folder.iterdir())[:per_class]):
            draw = keyed_generator(0, f"fullsize-{folder.name}", number)
            short = draw.uniform(size, 4 * size)
            sides = [round(short), round(short * draw.uniform(1, 1.5))]
            picture = Image.open(path).convert("RGB")
            picture = picture.resize(draw.permutation(sides).tolist(), Image.Resampling.BICUBIC)
            picture.save(made / folder.name / f"{number:04d}.jpg", quality=QUALITY)
    return made


def sizes(root: Path, names: list[str]) -> list[tuple[int, int]]:
    return [Image.open(root / name).size for name in names]


def corners(root: Path, names: list[str], like: ImageDataset) -> ImageDataset:
    """The upper left S x S of each picture, its shorter side resized to S."""
    size, views = like.shape[1], []
    for name in names:
        picture = Image.open(root / name)
        width, height, _, _ = placed(*picture.size, size)
        small = picture.resize((width, height), Image.Resampling.BICUBIC)
        views.append(np.asarray(small.crop((0, 0, size, size))))
    return replace(like, images=torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2))


def run(given: argparse.Namespace) -> list[dict]:
    out, size = given.work / "out", given.size
    source = make_folder(given.train, given.work / "train", size, given.per_class)
    tested = make_folder(given.test, given.work / "test", size, given.per_class // 2)
    protect(
        source, out, mode="class", size=size, full_size=True, check=False, tell=print,
        device=given.device,
    )  # fmt: skip
    clean, test = open_dataset(source, size=size), open_dataset(tested, size=size)
    written = NoiseStore.open(out, shards=False).manifest["pictures"]["files"]
    said = verify(out, source)
    print(said.text(), flush=True)
    assert said.ok and sizes(out, written) == sizes(source, clean.ids)
    every = torch.arange(len(clean))
    noisy = protected_pictures(clean.images, NoiseStore.open(out).rows(every), every)
    sets = (
        clean,
        corners(source, clean.ids, clean),
        replace(clean, images=noisy),
        open_protected(out),
        corners(out, written, clean),
    )
    device = resolve_device(given.device)
    rows = []
    for seed in range(given.seeds):
        for victim in given.victims.split(","):
            config = VictimConfig(arch=victim, epochs=given.epochs)
            for arm, pictures in zip(ARMS, sets, strict=True):
                curve = train_victim(pictures.to(device), test.to(device), config, seed=1000 + seed)
                accuracy = curve["accuracy"]
                row = dict(
                    pictures=len(clean), size=size, arm=arm, victim=victim, epochs=given.epochs,
                    seed=seed, best=f"{max(accuracy):.1f}", final=f"{accuracy[-1]:.1f}",
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
    side = 64
    kinds = {
        f"{grain} x {grain}": np.kron(
            keyed_generator(0, "signs", grain).choice([-8, 8], (3, side // grain, side // grain)),
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
                shown = fullsize.view(grey, side).transpose(2, 0, 1).astype(int) - 128
                product, length = (shown * noise).sum(), (noise.astype(int) ** 2).sum()
                cells.append(
                    f"{product / length:.2f} ({product / (length * (shown**2).sum()) ** 0.5:.2f})"
                )
            lines.append(f"| {kind} | {width}x{height} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("train", nargs="?", type=Path, help="a folder with one folder a class")
    parser.add_argument("test", nargs="?", type=Path, help="clean pictures of the same classes")
    parser.add_argument("--work", type=Path, help="a new folder, or one that a killed run left")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--per-class", type=int, default=300, help="of TRAIN; of TEST half of it")
    parser.add_argument("--victims", default="cnn-w16,resnet10-w8")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--filters", action="store_true")
    given = parser.parse_args()
    if given.filters:
        print(filters())
        return
    if given.test is None or given.work is None:
        parser.error("name TRAIN, TEST and --work, or --filters")
    print(table(run(given)))


if __name__ == "__main__":
    main()
