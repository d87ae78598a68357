"""Train victims on the written files of a protected directory and report what they learn of clean
pictures."""

import inspect
import sys
from pathlib import Path

from fastue.cli.parse import names, positive, seeds
from fastue.cli.progress import Progress
from fastue.commands.attack import USUAL_ARCH, USUAL_EPOCHS, attack
from fastue.countermeasures import SUITES, SUMMARIES


def add_arguments(parser) -> None:
    default = {name: value.default for name, value in inspect.signature(attack).parameters.items()}
    add = parser.add_argument
    add("directory", type=Path, help="what fastue protect wrote")
    add(
        "--clean",
        required=True,
        metavar="TEST",
        help="clean test pictures: folder, .npz, .beton, NAME:split",
    )
    add(
        "--labels",
        type=Path,
        metavar="CSV",
        help="`file,class` lines where TEST is an unsorted folder",
    )
    add("--source", help="the clean originals, for the controls (default: where protect read them)")
    add(
        "--aux",
        metavar="AUX",
        help="clean pictures that the adversary has, for countermeasures that need them; "
        "`oracle`: TEST itself",
    )
    add(
        "--out", type=Path, help="where results.json and the reports go (default: DIRECTORY/attack)"
    )
    add("--suite", default=default["suite"], metavar="NAMES", help=_suite_help())
    add(
        "--authorized",
        type=Path,
        metavar="FILE",
        help="of --suite authorization: initial weights or a key (default: what protect wrote)",
    )
    add("--arch", type=names, default=default["arch"], help=_arch_help())
    add(
        "--arms",
        type=names,
        help="some of clean,protected,random-sample,random-class (default: these four), "
        "protected-25,protected-50,protected-75: that percentage protected, the rest clean",
    )
    add(
        "--epochs",
        type=positive,
        help="training epochs of a victim (default: "
        f"{USUAL_EPOCHS['cuda']} on a GPU, {USUAL_EPOCHS['cpu']} on a CPU)",
    )
    add("--batch", type=positive, default=default["batch"], help="training batch")
    add(
        "--seeds",
        type=seeds,
        default=",".join(map(str, default["seeds"])),
        help="one victim a seed, separated by commas",
    )
    add("--size", type=positive, help="resize TEST and the originals as fastue protect --size did")
    add("--precision", default=default["precision"], choices=("auto", "float32", "bf16"))
    add("--device", default=default["device"], help="auto, cpu, cuda, cuda:1 …")
    add("--config", metavar="YAML", help="read flags from a file; the command line wins")


def _arch_help() -> str:
    return (
        "victims, separated by commas; "
        f"auto: {USUAL_ARCH['cuda']} on a GPU, {USUAL_ARCH['cpu']} on a CPU"
    )


def _suite_help() -> str:
    suites = "; ".join(f"{name} = {','.join(SUITES[name])}" for name in SUITES if name != "none")
    meanings = "; ".join(f"{name}: {summary}" for name, summary in SUMMARIES.items())
    text = f"countermeasures, separated by commas. {meanings}. jpeg-30, dilution-25: another strength. {suites}"
    text += "; authorization: who is authorized (--method uge or keyed), beside hackers"
    return text.replace("%", "%%")  # argparse fills in what stands behind a single one


def run(args) -> int:
    progress = Progress("epochs")

    def show(row: dict) -> None:
        from fastue.protocol.summary import accuracy_stopped

        progress.close()
        print(
            f"{row['countermeasure']:<21} {row['arch']:<16} {row['arm']:<14} "
            f"seed {row['seed']}: {row['accuracy_final']:5.1f} % final, "
            f"{accuracy_stopped(row):5.1f} % at its best epoch ({row['seconds']:.0f} s)"
            + (", ORACLE" if row.get("aux") == "oracle" else ""),
            file=sys.stderr,
            flush=True,
        )

    parameters = set(inspect.signature(attack).parameters) & set(vars(args))
    options = {name: getattr(args, name) for name in parameters}
    result = attack(**options, progress=progress.update, on_row=show)
    print(result.verdict)
    print(result.table)
    print("Written:", ", ".join(str(path) for path in result.files))
    for failure in result.failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 3 if result.failures else 0
