"""A run that is asked to stop (SIGTERM, Ctrl-C) does so where its state is whole."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from fastue.core.errors import Interrupted

_asked = False


def requested() -> bool:
    """Whether somebody has asked."""
    return _asked


def leave() -> None:
    """Raise Interrupted: what is on the disk is enough to go on from."""
    raise Interrupted("interrupted; the same command goes on from here")


@contextlib.contextmanager
def gracefully() -> Iterator[None]:
    """Inside, the first SIGTERM or Ctrl-C only asks (see `requested`); the second Ctrl-C is one.

    Elsewhere than in the main thread nothing changes: Python tells signals to that one alone.
    """
    global _asked

    def ask(number: int, frame: object) -> None:
        global _asked
        if _asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        _asked = True
        print("\nfastue: stopping where it can go on from; Ctrl-C to stop now", file=sys.stderr)  # noqa: T201

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        yield
        return
    try:
        yield
    except RuntimeError:  # of another rank that has left before
        if _asked:
            leave()
        raise
    finally:
        _asked = False
        for number, handler in before.items():
            signal.signal(number, handler)
