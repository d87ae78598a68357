"""Train victims on the written files of a protected directory and report what they learn of clean pictures."""

import sys
from pathlib import Path

from fastue.cli.parse import names, positive, seeds
from fastue.cli.progress import Progress


def add_arguments(parser) -> None:
    parser.add_argument("directory", type=Path, help="what fastue protect wrote")
    parser.add_argument(
        "--clean",
        required=True,
        metavar="TEST",
        help="clean test pictures: folder, .npz, NAME:split",
    )
    parser.add_argument(
        "--source", help="the clean originals, for the controls (default: where protect read them)"
    )
    parser.add_argument(
        "--out", type=Path, help="where results.json and report.html go (default: DIRECTORY/attack)"
    )
    parser.add_argument("--suite", default="none", help="countermeasures: none")
    parser.add_argument(
        "--arch", type=names, default=["resnet18"], help="victims, separated by commas"
    )
    parser.add_argument(
        "--arms",
        type=names,
        help="some of clean,protected,random-sample,random-class (default: all)",
    )
    parser.add_argument("--epochs", type=positive, default=60, help="training epochs of a victim")
    parser.add_argument("--batch", type=positive, default=128, help="training batch")
    parser.add_argument(
        "--seeds", type=seeds, default=[0], help="one victim a seed, separated by commas"
    )
    parser.add_argument(
        "--size", type=positive, help="resize TEST and the originals as fastue protect --size did"
    )
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bf16"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    parser.add_argument(
        "--config", metavar="YAML", help="read flags from a file; the command line wins"
    )


def run(args) -> int:
    from fastue.commands import attack as audit
    from fastue.victims.train import VictimConfig

    progress = Progress("epochs")

    def show(row: dict) -> None:
        progress.close()
        print(
            f"{row['countermeasure']:<10} {row['arch']:<16} {row['arm']:<14} seed {row['seed']}: "
            f"{row['accuracy_final']:5.1f} % final, {row['accuracy_peak']:5.1f} % peak ({row['seconds']:.0f} s)",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    result = audit.attack(
        args.directory, clean=args.clean, source=args.source, out=args.out or args.directory / "attack",
        suite=args.suite, archs=args.arch, arms=args.arms, seeds=args.seeds, size=args.size, device=args.device,
        config=VictimConfig(epochs=args.epochs, batch=args.batch, precision=args.precision),
        progress=progress.update, on_row=show,
    )  # fmt: skip
    print(result.table)
    print(result.verdict)
    print("Written:", ", ".join(str(path) for path in result.files))
    return 0
