"""Does the key let in who has it, and nobody else? `python -m bench.keyed TRAIN TEST --seeds 0-2
--per-class 500 --victims cnn-w16,vgg11-w8,resnet10-w8`.

For each seed: noise by `--setting` (flags of `--method keyed`) for the first `--per-class` pictures
of each class, pictures as they would be written, and victims that are trained on them with crop and
flip, each in one of the ARMS: what is done to the pictures before. A row is appended to
bench/results/keyed.csv as soon as it is there, and one that is there is not trained again. `best`
is the accuracy on all test pictures at the best epoch, which only an oracle knows.

`--setting gratings` is an experiment with a secret of its own: noise that is drawn, not searched,
a grating of a secret frequency and colour for each class, at a random phase in each picture. No mean
and no linear model sees it, and who knows the frequencies takes it out in the same way.

The table at the end, which is all that `--table` prints, has the mean and the worst of the seeds:
the lowest for who has the key, the highest for all others, and the points between a row and clean
training of the same network on the same seed.
"""

import argparse
import itertools
import math
import os
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.ops import facts
from bench.protection import AFTER, append, numbers, rows_of, words
from fastue.countermeasures.orthogonal_projection import projected
from fastue.data.dataset import ImageDataset
from fastue.data.keyed import keyed_generator
from fastue.data.sources import open_dataset
from fastue.methods import configure, get
from fastue.methods.base import Checkpointer, Perturbation
from fastue.methods.emn import GRAIN
from fastue.methods.keyed import mean_picture, patterns
from fastue.models.projection import KeyProjection
from fastue.models.training import resolve_device
from fastue.ops._grain import bank_shape, spread
from fastue.victims.config import VictimConfig
from fastue.victims.train import fit, stopped

RESULTS = Path(__file__).parent / "results" / "keyed.csv"
CELL = ("setting", "per_class", "seed", "victim", "epochs", "arm")
FIELDS = (
    *CELL, "final", "stopped", "best", "best_epoch", "rms", "sweeps", "search_s", "victim_s",
    "pictures", "device", "threads", "load", "torch", "fastue", "commit", "time",
)  # fmt: skip
OTHER = 1  # added to the seed of the noise, for a run of the adversary's own
Sets = tuple[ImageDataset, ImageDataset]


@dataclass
class Scene:
    """What there is on one seed."""

    setting: str
    seed: int
    clean: ImageDataset
    test: ImageDataset
    work: Path | None = None  # where searches are kept

    @cached_property
    def made(self) -> tuple:
        return self.run_of(self.seed)

    def run_of(self, seed: int) -> tuple:
        """The noise of a seed, what spans it at the size of the pictures, and the search."""
        if self.setting == "gratings":
            noise, shown = gratings(self.clean, seed)
            return noise, shown, {"rms": f"{float(shown.square().mean().sqrt()):.2f}"}
        values = dict(word.split("=") for word in self.setting.split(",") if word)
        config = configure("keyed", {**values, "seed": seed}).on(self.clean.device)
        kept = self.work and self.work / f"{self.setting}-{seed}-{len(self.clean)}"
        start = time.perf_counter()
        noise = get("keyed").make(self.clean, config, checkpoint=Checkpointer(kept))
        seconds = time.perf_counter() - start
        shown = spread(patterns(self.clean, noise), noise.grain, *self.clean.shape[1:]).float()
        search = {"sweeps": len(noise.history), "search_s": f"{seconds:.1f}"}
        search["rms"] = f"{float(shown.square().mean().sqrt()):.2f}"
        return noise, shown, search

    @cached_property
    def protected(self) -> ImageDataset:
        noise = self.made[0]
        return replace(self.clean, images=noise.apply(self.clean.images, self.clean.labels))

    def without(self, span: Tensor, pictures: ImageDataset) -> Sets:
        """`pictures` and the test set without a span [K,C,H,W]; the mean is the adversary's."""
        key = KeyProjection(span, mean_picture(pictures))
        return tuple(replace(p, images=key.pictures(p.images)) for p in (pictures, self.test))


def gratings(data: ImageDataset, seed: int, low=3.0, high=6.0, apart=1.5) -> tuple:
    """The noise of a grating for each class, of `low` to `high` cycles a picture, and four phases of
    each, which span all of them."""
    draw = keyed_generator(seed, "gratings")
    waves: list[np.ndarray] = []
    tries = 0
    while len(waves) < data.num_classes:
        angle, tries = draw.uniform(0, np.pi), tries + 1
        wave = draw.uniform(low, high) * np.array([np.sin(angle), np.cos(angle)])
        # A flip mirrors a grating.
        if all(np.hypot(*(abs(wave) - abs(other))) >= apart for other in waves):
            waves.append(wave)
        elif tries % 3000 == 0:
            waves = []
    colours = np.array([[1, 1, 1], [1, 1, -1], [-1, 1, 1]])[draw.integers(0, 3, len(waves))]
    labels, (_, height, width) = data.labels.numpy(), data.shape
    down, right = np.arange(height)[:, None] / height, np.arange(width) / width

    def shown(classes: np.ndarray, phases: np.ndarray) -> Tensor:
        wave = np.array(waves)[classes, :, None, None]
        angle = 2 * np.pi * (wave[:, 0] * down + wave[:, 1] * right) + phases[:, None, None]
        grating = (3 * np.cos(angle)).clip(-1, 1)[:, None] * colours[classes, :, None, None]
        return torch.from_numpy(np.round(8 * grating)).float()

    bank = shown(labels, draw.uniform(0, 2 * np.pi, len(labels))) / 255
    four = np.arange(4 * len(waves))
    return Perturbation(bank, "sample", 8 / 255), shown(four // 4, four % 4 * np.pi / 4)


def spectra(scene: Scene) -> Sets:
    """Frequencies of which the protected pictures of one class have more than all do, by far: what
    an adversary looks for who knows of gratings. The 120 strongest of the three channels."""
    pictures, labels = scene.protected.images.float(), scene.protected.labels
    window = [torch.hann_window(side, periodic=False) for side in scene.clean.shape[1:]]
    pictures = (pictures - pictures.mean(0)) * window[0][:, None] * window[1]
    power = torch.fft.rfft2(pictures).abs().square()
    means = torch.stack([power[labels == k].mean(0) for k in labels.unique()])
    ratio = (means / power.mean(0)).amax(0)
    channel, v, u = np.unravel_index(ratio.flatten().topk(120).indices.numpy(), ratio.shape)
    height, width = scene.clean.shape[1:]
    down, right = torch.arange(height)[:, None] / height, torch.arange(width) / width
    span = torch.zeros(240, *scene.clean.shape)
    for row, (c, y, x) in enumerate(zip(channel, v, u, strict=True)):
        angle = 2 * torch.pi * (float(y) * down + float(x) * right)
        span[2 * row, c], span[2 * row + 1, c] = angle.cos(), angle.sin()
    return scene.without(span, scene.protected)


def plain(scene: Scene) -> Sets:
    return scene.protected, scene.test


def clean(scene: Scene) -> Sets:
    return scene.clean, scene.test


def authorized(scene: Scene) -> Sets:
    return scene.without(scene.made[1], scene.protected)


def clean_projected(scene: Scene) -> Sets:
    """What the projection itself costs."""
    return scene.without(scene.made[1], scene.clean)


def wrong_key(scene: Scene) -> Sets:
    """As many random patterns, on squares as EMN's are."""
    shape = (len(scene.made[1]), *bank_shape(scene.clean.shape, GRAIN))
    draw = keyed_generator(scene.seed, "wrong-key").standard_normal(shape)
    span = spread(torch.from_numpy(draw).float(), GRAIN, *scene.clean.shape[1:])
    return scene.without(span, scene.protected)


def other_run(scene: Scene) -> Sets:
    """The key of a run of the adversary's own, on the same clean pictures: he has none as good."""
    return scene.without(scene.run_of(scene.seed + OTHER)[1], scene.protected)


def class_means(scene: Scene) -> Sets:
    """The span of what the classes of the protected pictures are on average."""
    pictures, labels = scene.protected.images.float(), scene.protected.labels
    means = torch.stack([pictures[labels == k].mean(0) for k in labels.unique()])
    return scene.without(means - means.mean(0), scene.protected)


def linear(scene: Scene) -> Sets:
    """The countermeasure orthogonal-projection: its test pictures stay as they are."""
    silent = lambda phase, done, total: None  # noqa: E731
    return projected(scene.protected, scene.seed, silent)[0], scene.test


def after(name: str):
    """A countermeasure of bench.protection: its test pictures stay as they are."""
    return lambda scene: (
        replace(scene.protected, images=AFTER[name](scene.protected.images)),
        scene.test,
    )


def coarse(scene: Scene) -> Sets:
    """All that is constant on EMN's squares, so that no noise on them is left, nor the pictures'
    own means there. The grain is no secret."""
    blocks = bank_shape(scene.clean.shape, GRAIN)
    count = math.prod(blocks)
    span = spread(torch.eye(count).view(count, *blocks), GRAIN, *scene.clean.shape[1:])
    return scene.without(span, scene.protected)


ARMS = {
    "clean": clean,
    "authorized": authorized,
    "plain": plain,
    "wrong-key": wrong_key,
    "clean-projected": clean_projected,
    "other-run": other_run,
    "class-means": class_means,
    "linear": linear,
    "grayscale": after("grayscale"),
    "jpeg10": after("jpeg10"),
    "coarse": coarse,
    "spectra": spectra,
}


def trained(sets: Sets, cell: dict) -> dict:
    """The figures of one victim. Its seed is not the noise's: the adversary does not know that."""
    config = VictimConfig(arch=cell["victim"], epochs=cell["epochs"])
    _, curves = fit(*sets, config, seed=1000 + cell["seed"])
    accuracy = curves["accuracy"]
    return {
        "final": accuracy[-1],
        "stopped": stopped(curves)[0],
        "best": max(accuracy),
        "best_epoch": accuracy.index(max(accuracy)) + 1,
    }


def run(given, train: ImageDataset, test: ImageDataset) -> None:
    picked = [(train.labels == k).nonzero()[: given.per_class, 0] for k in range(train.num_classes)]
    data, test = train.subset(torch.cat(picked)).to(given.device), test.to(given.device)
    common = {"per_class": given.per_class, "pictures": len(data), "epochs": given.epochs}
    for seed, setting in itertools.product(given.seeds, given.setting):
        scene = Scene(setting, seed, data, test, given.work)
        for arm, victim in itertools.product(given.arms, given.victims):
            cell = {**common, "setting": setting, "seed": seed, "victim": victim, "arm": arm}
            if arm == "clean":  # the same whatever the noise is
                cell["setting"] = "-"
            key = [str(cell[name]) for name in CELL]
            if any(key == [row[name] for name in CELL] for row in rows_of(given.results)):
                continue
            search = {} if arm == "clean" else scene.made[2]
            sets = ARMS[arm](scene)
            start = time.perf_counter()
            figures = trained(sets, cell)
            figures["victim_s"] = f"{time.perf_counter() - start:.1f}"
            about = {name: value for name, value in facts(given.device).items() if name in FIELDS}
            about["load"] = f"{os.getloadavg()[0]:.1f}"
            append(given.results, {**about, **cell, **search, **figures}, FIELDS)
            print({name: cell[name] for name in CELL}, search, figures, flush=True)


def table(rows: list[dict]) -> str:
    """Each setting's arms, mean and worst seed, as Markdown."""
    same = ("per_class", "seed", "victim", "epochs")
    control = {tuple(r[k] for k in same): float(r["best"]) for r in rows if r["arm"] == "clean"}
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        name = (row["setting"], row["arm"], row["victim"], row["per_class"], row["epochs"])
        groups.setdefault(name, []).append(row)
    lines = [
        "| setting | arm | victim | pictures a class | epochs | seeds | best epoch: mean | worst "
        "seed | below its clean control: worst seed |",
        "|" + "---|" * 9,
    ]
    order = list(ARMS)
    for name, members in sorted(groups.items(), key=lambda g: (g[0][0], order.index(g[0][1]), g)):
        lets_in = name[1] in ("clean", "authorized", "clean-projected")
        best = [float(row["best"]) for row in members]
        worst, gap = min(best) if lets_in else max(best), "-"
        if all(tuple(row[k] for k in same) in control for row in members):
            below = [control[tuple(row[k] for k in same)] - float(row["best"]) for row in members]
            gap = f"{max(below) if lets_in else min(below):.1f}"
        cells = (*name, len(members), f"{sum(best) / len(best):.1f}", f"**{worst:.1f}**")
        lines.append("| " + " | ".join(map(str, (*cells, gap))) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("train", nargs="?", help="pictures to protect: whatever fastue opens")
    parser.add_argument("test", nargs="?", help="clean pictures of the same classes")
    parser.add_argument("--setting", action="append", help="flags of --method keyed; repeatable")
    parser.add_argument("--seeds", type=numbers, default=[0], help="0-9 or 2,7,11")
    parser.add_argument("--per-class", type=int, default=500)
    parser.add_argument("--victims", type=words, default=["cnn-w16", "vgg11-w8", "resnet10-w8"])
    parser.add_argument("--arms", type=words, default=list(ARMS), help=", ".join(ARMS))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--device", type=resolve_device, default="auto")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--work", type=Path, help="where searches are kept for the next call")
    parser.add_argument("--table", action="store_true", help="only print the rows there are")
    given = parser.parse_args()
    given.setting = given.setting or ["mode=class"]
    if not given.table:
        if given.test is None:
            parser.error("name TRAIN and TEST, or --table")
        run(given, open_dataset(given.train), open_dataset(given.test))
    print(table(rows_of(given.results)))


if __name__ == "__main__":
    main()
