"""Bound what noisy copies of a network, and of all networks near it, get right: (q, eta)-learnability."""

import time
from pathlib import Path

from fastue.cli.parse import draw_range, numbers, positive
from fastue.cli.progress import Progress


def add_arguments(parser) -> None:
    parser.add_argument(
        "--surrogate", type=Path, help="the network: a file, or the directory fastue protect wrote"
    )
    parser.add_argument(
        "--train-on",
        type=Path,
        metavar="DIR",
        help="train one on what fastue protect wrote, instead",
    )
    parser.add_argument(
        "--clean", metavar="TEST", help="clean test pictures: folder, .npz, NAME:split"
    )
    parser.add_argument("--out", type=Path, help="a new directory, or one a killed run left")
    parser.add_argument(
        "--sigma", type=float, default=0.25, help="standard deviation of the noise on each weight"
    )
    parser.add_argument(
        "--q", type=numbers, default=(0.9,), help="quantiles of noisy networks, separated by commas"
    )
    parser.add_argument(
        "--eta", type=numbers, default=(), help="l2 radii (default: shares of sigma)"
    )
    parser.add_argument(
        "--N", type=positive, default=1000, dest="n", help="draws, declared before the first one"
    )
    parser.add_argument(
        "--alpha", type=float, default=0.01, help="1 - confidence, for all q and eta together"
    )
    parser.add_argument(
        "--pointwise", action="store_true", help="confidence for each (q, eta) by itself"
    )
    parser.add_argument(
        "--bn", default="stored", help="BatchNorm statistics: stored, frozen-noisy or reestimated"
    )
    parser.add_argument(
        "--arithmetic", default="fp32", help="of the network certified: fp32 or bf16-folded"
    )
    parser.add_argument(
        "--batch", type=positive, help="pictures at a time (default: 256 on a CPU, 1000 on a GPU)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument(
        "--draws",
        type=draw_range,
        metavar="A:B",
        help="make only these of the N draws, for --merge later",
    )
    parser.add_argument(
        "--merge",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="conclude from the draws in these, only",
    )
    parser.add_argument(
        "--recover", action="store_true", help="attack the network within the radii, show it beside"
    )
    parser.add_argument(
        "--aux",
        metavar="DATA",
        help="clean pictures the attack learns from; `oracle`: the test set",
    )
    parser.add_argument(
        "--compat",
        default="none",
        choices=("none", "pue2025"),
        help="attack on the sphere, as published",
    )
    parser.add_argument(
        "--arch", default="resnet18", help="network for --train-on and for a plain state_dict"
    )
    parser.add_argument(
        "--epochs", type=positive, default=60, help="training epochs for --train-on"
    )
    parser.add_argument(
        "--train-seed", type=int, default=0, help="of the network trained for --train-on"
    )
    parser.add_argument("--size", type=positive, help="resize TEST as fastue protect --size did")
    parser.add_argument(
        "--precision", default="auto", choices=("auto", "float32", "bf16"), help="for --train-on"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    parser.add_argument(
        "--plan",
        action="store_true",
        help="print what N reaches, what eta needs, of a --surrogate the time, and stop",
    )
    parser.add_argument(
        "--resume", action="store_true", help="fail unless --out holds draws to go on with"
    )
    parser.add_argument(
        "--config", metavar="YAML", help="read flags from a file; the command line wins"
    )


def run(args) -> int:
    from fastue import distributed
    from fastue.certificates.smoothing import Smoothing
    from fastue.commands import certify as certificate
    from fastue.core.errors import UsageError
    from fastue.models.training import resolve_device

    device = resolve_device(args.device)
    batch = args.batch or (1000 if device.type == "cuda" else 256)
    smoothing = Smoothing(args.sigma, args.seed, args.bn, args.arithmetic, batch)
    claim = certificate.Claim(args.n, args.q, args.eta, args.alpha, not args.pointwise)
    if args.plan and not (args.surrogate and args.clean):  # nothing to time
        print(certificate.plan(claim, smoothing))
        return 0
    if args.out is None and not args.plan:
        raise UsageError("--out: name a directory for the draws and the certificate")
    if args.merge:
        return _show(certificate.merged(args.merge, args.out))
    if bool(args.surrogate) == bool(args.train_on) or not args.clean:
        raise UsageError(
            "certify needs --clean TEST and either --surrogate FILE or --train-on DIR (or --merge)"
        )
    if args.resume and not args.plan and not (args.out / certificate.DECLARED).exists():
        raise UsageError(f"--resume: {args.out} holds no draws to go on with")
    if args.recover and not args.aux:
        raise UsageError(
            "--recover: name clean pictures to learn from with --aux, or --aux oracle for the test set"
        )
    progress = Progress("draws")
    model, known, data = certificate.prepare(
        surrogate=args.surrogate, train_on=args.train_on, clean=args.clean, out=args.out, arch=args.arch,
        epochs=args.epochs, seed=args.train_seed, size=args.size, precision=args.precision, device=device,
        progress=progress.update,
    )  # fmt: skip
    if args.plan:
        print(certificate.plan(claim, smoothing, model, data))
        return 0
    start = time.perf_counter()
    found = certificate.certify(
        model, known, data, args.out, smoothing, claim, part=args.draws, compile=args.compile,
        progress=progress.update,
    )  # fmt: skip
    progress.close()
    if found is None and distributed.place()[0]:
        return 0
    if found is None:
        print(
            f"{args.out}: these draws are made ({time.perf_counter() - start:.0f} s); join them with --merge"
        )
        return 0
    _show(found)
    if args.recover:
        print(certificate.recover(
            model, data, args.aux, found, args.out, compat=args.compat, size=args.size, progress=progress.update
        ))  # fmt: skip
    return 0


def _show(found) -> int:
    print(found.table)
    print(found.words)
    print("Written:", ", ".join(str(path) for path in found.files))
    return 0
