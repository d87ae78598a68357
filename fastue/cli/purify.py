"""Purify protected pictures with a small diffusion model that is trained on clean pictures of one's
own."""

from pathlib import Path

from fastue.cli.parse import positive
from fastue.cli.progress import Progress

METHODS = {  # of fastue.purifiers.sampling.SAMPLERS, which would load torch
    "oneshot": "one call of the network at t = 60",
    "avatar": "once from t = 100, 10 steps",
    "jcdp": "4 times 20 steps from t = 20, guided by the protected picture",
}


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("source", help="a directory of fastue protect, or a folder of pictures in class folders")
    add("--with", dest="method", choices=tuple(METHODS), default="jcdp", help=_listed())
    add("--aux", required=True, help="clean pictures, none of them in the source, to train on")
    add("--out", type=Path, required=True, help="a new folder for the purified pictures")
    add("--steps", type=positive, help="steps of an iteration, where not the method's")
    add("--seed", type=int, default=0, help="of the noise")
    add("--size", type=positive, help="resize the shorter side to this and cut out the centre")
    add("--cache", type=Path, help="for trained purifiers (default: `purifiers` beside --out)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")


def _listed() -> str:
    return "; ".join(f"{name}: {summary}" for name, summary in METHODS.items())


def run(args) -> int:
    from fastue.commands.purify import purify

    progress = Progress("done")
    result = purify(
        args.source,
        args.out,
        args.method,
        aux=args.aux,
        steps=args.steps,
        seed=args.seed,
        size=args.size,
        cache=args.cache,
        device=args.device,
        progress=lambda phase, done, total: progress.update(phase, done, total, {}),
    )
    progress.close()
    print(f"{result.path}: {result.pictures} pictures, {result.written} of them written now")
    return 0
