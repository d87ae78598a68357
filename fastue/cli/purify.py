"""Purify protected pictures with a small diffusion model that is trained on clean pictures of one's
own."""

from pathlib import Path

from fastue.cli.parse import positive
from fastue.cli.progress import Progress

METHODS = {  # fastue.purifiers.sampling.SAMPLERS, which would load torch, and dvae
    "oneshot": "one call of the network at t = 60",
    "avatar": "once from t = 100, 10 steps",
    "jcdp": "4 times 20 steps from t = 20, guided by the protected picture",
    "dvae": "an autoencoder with little room, trained on the protected pictures alone",
}


NETS = ("small", "ddpm-cifar")  # of fastue.purifiers.training.CONFIGS
PERCEPTUAL = ("features", "lpips")


def add_arguments(parser) -> None:
    add = parser.add_argument
    add("source", help="a directory of fastue protect, or a folder of pictures in class folders")
    add("--with", dest="method", choices=tuple(METHODS), default="jcdp", help=_listed())
    add(
        "--aux",
        help="clean pictures, none of them in the source, to train on (not for dvae); "
        "oracle: the originals",
    )
    add("--out", type=Path, required=True, help="a new folder for the purified pictures")
    add("--steps", type=positive, help="steps of an iteration, where not the method's")
    add("--net", choices=NETS, default=NETS[0], help="ddpm-cifar: that of the literature")
    add("--train-steps", type=positive, help="of the network, where not its own number")
    add("--weights", type=Path, help="a published file that ddpm-cifar begins with")
    add("--perceptual", choices=PERCEPTUAL, default=PERCEPTUAL[0], help="how jcdp compares looks")
    add("--compat", choices=("jcdp2023",), help="the sampler released with JCDP to the letter")
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
        net=args.net,
        train_steps=args.train_steps,
        weights=args.weights,
        perceptual=args.perceptual,
        compat=args.compat,
        seed=args.seed,
        size=args.size,
        cache=args.cache,
        device=args.device,
        progress=lambda phase, done, total: progress.update(phase, done, total, {}),
    )
    progress.close()
    print(f"{result.path}: {result.pictures} pictures, {result.written} of them written now")
    print(f"some of them: {result.grid}")
    return 0
