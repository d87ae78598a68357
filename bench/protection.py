"""Does a setting protect, on every seed? `python -m bench.protection TRAIN TEST --setting
mode=class,grain=4 --seeds 0-9 --per-class 500 --victims resnet10-w16,cnn,vgg11-w8`. A setting is
flags of EMN (lists with a plus: `survive=gray+jpeg`, a switch `on`); another method goes before
them (`pue:mode=class`). The victim `authorized` is the network that `uge` made the pictures for,
from its own initial weights; `clean` is then its accuracy on the originals, where a part of it
is frozen.

For each seed: noise for the first `--per-class` pictures of each class, pictures as they would be
written, and victims trained on them with crop and flip (10 epochs; `resnet10-w16*3` trains three
times as long). Each victim is one row, appended to bench/results/protection.csv as soon as it is
there; a row that is there already is not trained again, so a killed run goes on and several may
share the file. `--setting clean` and `--setting random-class` are what to compare with;
`published-class` is the public code's search, to its own stop rule.

`best` is the accuracy on all clean test pictures at the victim's best epoch, which only an oracle
knows: the strictest reading. `stopped` is what an adversary gets who picks the epoch on one half of
them, on the other half. `--after jpeg10` treats pictures before the victim sees them. The table
printed at the end shows the worst seed of each setting; `--table` only prints it.
"""

import argparse
import copy
import csv
import io
import itertools
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import nn

from bench.certify import out_of_place
from bench.methods import EPS, min_min
from bench.ops import facts
from fastue import models
from fastue.countermeasures import load
from fastue.data.dataset import ImageDataset
from fastue.data.sources import open_dataset
from fastue.data.writers import protected_pictures
from fastue.methods import configure, get
from fastue.methods.base import Config, Perturbation
from fastue.models.training import resolve_device, sgd, train_step
from fastue.protocol.arms import ARMS, arm_pictures
from fastue.protocol.check import check_protection
from fastue.protocol.survival import HANDLINGS
from fastue.victims.train import VictimConfig, fit, stopped

RESULTS = Path(__file__).parent / "results" / "protection.csv"
CHECK = "check"  # among the victims: that of fastue protect
AUTHORIZED = "authorized"
CELL = ("setting", "per_class", "seed", "victim", "epochs", "after")
FIELDS = (
    *CELL, "final", "stopped", "best", "best_epoch", "clean", "holds", "sweeps", "error", "search_s",
    "victim_s", "pictures", "device", "threads", "load", "torch", "fastue", "commit", "time",
)  # fmt: skip


def each(picture: Callable[[Image.Image], Image.Image]) -> Callable[[torch.Tensor], torch.Tensor]:
    """One Pillow operation for pictures uint8 [N,3,H,W]."""

    def pictures(images: torch.Tensor) -> torch.Tensor:
        pixels = images.permute(0, 2, 3, 1).numpy()
        changed = np.stack([np.asarray(picture(Image.fromarray(p))) for p in pixels])
        return torch.from_numpy(changed).permute(0, 3, 1, 2)

    return pictures


def counter(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """A countermeasure's pictures."""
    return lambda images: load(name).pictures(images, None, 0).contiguous()


# What is done to the training pictures; test pictures stay as they are.
AFTER = {
    "none": lambda images: images,
    "grayscale": counter("grayscale"),
    "jpeg75": counter("jpeg-75"),
    "jpeg30": counter("jpeg-30"),
    "jpeg10": counter("jpeg"),
    "blur1": each(lambda picture: picture.filter(ImageFilter.GaussianBlur(1))),
    "half-size": each(HANDLINGS["half the size and back"]),
}


def protected(setting: str, data: ImageDataset, seed: int) -> tuple:
    """The training pictures under a setting, how the search for the noise went, and for a method
    of ours the noise and its config."""
    if setting in ARMS:
        budget = configure("emn", {}).budget
        return arm_pictures(setting, seed, data, data, budget), {}, None, None
    if setting == "published-class":
        return *published_class(data, seed), None, None
    method, _, rest = setting.partition(":") if ":" in setting else ("emn", "", setting)
    values = dict(word.split("=", 1) for word in rest.split(",") if word)
    values = {name: _value(value) for name, value in values.items()}
    config = configure(method, {**values, "seed": seed}).on(data.device)
    start = time.perf_counter()
    result = get(method).make(data, config)
    seconds = time.perf_counter() - start
    history = result.history
    search = {
        "sweeps": len(history),
        "error": f"{history[-1]['error']:.4f}" if history and "error" in history[-1] else "",
        "search_s": f"{seconds:.1f}",
    }
    pictures = replace(data, images=result.apply(data.images, data.labels))
    return pictures, search, result, config


def _value(text: str) -> str | bool:
    """Of a setting; a switch is `on`."""
    return True if text == "on" else text.replace("+", ",")


def published_class(
    data: ImageDataset, seed: int, arch: str = "resnet10-w16"
) -> tuple[ImageDataset, dict]:
    """The public EMN code's class-wise search in our words, to its own stop rule (10 % error,
    once), and the pictures as it writes them: without the negative half of the noise."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    model = out_of_place(models.build(arch, data.num_classes, data.shape[0], seed=seed))
    optimizer = sgd(model, 0.1)
    pictures, labels = data.images.contiguous().float() / 255, data.labels
    noise = torch.zeros(data.num_classes, *data.shape)
    searched = torch.randperm(len(data))[: len(data) // 5].split(128)
    walk: list[torch.Tensor] = []
    sweeps, error = 0, 1.0

    def noisy(rows: torch.Tensor) -> torch.Tensor:
        return torch.stack([pictures[row] + noise[labels[row]] for row in rows.tolist()])

    while error > 0.1 and sweeps < 100:
        model.train().requires_grad_(True)
        for _ in range(10):
            walk = walk or list(torch.randperm(len(data))[: len(data) // 128 * 128].split(128))
            rows = walk.pop()
            train_step(model, optimizer, noisy(rows), labels[rows], precision="float32", clip=5.0)
        model.eval().requires_grad_(False)
        for rows in searched:
            eta = min_min(model, pictures[rows], labels[rows], noise[labels[rows]], 1)
            for k in labels[rows].unique().tolist():
                noise[k] = eta[labels[rows] == k].mean(0).clamp(-EPS, EPS).detach()
        wrong = sum(int((model(noisy(rows)).argmax(1) != labels[rows]).sum()) for rows in searched)
        sweeps, error = sweeps + 1, wrong / sum(map(len, searched))
    seconds = time.perf_counter() - start
    shown = protected_pictures(
        data.images, (noise * 255).round().to(torch.int8), labels, change="positive"
    )
    search = {"sweeps": sweeps, "error": f"{error:.4f}", "search_s": f"{seconds:.1f}"}
    return replace(data, images=shown), search


def rows_of(path: Path) -> list[dict]:
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: dict, fields: tuple[str, ...] = FIELDS) -> None:
    """In one write, so that several processes may append."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    if not path.exists():
        writer.writeheader()
    writer.writerow(row)
    with open(path, "a") as file:
        file.write(text.getvalue())


def trained(
    pictures: ImageDataset, test: ImageDataset, cell: dict, model: nn.Module | None = None
) -> dict:
    """The figures of one victim. Its seed is not the noise's: the adversary does not know that.
    `model` is trained in place of a new one."""
    shown = replace(pictures, images=AFTER[cell["after"]](pictures.images))
    config = VictimConfig(arch=cell["victim"], epochs=cell["epochs"])
    _, curves = fit(shown, test, config, seed=1000 + cell["seed"], model=model)
    accuracy = curves["accuracy"]
    return {
        "final": accuracy[-1],
        "stopped": stopped(curves)[0],
        "best": max(accuracy),
        "best_epoch": accuracy.index(max(accuracy)) + 1,
    }


def checked(data: ImageDataset, noise: Perturbation, config: Config) -> dict:
    """What the check of `fastue protect` says."""
    said = check_protection(data, noise, config)
    return {"best": said.reached, "clean": said.clean, "holds": said.holds}


def run(given, train: ImageDataset, test: ImageDataset) -> None:
    picked = [(train.labels == k).nonzero()[: given.per_class, 0] for k in range(train.num_classes)]
    data = train.subset(torch.cat(picked)).to(given.device)
    test = test.to(given.device)
    common = {"per_class": given.per_class, "pictures": len(data)}
    wanted = itertools.product(given.seeds, given.setting, given.victims, given.after)
    made: tuple = ()  # of the last (seed, setting)
    for seed, setting, victim, after in wanted:
        arch, _, times = victim.partition("*")
        cell = {**common, "setting": setting, "seed": seed, "victim": arch, "after": after}
        cell["epochs"] = given.epochs * int(times or 1) if arch != CHECK else 0
        key = [str(cell[name]) for name in CELL]
        if any(key == [row[name] for name in CELL] for row in rows_of(given.results)):
            continue
        if made[:1] != ((seed, setting),):
            made = ((seed, setting), *protected(setting, data, seed))
        _, pictures, search, noise, config = made
        start = time.perf_counter()
        if arch == CHECK:
            figures = checked(data, noise, config)
        elif arch == AUTHORIZED:
            figures = trained(pictures, test, cell, copy.deepcopy(noise.surrogate))
            if config.frozen:  # else clean training of the same architecture is its control
                beside = trained(data, test, cell, copy.deepcopy(noise.surrogate))
                figures["clean"] = beside["best"]
        else:
            figures = trained(pictures, test, cell)
        figures["victim_s"] = f"{time.perf_counter() - start:.1f}"
        about = {name: value for name, value in facts(given.device).items() if name in FIELDS}
        about["load"] = f"{os.getloadavg()[0]:.1f}"
        append(given.results, {**about, **cell, **search, **figures})
        print({name: cell[name] for name in CELL}, search, figures, flush=True)


def table(rows: list[dict]) -> str:
    """The worst seed of each setting, and clean training beside it, as Markdown."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        name = tuple(row[k] for k in ("setting", "per_class", "victim", "epochs", "after"))
        groups.setdefault(name, []).append(row)
    clean = {name[1:]: rows for name, rows in groups.items() if name[0] == "clean"}
    lines = [
        "| setting | pictures a class | victim | epochs | after | seeds | best epoch: worst seed "
        "| mean | final: worst | clean: best epoch, lowest seed | sweeps |",
        "|" + "---|" * 11,
    ]
    for name, members in sorted(groups.items()):
        best = [float(row["best"]) for row in members]
        worst = members[best.index(max(best))]
        beside = clean.get(name[1:])
        sweeps = [int(row["sweeps"]) for row in members if row["sweeps"]]
        cells = (
            *name,
            str(len(members)),
            f"**{max(best):.1f}** (seed {worst['seed']})",
            f"{sum(best) / len(best):.1f}",
            f"{max(float(row['final']) for row in members):.1f}" if members[0]["final"] else "-",
            f"{min(float(row['best']) for row in beside):.1f}" if beside else _clean(members),
            f"{min(sweeps)} to {max(sweeps)}" if sweeps else "-",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _clean(rows: list[dict]) -> str:
    """Of a check, whose clean victim is its own."""
    values = [float(row["clean"]) for row in rows if row.get("clean")]
    return f"{min(values):.1f}" if values else "-"


def numbers(text: str) -> list[int]:
    """`0-9` or `2,7,11`."""
    first, dash, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if dash else [int(n) for n in text.split(",")]


def words(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("train", nargs="?", help="pictures to protect: whatever fastue opens")
    parser.add_argument("test", nargs="?", help="clean pictures of the same classes")
    parser.add_argument(
        "--setting", action="append", help="flags of fastue protect, mode=class,grain=4; repeatable"
    )
    parser.add_argument("--seeds", type=numbers, default=[0], help="0-9 or 2,7,11")
    parser.add_argument("--per-class", type=int, default=500)
    parser.add_argument("--victims", type=words, default=["resnet10-w16"])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--after", type=words, default=["none"], help=", ".join(AFTER))
    parser.add_argument("--device", type=resolve_device, default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="only print the rows there are")
    given = parser.parse_args()
    if not given.table:
        if given.test is None or not given.setting:
            parser.error("name TRAIN, TEST and a --setting, or --table")
        run(given, open_dataset(given.train), open_dataset(given.test))
    print(table(rows_of(given.results)))


if __name__ == "__main__":
    main()
