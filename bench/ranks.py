"""Do two ranks protect as well as one? `python -m bench.ranks TRAIN TEST --work FOLDER --mode class`.

The first pictures of each class of TRAIN are protected by one process and, under torchrun, by two,
with each noise seed once; victims learn the written pictures with crop and flip and are tested on
TEST. Each victim is a row of bench/results/ranks.csv; one that is there already is not trained
again, so a killed run goes on. The table shows the mean of the victims' best epochs with its
standard error, and of their last ones; how far apart noise seeds are is the scale for what ranks
change.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

import torch

from bench.ops import facts, write
from fastue.data.dataset import ImageDataset
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.verify import open_protected
from fastue.victims.train import VictimConfig, train_victim

RESULTS = Path(__file__).parent / "results" / "ranks.csv"
CELL = ("pictures", "mode", "flags", "ranks", "noise_seed", "victim", "epochs", "victim_seed")
FIELDS = (
    *CELL, "best", "final", "sweeps", "device", "threads", "torch", "fastue", "commit",
    "time",
)  # fmt: skip


def first_pictures(train: Path, work: Path, per_class: int) -> Path:
    """A folder with the first `per_class` files of each class folder of `train`."""
    made = work / f"train-{per_class}"
    for folder in sorted(entry for entry in train.iterdir() if entry.is_dir()):
        (made / folder.name).mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir())[:per_class]:
            shutil.copy(file, made / folder.name)
    return made


def protected(source: Path, out: Path, ranks: int, flags: list[str]) -> ImageDataset:
    """What `ranks` processes of a thread each write to `out`."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [sys.executable, *(torchrun if ranks > 1 else []), "-m", "fastue", "protect"]
    command += [str(source), "--out", str(out), "--no-check", *flags]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return open_protected(out)


def rows_there() -> list[dict]:
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def run(given: argparse.Namespace) -> None:
    source = first_pictures(given.train, given.work, given.per_class)
    clean, test = open_dataset(source), open_dataset(given.test)
    arms = [("clean", 0, "")]
    arms += [(given.mode, ranks, seed) for seed in range(given.noise_seeds) for ranks in (1, 2)]
    config = VictimConfig(arch=given.victim, epochs=given.epochs)
    for mode, ranks, noise_seed in arms:
        pictures, sweeps, flags = clean, "", given.flags if ranks else ""
        if ranks:
            out = given.work / "-".join(
                [mode, str(len(clean)), *flags.split(), f"{ranks}-{noise_seed}"]
            )
            typed = ["--mode", mode, "--seed", f"{noise_seed}", *flags.split()]
            pictures = protected(source, out, ranks, typed)
            sweeps = len(NoiseStore.open(out, shards=False).manifest["history"])
        for victim_seed in range(given.victim_seeds if ranks else 2 * given.victim_seeds):
            cell = dict(
                pictures=len(clean), mode=mode, flags=flags, ranks=ranks, noise_seed=noise_seed,
                victim=given.victim, epochs=given.epochs, victim_seed=victim_seed,
            )  # fmt: skip
            key = [str(value) for value in cell.values()]
            if any(key == [row[name] for name in CELL] for row in rows_there()):
                continue
            accuracy = train_victim(pictures, test, config, seed=1000 + victim_seed)["accuracy"]
            row = dict(
                **cell, best=f"{max(accuracy):.1f}", final=f"{accuracy[-1]:.1f}", sweeps=sweeps,
                **facts(torch.device("cpu")),
            )  # fmt: skip
            row = {name: row[name] for name in FIELDS}
            write([row], "ranks", FIELDS)
            print(*row.values(), flush=True)


def table() -> str:
    """Of each number of ranks the victims' mean best and last epoch, and of each noise seed the
    mean best one."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows_there():
        name = tuple(row[k] for k in ("pictures", "victim", "mode", "flags", "ranks"))
        groups.setdefault(name, []).append(row)
    lines = [
        "| pictures | victim | noise | flags | ranks | victims | best epoch | +- | last epoch "
        "| best epoch, each noise seed |",
        "|" + "---|" * 10,
    ]
    for name, rows in sorted(groups.items()):
        seeds: dict[str, list[float]] = {}
        for row in rows:
            seeds.setdefault(row["noise_seed"], []).append(float(row["best"]))
        best = [float(row["best"]) for row in rows]
        cells = (
            *name[:4],
            name[4] if name[2] != "clean" else "",
            str(len(rows)),
            f"**{mean(best):.1f}**",
            f"{stdev(best) / len(best) ** 0.5:.1f}" if len(best) > 1 else "",
            f"{mean(float(row['final']) for row in rows):.1f}",
            ", ".join(f"{mean(values):.1f}" for values in seeds.values()) if len(seeds) > 1 else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("train", nargs="?", type=Path, help="a folder with one folder a class")
    parser.add_argument("test", nargs="?", help="clean pictures of the same classes")
    parser.add_argument("--work", type=Path, help="a folder for what is protected")
    parser.add_argument("--mode", default="class", choices=("class", "sample"))
    parser.add_argument("--flags", default="", help="more flags of fastue protect")
    parser.add_argument("--per-class", type=int, default=200)
    parser.add_argument("--noise-seeds", type=int, default=3, help="how many")
    parser.add_argument("--victim-seeds", type=int, default=2, help="how many")
    parser.add_argument("--victim", default="resnet10-w8")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--table", action="store_true", help="only print the rows there are")
    given = parser.parse_args()
    if not given.table:
        if given.test is None or given.work is None:
            parser.error("name TRAIN, TEST and --work, or --table")
        run(given)
    print(table())


if __name__ == "__main__":
    main()
