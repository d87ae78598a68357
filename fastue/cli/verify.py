"""Decode every written picture again: budget, ids, checksums, exact pixels."""

from pathlib import Path


def add_arguments(parser) -> None:
    parser.add_argument("directory", type=Path, help="what fastue protect wrote")
    parser.add_argument(
        "--source", help="the originals: then every pixel must be clip(original + noise, 0, 255)"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="CSV", help="`file,class` lines for an unsorted --source"
    )


def run(args) -> int:
    from fastue.commands.verify import verify

    result = verify(args.directory, args.source, args.labels)
    print(result.text())
    return 0 if result.ok else 1
