"""Values on the command line."""

import argparse
from pathlib import Path


def names(text: str) -> list[str]:
    """`a,b,c` as a list without empty or repeated entries."""
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise argparse.ArgumentTypeError("the list is empty")
    return parts


def seeds(text: str) -> list[int]:
    """`0,1,2` as whole numbers of at least 0."""
    try:
        values = [int(part) for part in names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: seeds are whole numbers separated by commas"
        ) from None
    if min(values) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: seeds are at least 0")
    return values


def positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def numbers(text: str) -> tuple[float, ...]:
    """`0.5,0.9` as numbers."""
    try:
        return tuple(float(part) for part in names(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: numbers separated by commas") from None


def draw_range(text: str) -> range:
    """`0:5000` as a range of draws."""
    first, colon, last = text.partition(":")
    try:
        draws = range(int(first), int(last))
    except ValueError:
        draws = range(0)
    if not colon or not draws or draws.start < 0:
        raise argparse.ArgumentTypeError(
            f"{text!r}: write FIRST:LAST, such as 0:5000 for the first 5000 draws"
        )
    return draws


def byte_count(text: str) -> int:
    """`2G`, `500M` or a number of bytes; K, M, G and T are powers of 1024."""
    unit = "KMGT".find(text[-1:].upper()) + 1 if text else 0
    try:
        value = float(text[:-1] if unit else text) * 1024**unit
    except ValueError:
        value = 0
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; write 2G or 500M")
    return int(value)


def reading_flags(parser: argparse.ArgumentParser) -> None:
    """How a source is read: arguments of fastue.open_dataset."""
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
