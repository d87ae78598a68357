"""Make a protected copy of a data set: noise within a budget so that models trained on it fail on clean data."""

import time
from pathlib import Path

from fastue.cli.parse import pixels, positive
from fastue.cli.progress import Progress


def add_arguments(parser) -> None:
    parser.add_argument(
        "source",
        help="folder of class sub-folders, .npz with x and y, torchvision:NAME:PATH, demo:train",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="a new directory, or one a killed run left"
    )
    parser.add_argument(
        "--method", default="emn", choices=("emn", "pue"), help="pue: emn under weight noise"
    )
    parser.add_argument(
        "--mode",
        default="sample",
        choices=("sample", "class"),
        help="one noise a picture or a class",
    )
    parser.add_argument(
        "--eps",
        type=pixels,
        default=8 / 255,
        metavar="8/255",
        help="L-inf budget in [0,1] pixel units",
    )
    parser.add_argument(
        "--arch", default="auto", help="surrogate; auto: resnet18 on a GPU, resnet10-w16 on a CPU"
    )
    parser.add_argument(
        "--recipe",
        default="paper",
        choices=("paper", "fast"),
        help="fast: 5 large noise steps for 20 small ones",
    )
    parser.add_argument(
        "--steps", type=positive, help="noise steps a sweep (default: the recipe's)"
    )
    parser.add_argument(
        "--step",
        type=pixels,
        metavar="0.8/255",
        help="size of a noise step (default: the recipe's)",
    )
    parser.add_argument("--max-sweeps", type=positive, default=100, help="give up after this many")
    weights = parser.add_argument_group(
        "pue", "noise on the weights of the surrogate (published values; costly)"
    )
    weights.add_argument(
        "--sigma", type=float, default=0.25, help="its standard deviation at the highest level"
    )
    weights.add_argument("--levels", type=positive, default=6, help="levels from 0 to sigma")
    weights.add_argument(
        "--train-draws", type=positive, default=100, help="noisy copies a level in a training step"
    )
    weights.add_argument(
        "--noise-draws", type=positive, default=10, help="noisy copies a level in a noise step"
    )
    parser.add_argument(
        "--size", type=positive, help="resize the shorter side to this and cut out the centre"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="CSV", help="`file,class` lines for an unsorted folder"
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out pictures that cannot be read, and list them",
    )
    parser.add_argument(
        "--compat", default="none", choices=("none", "emn2021"), help="repeat a public code's bug"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="auto", choices=("auto", "float32", "bf16"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 …")
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=30.0, help="time between snapshots"
    )
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile the surrogate (CUDA graphs on a GPU)"
    )
    parser.add_argument("--profile", action="store_true", help="print where the time went")
    parser.add_argument("--plan", action="store_true", help="print time, memory and disk, and stop")
    parser.add_argument(
        "--config", metavar="YAML", help="read flags from a file; the command line wins"
    )


def run(args) -> int:
    from fastue.commands.protect import COMPATS, protect
    from fastue.core.clock import Clock
    from fastue.core.errors import UsageError
    from fastue.data.preview import preview_of
    from fastue.data.sources import open_dataset
    from fastue.methods.emn import EMNConfig, recipe
    from fastue.methods.pue import PUEConfig
    from fastue.models.training import resolve_device, resolve_precision

    device = resolve_device(args.device)
    arch = (
        args.arch
        if args.arch != "auto"
        else ("resnet18" if device.type == "cuda" else "resnet10-w16")
    )
    chosen = recipe(args.recipe, args.mode, args.eps)
    common = {
        "mode": args.mode, "eps": args.eps, "steps": args.steps or chosen.get("steps"),
        "step": args.step or chosen.get("step"), "arch": arch, "seed": args.seed, "max_sweeps": args.max_sweeps,
        "precision": resolve_precision(args.precision, device), "compile": args.compile,
    }  # fmt: skip
    if args.method == "pue":
        config = PUEConfig(
            **common,
            sigma=args.sigma,
            levels=args.levels,
            train_draws=args.train_draws,
            noise_draws=args.noise_draws,
        )
    else:
        config = EMNConfig(**common)
    if args.labels and not args.labels.exists():
        raise UsageError(f"--labels {args.labels}: no such file")
    data = open_dataset(
        args.source,
        size=args.size,
        labels=args.labels,
        on_error="skip" if args.skip_bad else "stop",
    )
    for note in data.notes:
        print(f"note: {note}")
    print(f"{len(data)} pictures of {data.shape[1]}x{data.shape[2]}, {data.num_classes} classes; {args.method}, "
          f"surrogate {arch}, {config.mode}-wise, eps {config.eps * 255:g}/255, "
          f"{config.precision} on {device}", flush=True)  # fmt: skip
    if args.plan:
        from fastue.commands.plan import plan

        print(plan(data, config, device))
        return 0
    if args.compat != "none":
        print(f"warning: --compat {args.compat}: {COMPATS[args.compat]}. This is not a protection.")

    progress, clock = Progress("pictures"), Clock(device, running=args.profile)
    start = time.perf_counter()
    result = protect(
        data, args.out, config, device=device, compat=args.compat, size=args.size,
        checkpoint_seconds=args.checkpoint_seconds, clock=clock, progress=progress.update,
    )  # fmt: skip
    progress.close()
    if result is None:
        print(f"{args.out} already holds this result; nothing to do (fastue verify checks it)")
        return 0
    preview_of(args.out, data)
    last = result.history[-1]
    print(f"{last['sweep'] + 1} sweeps, surrogate error on the noisy pictures {100 * last['error']:.2f} %, "
          f"{time.perf_counter() - start:.0f} s")  # fmt: skip
    if args.profile:
        print(clock.text())
    if not result.converged:
        print(
            "warning: the surrogate had not learnt the noisy pictures when the sweeps ran out; try fastue attack"
        )
    print(
        f"Written: {args.out}/images (publish this), manifest.json, preview.png; keep noise/ to yourself"
    )
    return 0
