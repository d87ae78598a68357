"""Make a protected copy of a data set: noise within a budget so that models trained on it fail on
clean data.
"""

import argparse
from pathlib import Path

from fastue import methods
from fastue.cli.parse import byte_count, reading_flags
from fastue.cli.progress import Progress
from fastue.methods.base import default_text


def add_arguments(parser) -> None:
    parser.add_argument(
        "source",
        help="folder of class sub-folders, .npz with x and y, .beton, torchvision:NAME:PATH, demo:train",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="a new directory, or one a killed run left"
    )
    summaries = "; ".join(f"{name}: {summary}" for name, summary in methods.METHODS.items())
    parser.add_argument("--method", default="emn", choices=tuple(methods.METHODS), help=summaries)
    _add_method_flags(parser)
    reading_flags(parser)
    parser.add_argument(
        "--full-size",
        action="store_true",
        help="write each picture at its own size, the noise made at --size and enlarged",
    )
    parser.add_argument(
        "--cache", type=Path, help="a folder to keep decoded pictures in, for the next run as well"
    )
    parser.add_argument(
        "--max-memory",
        type=byte_count,
        help="for pictures and noise beside the network, 2G or 500M: what needs more is kept in "
        "files (default: half of what is free)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=30.0, help="time between snapshots"
    )
    parser.add_argument(
        "--no-check", action="store_true", help="do not try the noise on a small victim"
    )
    parser.add_argument("--profile", action="store_true", help="print where the time went")
    parser.add_argument("--plan", action="store_true", help="print time, memory and disk, and stop")
    parser.add_argument(
        "--config", metavar="YAML", help="read flags from a file; the command line wins"
    )


def _add_method_flags(parser) -> None:
    """The settings of all methods as flags, grouped by whose they are; the text is read by the
    method's config.

    A flag that is not typed leaves no trace, so that each method keeps its own default.
    """
    owners: dict[str, dict] = {}
    for method in methods.METHODS:
        for setting in methods.flags(method):
            owners.setdefault(setting.name, {})[method] = setting
    groups: dict[tuple, argparse._ArgumentGroup] = {}
    for name, settings in sorted(owners.items(), key=lambda item: -len(item[1])):
        users = tuple(settings)
        if users not in groups:
            title = "every method" if len(users) == len(methods.METHODS) else ", ".join(users)
            groups[users] = parser.add_argument_group(title)
        setting = next(iter(settings.values()))
        default = default_text(setting)
        others = {user: default_text(own) for user, own in settings.items()}
        defaults = [default, *(f"{u}: {d}" for u, d in others.items() if d != default)]
        how = (
            {"action": "store_true"} if setting.default is False else {"metavar": _metavar(setting)}
        )
        groups[users].add_argument(
            "--" + name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=f"{setting.metadata['help']} (default: {'; '.join(defaults)})",
            **how,
        )


def _metavar(setting) -> str:
    choices = setting.metadata["choices"]
    return "{" + ",".join(choices) + "}" if choices else setting.name.upper().replace("_", "-")


def run(args) -> int:
    from fastue import distributed
    from fastue.commands.protect import protect
    from fastue.core.clock import Clock
    from fastue.models.training import resolve_device

    names = {setting.name for method in methods.METHODS for setting in methods.flags(method)}
    settings = {name: value for name, value in vars(args).items() if name in names}
    progress, clock = Progress("pictures"), Clock(resolve_device(args.device), running=args.profile)
    result = protect(
        args.source,
        args.out,
        args.method,
        device=args.device,
        check=not args.no_check,
        plan=args.plan,
        size=args.size,
        full_size=args.full_size,
        labels=args.labels,
        skip_bad=args.skip_bad,
        cache=args.cache,
        max_memory=args.max_memory,
        checkpoint_seconds=args.checkpoint_seconds,
        clock=clock,
        progress=progress.update,
        tell=lambda line: print(line, flush=True),
        **settings,
    )
    progress.close()
    if not distributed.first():  # under torchrun one speaks, and its exit code counts
        return 0
    if result.plan:
        print(result.plan.text())
        return 0
    noise, holds = result.perturbation, result.check.holds if result.check else True
    if noise is None:
        print(f"{args.out} already holds this result; nothing to do (fastue verify checks it)")
    else:
        print(f"{noise.summary}, {result.seconds:.0f} s")
        if args.profile:
            print(clock.text())
        if noise.warning:
            print(f"warning: {noise.warning}")
        print(
            f"Written: {args.out}/images (publish this), manifest.json, preview.png; "
            "keep noise/ to yourself"
        )
    if holds is None:
        print("warning: not checked, the small victim learns too little; try fastue attack")
    if holds is False:
        print(
            f"this does not protect: a small victim trained on the protected pictures reaches "
            f"{result.check.reached:.0f} %, {result.check.clean:.0f} % on clean ones "
            f"(chance {result.check.chance:.0f} %); do not publish them"
        )
    return 1 if holds is False else 0
