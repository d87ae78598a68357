"""The whole line on embedded pictures: protect, verify, train victims on the written files, show
the collapse.
"""

from pathlib import Path


def add_arguments(parser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo-run"), help="where everything goes")
    parser.add_argument("--seed", type=int, default=0)


def run(args) -> int:
    from fastue.cli import main

    out: Path = args.out
    protected, seed = f"{out}/protected", str(args.seed)
    steps = [
        (
            "Protecting 3,000 real 32x32 pictures (crops of ten photographs), one noise a class",
            [
                "protect",
                "demo:train",
                "--out",
                protected,
                "--mode",
                "class",
                "--arch",
                "cnn",
                "--seed",
                seed,
            ],
        ),
        ("Checking every written file", ["verify", protected, "--source", "demo:train"]),
        (
            "Training victims on the written files, on the originals and on random noise",
            [
                "attack",
                protected,
                "--clean",
                "demo:test",
                "--arch",
                "cnn",
                "--epochs",
                "12",
                "--seeds",
                seed,
            ],
        ),
    ]
    for title, command in steps:
        print(f"\n== {title}\n$ fastue {' '.join(command)}", flush=True)
        if code := main(command):
            return code
    print(f"\nLook at {out}/protected/preview.png and {out}/protected/attack/report.html")
    return 0
