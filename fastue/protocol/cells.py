"""Who is trained on what: every (arm, architecture, seed) of an attack is one victim and one row.

Arms: `clean` (the originals), `protected` (the written files), `random-sample` and `random-class` (uniform noise of the
same budget: a protection that does no better than these protects nothing). All are tested on the same clean pictures.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fastue.core.errors import UsageError
from fastue.data.atomic import atomic_write_json, make_folder
from fastue.data.dataset import ImageDataset
from fastue.data.keyed import keyed_generator
from fastue.data.writers import protected_pictures
from fastue.victims.train import VictimConfig, check_pair, train_victim

ARMS = ("clean", "protected", "random-sample", "random-class")
SUITES = {"none": ("none",)}


@dataclass(frozen=True)
class Cell:
    """One victim to train."""

    countermeasure: str
    arm: str
    arch: str
    seed: int


def random_noise(data: ImageDataset, levels: int, per: str, seed: int) -> Tensor:
    """Uniform noise in [-levels, levels], int8 in 1/255: [N,C,H,W] for per="sample", [K,C,H,W] for per="class".

    The control of the EMN paper (section 4); a function of (seed, per, row) only.
    """
    rows = len(data) if per == "sample" else data.num_classes
    draw = (
        keyed_generator(seed, f"random-{per}")
        .uniform(-levels, levels, size=(rows, *data.shape))
        .round()
    )
    return torch.from_numpy(draw).to(torch.int8)


def arm_pictures(
    arm: str, seed: int, protected: ImageDataset, originals: ImageDataset, levels: int
) -> ImageDataset:
    """The training set of an arm."""
    if arm == "protected":
        return protected
    if arm == "clean":
        return originals
    per = arm.removeprefix("random-")
    noise = random_noise(originals, levels, per, seed).to(originals.device)
    rows = (
        originals.labels
        if per == "class"
        else torch.arange(len(originals), device=originals.device)
    )
    return replace(originals, images=protected_pictures(originals.images, noise, rows), source=arm)


def evaluate(
    protected: ImageDataset,
    originals: ImageDataset | None,
    test: ImageDataset,
    *,
    levels: int,
    suite: str,
    archs: list[str],
    seeds: list[int],
    config: VictimConfig,
    out: Path,
    arms: tuple[str, ...] = ARMS,
    progress: Callable[[str, int, int, dict], None] = lambda name, done, total, info: None,
) -> Iterator[dict]:
    """Train every victim of the attack and yield its row; `out/results.json` holds all rows so far after each.

    A row that an earlier run with the same pictures and settings left in `out/rows` is not trained again, so attacks
    on several protections of one source share their controls when they share `out`.
    Raises UsageError for an unknown suite or arm, DataError for sets that do not fit together.
    """
    if suite not in SUITES:
        raise UsageError(f"--suite {suite}: use one of {', '.join(SUITES)}")
    if unknown := set(arms) - set(ARMS):
        raise UsageError(f"--arms {','.join(sorted(unknown))}: use some of {', '.join(ARMS)}")
    for data in filter(None, (protected, originals)):
        check_pair(data, test)
    prints = {id(data): data.fingerprint() for data in (protected, originals, test) if data}
    cells = [
        Cell(cm, arm, arch, seed)
        for cm in SUITES[suite]
        for arch in archs
        for seed in seeds
        for arm in arms
    ]
    make_folder(out / "rows")
    rows: list[dict] = []
    for number, cell in enumerate(cells, 1):
        victim = replace(config, arch=cell.arch)
        inputs = [
            prints[id(data)] for data in (protected if cell.arm == "protected" else originals, test)
        ]
        inputs += [levels] if cell.arm.startswith("random") else []
        described = {**asdict(cell), **asdict(victim), "inputs": inputs}
        key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
        path = out / "rows" / f"{key}.json"
        if path.exists():
            row = json.loads(path.read_text())
        else:
            train = arm_pictures(cell.arm, cell.seed, protected, originals or protected, levels)
            name = f"[{number}/{len(cells)}] {cell.arm} {cell.arch} seed {cell.seed}"
            start = time.perf_counter()
            curves = train_victim(
                train,
                test,
                victim,
                seed=cell.seed,
                progress=lambda d, t, info, n=name: progress(n, d, t, info),
            )
            row = {
                **asdict(cell), "accuracy_final": curves["accuracy"][-1], "accuracy_peak": max(curves["accuracy"]),
                "train_accuracy": curves["train_accuracy"][-1], "accuracy_curve": curves["accuracy"],
                "loss_curve": curves["loss"], "epochs": victim.epochs, "seconds": round(time.perf_counter() - start, 1),
            }  # fmt: skip
            atomic_write_json(path, row)
        rows.append(row)
        atomic_write_json(out / "results.json", rows)
        yield row


def summarise(rows: list[dict]) -> list[dict]:
    """Mean, spread and extremes over seeds of each (countermeasure, arch, arm), percent, in order of appearance."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["countermeasure"], row["arch"], row["arm"]), []).append(row)
    table = []
    for (countermeasure, arch, arm), members in groups.items():
        final = [row["accuracy_final"] for row in members]
        table.append({
            "countermeasure": countermeasure, "arch": arch, "arm": arm, "seeds": len(members),
            "final_mean": statistics.fmean(final), "final_sd": statistics.stdev(final) if len(final) > 1 else 0.0,
            "final_max": max(final), "peak_mean": statistics.fmean(row["accuracy_peak"] for row in members),
        })  # fmt: skip
    return table


def verdict(rows: list[dict], num_classes: int) -> str:
    """One plain sentence: the highest accuracy any victim kept, beside clean training and chance."""
    table = summarise(rows)
    protected = [line for line in table if line["arm"] == "protected"]
    if not protected:
        return "No victim was trained on the protected pictures."
    worst = max(protected, key=lambda line: line["final_mean"])
    same = {line["arm"]: line for line in table if line["arch"] == worst["arch"]}
    text = (
        f"Worst case over {len(protected)} setting{'s' if len(protected) > 1 else ''}: {worst['arch']} trained on the "
        f"protected files reaches {worst['final_mean']:.1f} % on clean pictures (chance {100 / num_classes:.1f} %"
    )
    if "clean" not in same:
        return text + "). Without the clean control this says little: pass --source."
    lost = same["clean"]["final_mean"] - worst["final_mean"]
    text += f", clean training {same['clean']['final_mean']:.1f} %), {lost:.1f} points lost"
    random = [same[arm]["final_mean"] for arm in ("random-sample", "random-class") if arm in same]
    if random and min(random) < same["clean"]["final_mean"] - 0.5 * lost:
        text += "; random noise of the same budget does half of that, so this victim is too weak to judge by"
    return text + "."
