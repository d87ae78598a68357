"""Write a data set in another format, or take the noise of a protected directory out of it and back
in."""

from pathlib import Path

from fastue.cli.parse import reading_flags
from fastue.data.formats import FORMATS


def add_arguments(parser) -> None:
    parser.add_argument(
        "source",
        help="pictures as for fastue protect, a directory it wrote, or a file of noise",
    )
    parser.add_argument("out", type=Path, help="a new file or folder; its name says the format")
    told = "; ".join(f"{name}: {kind.summary}" for name, kind in FORMATS.items())
    parser.add_argument("--to", choices=tuple(FORMATS), help=f"the format. {told}")
    parser.add_argument("--pictures", help="the originals that a file of noise belongs to")
    parser.add_argument("--mode", choices=("sample", "class"), help="of a file of noise")
    parser.add_argument("--eps", help="budget of a file of noise, such as 8/255")
    reading_flags(parser)


def run(args) -> int:
    from fastue.commands.convert import convert

    result = convert(
        args.source,
        args.out,
        args.to,
        pictures=args.pictures,
        mode=args.mode,
        eps=args.eps,
        size=args.size,
        labels=args.labels,
        skip_bad=args.skip_bad,
        tell=lambda line: print(line, flush=True),
    )
    share = 100 * result.bytes / max(result.plain, 1)
    print(
        f"{'Written' if result.written else 'There already'}: {result.path} ({result.format}), "
        f"{result.rows} rows, {result.bytes:,} bytes, {share:.1f} % of plain pixels"
    )
    return 0
