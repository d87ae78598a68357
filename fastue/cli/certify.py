"""Bound what noisy copies of a network, and of all networks near it, get right.

That is (q, eta)-learnability: docs/CERTIFY.md.
"""

import inspect
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from fastue.certificates.claim import (
    ARITHMETIC,
    BN_POLICIES,
    DRAWS,
    RULES,
    SCALES,
    Claim,
    Smoothing,
    Training,
)
from fastue.cli.parse import draw_range, names, numbers, positive
from fastue.cli.progress import Progress


def add_arguments(parser) -> None:
    flag = parser.add_argument
    flag("--surrogate", type=Path, help="the network: a file, or the directory protect wrote")
    flag("--train-on", type=Path, metavar="DIR", help="train one on what protect wrote, instead")
    flag("--clean", metavar="TEST", help="clean test pictures: folder, .npz, .beton, NAME:split")
    flag("--out", type=Path, help="a new directory, or one a killed run left")
    flag("--labels", type=Path, metavar="CSV", help="`file,class` lines for an unsorted TEST")
    flag("--size", type=positive, help="resize TEST as fastue protect --size did")
    _add_claim(parser.add_argument_group("claim", "written down before the first draw"))
    _add_draws(parser.add_argument_group("draws"))
    _add_training(parser.add_argument_group("training", "of the network for --train-on"))
    _add_attack(parser.add_argument_group("attack", "a lower bound beside the certificate"))
    flag("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    flag("--compile", action="store_true", help="torch.compile the network")
    flag(
        "--plan",
        action="store_true",
        help="print what N reaches, what eta needs, of a --surrogate the time, and stop",
    )
    flag("--resume", action="store_true", help="fail unless --out holds draws to go on with")
    flag("--config", metavar="YAML", help="read flags from a file; the command line wins")


def _add_claim(group) -> None:
    flag = group.add_argument
    flag("--sigma", type=float, default=Smoothing.sigma, help="std of the noise on each weight")
    flag(
        "--scale",
        default=Smoothing.scale,
        help=f"what sigma and eta are measured in: {', '.join(SCALES)}",
    )
    flag("--q", type=numbers, help="quantiles of noisy networks, with commas (default: 0.9)")
    flag("--eta", type=names, default=(), help="l2 radii, or 0.4s for 0.4 sigma; none: up to 1.2s")
    flag("--alpha", type=float, default=Claim.alpha, help="1 - confidence, of all q, eta together")
    flag("--pointwise", action="store_true", help="confidence for each (q, eta) by itself")
    flag("--rule", default=Claim.rule, help=f"when it holds: {', '.join(RULES)}")
    flag("--bn", default=Smoothing.bn, help=f"BatchNorm statistics: {', '.join(BN_POLICIES)}")
    flag(
        "--bn-data",
        metavar="DATA",
        help="pictures for them (default: some of TEST, which are not counted then)",
    )
    flag(
        "--arithmetic",
        default=Smoothing.arithmetic,
        help=f"of the network certified: {', '.join(ARITHMETIC)}",
    )
    flag(
        "--compat",
        default="none",
        choices=("none", "pue2025"),
        help="as published: rule fixed, raw scale, draws of --seed",
    )


def _add_draws(group) -> None:
    flag = group.add_argument
    flag("--N", type=positive, default=DRAWS, help="draws (rule fixed: declared beforehand)")
    flag(
        "--until",
        metavar="CLAIM",
        help='stop as soon as it is decided: "q=0.9,eta=0.4s <= 68%%"',
    )
    flag(
        "--batch",
        type=positive,
        help=f"pictures at a time (default: {Smoothing.batch} on a CPU, 1000 on a GPU)",
    )
    flag("--seed", type=int, help="of the draws, with --compat pue2025 only (default: 0)")
    flag(
        "--draws",
        type=draw_range,
        metavar="A:B",
        help="make only these of the N draws, for --merge later",
    )
    flag("--merge", type=Path, nargs="+", metavar="DIR", help="conclude from the draws in these")


def _add_training(group) -> None:
    flag = group.add_argument
    flag("--arch", default=Training.arch, help="network; also that of a plain state_dict")
    flag("--epochs", type=positive, default=Training.epochs, help="training epochs")
    flag("--train-seed", type=int, default=Training.seed, help="of its weights and batches")
    flag(
        "--precision",
        default=Training.precision,
        choices=("auto", "float32", "bf16"),
        help="of the arithmetic",
    )


def _add_attack(group) -> None:
    flag = group.add_argument
    flag("--attack", action="store_true", help="press against the certificate within each radius")
    flag(
        "--aux",
        metavar="DATA",
        help="also recover weights from these clean pictures; `oracle`: the test set",
    )


def run(args) -> int:
    from fastue import distributed
    from fastue.commands import certify as command
    from fastue.core.errors import UsageError

    if args.plan:
        print(_plan(args))
        return 0
    if args.out is None:
        raise UsageError("--out: name a directory for the draws and the certificate")
    if args.merge:
        return _show(command.merge(args.merge, args.out))
    if args.aux and not args.attack:
        raise UsageError("--aux: goes with --attack")
    if args.aux not in (None, "oracle"):  # what cannot be read is found out before the draws
        args.aux = command.clean_pictures(args.aux, size=args.size)
    progress, start = Progress("draws"), time.perf_counter()
    certified = command.certify(**_arguments(command.certify, args), progress=progress.update)
    progress.close()
    if certified is None:
        if distributed.place()[0] == 0:
            seconds = time.perf_counter() - start
            print(f"{args.out}: these draws are made ({seconds:.0f} s); join them with --merge")
        return 0
    _show(certified)
    if args.attack:
        steps = Progress("steps")
        found = command.attack(certified, **_arguments(command.attack, args), progress=steps.update)
        steps.close()
        print(found)
    return 0


def _arguments(function: Callable, args: Namespace) -> dict:
    """The flags that `function` takes: they are named as its arguments."""
    names = inspect.signature(function).parameters
    return {name: value for name, value in vars(args).items() if name in names}


def _plan(args) -> str:
    """The time needs a network and pictures; without them only the statistics are planned."""
    from fastue.commands import certify as command
    from fastue.models.training import resolve_device

    device = resolve_device(args.device)
    claim, smoothing, _ = command.claim_for(
        **_arguments(command.claim_for, args) | {"device": device}
    )
    if not (args.surrogate and args.clean):
        return command.plan(claim, smoothing, args.N)
    subject = command.prepare(
        surrogate=args.surrogate,
        clean=args.clean,
        labels=args.labels,
        size=args.size,
        training=Training(arch=args.arch),
        device=device,
    )
    return command.plan(claim, smoothing, args.N, subject)


def _show(certified) -> int:
    print(certified.table)
    print(certified.words)
    if certified.answer:
        print(certified.answer)
    print("Written:", ", ".join(str(path) for path in certified.files))
    return 0
