"""How fast are the ways to load pictures? `python -m bench.loaders PICTURES`, a folder of
photographs, of which random crops are made: 2,000 of 256 x 256 as JPEG and 50,000 of 32 x 32 as raw
pixels, in a temporary folder (`--work`: another, kept). `--part jpeg`, `raw` or `write` does one.

Each side is a process of its own, so that none meets what another has set or compiled. First every
side delivers an epoch, its warm-up, and those that decode alike must agree in every pixel and label,
each row once. Then they take turns, an epoch each; `times` and `percent` are medians over the turns
of what a side did beside what the other did in the same turn. A DataLoader without workers has one
process and is compared with one worker. Rows go to bench/results/loaders.csv.

`--png` instead measures what the levels of compression cost for protected pictures.
"""

import argparse
import contextlib
import csv
import hashlib
import importlib.util
import io
import itertools
import multiprocessing
import os
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from bench.ops import ROOT, facts, write
from bench.report import last_run
from bench.streaming import make
from fastue.core import info
from fastue.data.beton import read_table, write_beton
from fastue.data.dataset import ImageDataset, batches, epoch_order
from fastue.data.ffcv import FFCVLoader
from fastue.data.keyed import keyed_generator
from fastue.data.sources import open_dataset
from fastue.data.writers import protected_pictures, write_folder, write_npz

BATCH = 128
SETS = {"jpeg": (256, 2000), "raw": (32, 50_000)}  # side and number of pictures
ORDERS = ("sequential", "random", "quasi_random")
FIELDS = (
    "part", "size", "pictures", "side", "order", "workers", "rounds", "best", "median", "times_dataloader",
    "times_best_dataloader", "percent_of_bare", "bytes", "load", "device", "torch", "ffcv", "fastue", "commit", "time",
)  # fmt: skip
SHOWN = FIELDS[3:6] + FIELDS[7:13]


# ---- what is loaded


def make_set(photographs: Path, work: Path, part: str) -> None:
    """work/set.beton; for "jpeg" the same files in work/files/<label>/ and in two .tar."""
    if (work / "set.beton").exists():
        return
    make(photographs, work / "crops", *SETS[part])
    data = open_dataset(work / "crops")
    if part == "raw":
        write_beton(work / "set.beton", data)
        return
    path = work / "new.beton"
    write_beton(path, data, jpeg=90, lossy_ok=True)
    table, whole = read_table(path), path.read_bytes()
    with contextlib.ExitStack() as stack:
        tars = [stack.enter_context(tarfile.open(work / f"{k}.tar", "w")) for k in range(2)]
        for row, label in enumerate(table.labels.tolist()):
            body = whole[table.start[row] : table.start[row] + table.size[row]]
            name = work / "files" / f"{label:03d}" / f"{row:07d}.jpg"
            name.parent.mkdir(parents=True, exist_ok=True)
            name.write_bytes(body)
            for end, member in (("jpg", body), ("cls", b"%d" % label)):
                about = tarfile.TarInfo(f"{row:07d}.{end}")
                about.size = len(member)
                tars[row % 2].addfile(about, io.BytesIO(member))
    path.rename(work / "set.beton")
    path.with_name("new.beton.json").rename(work / "set.beton.json")


# ---- the sides: (folder, order, workers) -> a function that begins an epoch of (x, y, row)

Epoch = Callable[[], Iterator]


def ours(work: Path, order: str, workers: int) -> Epoch:
    loader = FFCVLoader(work / "set.beton", BATCH, order, workers=workers)

    def epoch() -> Iterator:
        loader.epoch += 1
        return iter(loader)

    return epoch


def bare(work: Path, order: str, workers: int) -> Epoch:
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Squeeze, ToTensor, ToTorchImage

    number = [IntDecoder, ToTensor, Squeeze]
    loader = Loader(
        str(work / "set.beton"), batch_size=BATCH, num_workers=workers, drop_last=False,
        order=OrderOption[order.upper()], os_cache=order != "quasi_random",
        pipelines={
            "image": [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage()],
            "label": [step() for step in number],
            "index": [step() for step in number],
        },
    )  # fmt: skip
    return lambda: iter(loader)


def memory(work: Path, order: str, workers: int, cache: bool = False) -> Epoch:
    data = open_dataset(work / "set.beton", cache=work / "cache" if cache else None)
    number = itertools.count()
    return lambda: batches(data, BATCH, epoch_order(len(data), 0, next(number)))


class Files(torch.utils.data.Dataset):
    """JPEG files by Pillow, [H,W,C]: the batch is permuted, which is cheaper than each picture."""

    def __init__(self, folder: Path):
        self.files = sorted(folder.glob("*/*.jpg"), key=lambda path: path.name)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int, int]:
        with Image.open(self.files[row]) as picture:
            pixels = np.array(picture.convert("RGB"))
        return torch.from_numpy(pixels), int(self.files[row].parent.name), row


def dataloader(work: Path, order: str, workers: int) -> Epoch:
    if (work / "files").exists():
        data = Files(work / "files")
    else:
        kept = open_dataset(work / "set.beton")
        x = kept.images.permute(0, 2, 3, 1)
        data = torch.utils.data.TensorDataset(x, kept.labels, torch.arange(len(kept)))
    loader = torch.utils.data.DataLoader(
        data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: ((x.permute(0, 3, 1, 2), y, row) for x, y, row in loader)


def webdataset(work: Path, order: str, workers: int) -> Epoch:
    import webdataset as wds

    files = [str(work / f"{k}.tar") for k in range(2)]
    data = wds.WebDataset(files, shardshuffle=2).shuffle(1000).decode("rgb8")
    data = data.to_tuple("jpg", "cls", "__key__").batched(BATCH)
    loader = wds.WebLoader(
        data, batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: (
        (x.permute(0, 3, 1, 2), torch.as_tensor(y), torch.as_tensor([int(name) for name in names]))
        for x, y, names in loader
    )


@dataclass(frozen=True)
class Side:
    name: str
    start: Callable[[Path, str, int], Epoch]
    order: str
    workers: int
    decoder: str  # those of one deliver equal pixels


def sides_of(part: str) -> list[Side]:
    memmap = partial(memory, cache=True)
    if part == "raw":
        return [
            *(Side("FFCVLoader", ours, order, 1, "none") for order in ORDERS),
            *(Side("bare FFCV", bare, order, 1, "none") for order in ORDERS),
            Side("memory", memory, "random", 1, "none"),
            Side("memmap cache", memmap, "random", 1, "none"),
            *(Side("DataLoader, tensor", dataloader, "random", n, "none") for n in (0, 2)),
        ]
    sides = [
        *(Side("FFCVLoader", ours, "random", n, "FFCV") for n in (1, 2)),
        *(Side("bare FFCV", bare, "random", n, "FFCV") for n in (1, 2)),
        *(Side("DataLoader, Pillow", dataloader, "random", n, "Pillow") for n in (0, 2)),
    ]
    if importlib.util.find_spec("webdataset"):
        sides += [Side("WebDataset, Pillow", webdataset, "random", n, "Pillow") for n in (0, 2)]
    else:
        print("WebDataset is left out: it is not installed")
    return [*sides, Side("memmap cache", memmap, "random", 1, "Pillow")]


# ---- taking turns


def serve(pipe, side: Side, work: Path, part: str) -> None:
    """A side's process: says what the first epoch held, then for each True how long one took."""
    torch.set_num_threads(max(1, side.workers))
    epoch = side.start(work, side.order, side.workers)
    pipe.send(content(epoch(), *SETS[part]))
    while pipe.recv():
        start = time.perf_counter()
        total = sum(len(x) for x, _, _ in epoch())
        pipe.send((time.perf_counter() - start, total))


def content(epoch: Iterator, size: int, count: int) -> str:
    """A hash of the pixels and labels of all rows; "" unless each is there once."""
    pixels, labels = np.zeros((count, size, size, 3), np.uint8), np.zeros(count, np.int64)
    seen = np.zeros(count, np.int64)
    for x, y, rows in epoch:
        pixels[rows], labels[rows] = x.permute(0, 2, 3, 1).numpy(), y
        np.add.at(seen, rows, 1)
    if not (seen == 1).all():
        return ""
    return hashlib.sha256(pixels.data).hexdigest() + hashlib.sha256(labels.data).hexdigest()


def take_turns(part: str, work: Path, rounds: int) -> list[dict]:
    """Rows of a part. SystemExit where a side's pictures are not those of the others."""
    context = multiprocessing.get_context("spawn")
    sides, pipes, agreed = sides_of(part), [], {}
    for side in sides:
        here, there = context.Pipe()
        context.Process(target=serve, args=(there, side, work, part)).start()
        there.close()
        found = here.recv()
        if not found or found != agreed.setdefault(side.decoder, found):
            raise SystemExit(f"{side.name}: wrong pictures, labels or rows; nothing is timed")
        pipes.append(here)
    seconds = np.zeros((rounds, len(sides)))
    for turn in range(rounds):
        for place, pipe in enumerate(pipes):
            pipe.send(True)
            seconds[turn, place], total = pipe.recv()
            assert total == SETS[part][1]
    for pipe in pipes:
        pipe.send(False)
    return compared(part, sides, SETS[part][1] / seconds)


def compared(part: str, sides: list[Side], rates: np.ndarray) -> list[dict]:
    """Rows of what was measured: pictures a second [rounds, sides]."""

    def against(place: int, others: list[int]) -> float:
        return float(np.median(rates[:, place] / rates[:, others].max(1))) if others else 0.0

    rows = []
    for place, side in enumerate(sides):
        loaders = [i for i, s in enumerate(sides) if s.start is dataloader]
        equal = [i for i in loaders if max(1, sides[i].workers) == side.workers]
        twin = [
            i
            for i, s in enumerate(sides)
            if s.start is bare and (s.order, s.workers) == (side.order, side.workers)
        ]
        row = dict(
            part=part, side=side.name, order=side.order, workers=side.workers, rounds=len(rates),
            best=f"{rates[:, place].max():.0f}", median=f"{np.median(rates[:, place]):.0f}",
            times_best_dataloader=f"{against(place, loaders):.2f}",
        )  # fmt: skip
        if equal:
            row["times_dataloader"] = f"{against(place, equal):.2f}"
        if side.start is ours:
            row["percent_of_bare"] = f"{100 * against(place, twin):.0f}"
        rows.append(row)
    return rows


# ---- writing


def noisy(data: ImageDataset, grain: int) -> tuple[ImageDataset, torch.Tensor]:
    """The data set with random noise of 8/255 in squares of `grain` pixels of one sign, as EMN's
    is, and the noise int8 [N,C,H,W]."""
    n, (c, h, w) = len(data), data.shape
    draw = keyed_generator(0, "bench-noise", grain)
    signs = draw.choice(np.array([-8, 8], np.int8), (n, c, h // grain, w // grain))
    noise = torch.from_numpy(signs.repeat(grain, 2).repeat(grain, 3))
    return replace(data, images=protected_pictures(data.images, noise, torch.arange(n))), noise


def write_rates(work: Path, data: ImageDataset, rounds: int) -> list[dict]:
    protected, noise = noisy(data, 4)
    rows = torch.arange(len(data))
    sides = {
        ".beton": lambda out: write_beton(out / "set.beton", protected),
        ".npz": lambda out: write_npz(out / "set.npz", data, noise, rows),
        "PNG folder": lambda out: write_folder(out, data, lambda index: noise[index]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    sizes = {}
    for _ in range(rounds):
        for name, side in sides.items():
            with tempfile.TemporaryDirectory(dir=work) as out:
                os.sync()  # what others have written is not this side's to wait for
                start = time.perf_counter()
                side(Path(out))
                os.sync()
                seconds[name].append(time.perf_counter() - start)
                files = [path for path in Path(out).rglob("*") if path.is_file()]
                sizes[name] = sum(path.stat().st_size for path in files) / len(data)
    return [rated("write", name, len(data), seconds[name], sizes[name]) for name in sides]


def png_levels(data: ImageDataset, rounds: int) -> list[dict]:
    """Of pictures with noise and without, by one thread. Pillow's own choice is level 6."""
    rows = []
    sides = {f"level {level}": {"compress_level": level} for level in range(1, 10)}
    sides["runs only"] = {"compress_type": zlib.Z_RLE}
    sides["Huffman only"] = {"compress_type": zlib.Z_HUFFMAN_ONLY}
    kinds = {f"noise, squares of {grain}": noisy(data, grain)[0] for grain in (4, 1)}
    for kind, shown in {**kinds, "no noise": data}.items():
        pixels = shown.images.permute(0, 2, 3, 1).contiguous().numpy()
        pictures = [Image.fromarray(picture) for picture in pixels]
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        sizes = {}
        for _ in range(rounds):
            for name, how in sides.items():
                total, start = 0, time.perf_counter()
                for picture in pictures:
                    buffer = io.BytesIO()
                    picture.save(buffer, "PNG", **how)
                    total += buffer.tell()
                seconds[name].append(time.perf_counter() - start)
                sizes[name] = total / len(pictures)
        for name in sides:
            row = rated("png", name, len(data), seconds[name], sizes[name])
            rows.append({**row, "order": kind})
    return rows


def rated(part: str, side: str, count: int, seconds: list[float], size: float) -> dict:
    return dict(
        part=part, side=side, rounds=len(seconds), best=f"{count / min(seconds):.0f}",
        median=f"{count / median(seconds):.0f}", bytes=f"{size:.0f}",
    )  # fmt: skip


# ---- rows


def finish(rows: list[dict], size: int, count: int) -> None:
    """Print the rows and keep them."""
    about = {**facts(torch.device("cpu")), "ffcv": info.version("ffcv") or ""}
    about |= {"size": size, "pictures": count, "load": f"{os.getloadavg()[0]:.1f}"}
    whole = [{name: {**about, **row}.get(name, "") for name in FIELDS} for row in rows]
    print(f"\n{rows[0]['part']}: {count} pictures of {size} x {size}, pictures/s\n")
    shown = [name for name in SHOWN if any(row[name] != "" for row in whole)]
    print("| " + " | ".join(shown) + " |\n" + "|---" * len(shown) + "|")
    for row in whole:
        print("| " + " | ".join(str(row[name]) for name in shown) + " |")
    print(write(whole, "loaders", FIELDS), flush=True)


def plot(rows: list[dict]) -> Path | None:
    """docs/pictures/loaders.png, the last run of each part; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(9, 4.2), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    colours = {"FFCVLoader": "tab:blue", "bare FFCV": "tab:cyan", "memory": "tab:green"}
    for axis, part in zip(figure.subplots(1, 2), SETS, strict=True):
        mine = last_run([row for row in rows if row["part"] == part], ("part",))
        for place, row in enumerate(mine):
            rate = int(row["median"])
            name = row["side"].split(",")[0]
            axis.barh(place, rate, color=colours.get(name, "tab:gray"))
            axis.text(rate, place, f" {rate:,}", va="center", fontsize=8)
        names = [f"{row['side']}, {row['order']}, {row['workers']}" for row in mine]
        axis.set_yticks(range(len(mine)), names, fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.3)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.locator_params(axis="x", nbins=4)
        size, count = SETS[part]
        axis.set_title(f"{count:,} pictures of {size} x {size}, {part}", fontsize=10)
        axis.set_xlabel("pictures/s (median)")
    path = ROOT / "docs" / "pictures" / "loaders.png"
    figure.savefig(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "photographs", type=Path, help="a folder of pictures, larger than 256 x 256"
    )
    parser.add_argument("--part", choices=(*SETS, "write"), help="only this one")
    parser.add_argument("--png", action="store_true", help="levels of compression instead")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, help="keep the pictures here")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = given.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if given.png:
            for size, count in ((32, 1000), (224, 60)):
                make(given.photographs, work / f"png-{size}", size, count)
                rows = png_levels(open_dataset(work / f"png-{size}"), given.rounds)
                finish(rows, size, count)
            return
        for part, (size, count) in SETS.items():
            make_set(given.photographs, work / part, part)
            if given.part in (None, part):
                finish(take_turns(part, work / part, given.rounds), size, count)
            if given.part in (None, "write"):
                data = open_dataset(work / part / "set.beton")
                data = data.subset(range(count // 4))
                finish(write_rates(work, data, given.rounds), size, len(data))
    with (ROOT / "bench" / "results" / "loaders.csv").open(newline="") as file:
        print(plot(list(csv.DictReader(file))))


if __name__ == "__main__":
    main()
