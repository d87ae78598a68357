"""Values on the command line."""

import argparse


def pixels(text: str) -> float:
    """A budget or step in [0,1] pixel units: `8/255` or `0.03`. A number above 1 without a unit is an error."""
    number, slash, unit = text.partition("/")
    try:
        value = float(number) / (float(unit) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number; write 8/255 or 0.03") from None
    if not 0 < value <= 1:
        fix = f"; did you mean {text}/255?" if value > 1 and not slash else ""
        raise argparse.ArgumentTypeError(
            f"{text!r} is not between 0 and 1 (pixel units of [0,1]){fix}"
        )
    return value


def names(text: str) -> list[str]:
    """`a,b,c` as a list without empty or repeated entries."""
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise argparse.ArgumentTypeError("the list is empty")
    return found


def seeds(text: str) -> list[int]:
    """`0,1,2` as whole numbers of at least 0."""
    try:
        found = [int(part) for part in names(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: seeds are whole numbers separated by commas"
        ) from None
    if min(found) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: seeds are at least 0")
    return found


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
        found = range(int(first), int(last))
    except ValueError:
        found = range(0)
    if not colon or not found or found.start < 0:
        raise argparse.ArgumentTypeError(
            f"{text!r}: write FIRST:LAST, such as 0:5000 for the first 5000 draws"
        )
    return found
