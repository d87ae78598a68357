"""Errors a user can cause. Each names the file or argument and the fix; the command line turns them
into exit codes."""


class FastueError(Exception):
    """Base of all errors that are the input's fault, not the program's."""

    exit_code = 1


class UsageError(FastueError, ValueError):
    """A wrong or contradictory argument."""

    exit_code = 2


class DataError(FastueError, ValueError):
    """Pictures, labels or a written data set that cannot be used as they are."""

    exit_code = 3


class Interrupted(FastueError):
    """Stopped on request; the same command goes on."""

    exit_code = 4
