"""Bounds and answers that hold at every moment: look as often as you like, stop when it suits.

A count below the quantile at `level` has probability `level` or less. So had the k-th smallest of m
counts been below it, k or more of m trials would have succeeded; the e-process `log_e_value` of
such trials ever reaches 1/alpha with probability alpha at most (Ville), whatever the stopping rule.
The smallest k for which it would have reached it makes the k-th smallest an upper bound, at all m
together, so the least of them is one too. The draws are taken in the order of their numbers, and
one without a count is a count of `total` (for `Decision` as well), whatever the reason.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from fastue.certificates.bounds import (
    LOOK,
    check,
    checked_counts,
    local_level,
    log_e_value,
    order_index,
)
from fastue.core.errors import UsageError


class AnytimeBounds:
    """Upper bounds of the quantiles at `levels` of counts in [0, total].

    With probability 1-alpha none is ever below its quantile. Half of alpha goes to the e-processes,
    an equal part, `alpha_local`, to each of the distinct levels below 1. The other half goes to the
    order statistics of the first `LOOK` draws, as `certify` has them for a declared number: there
    most runs end, and these are lower. From 1 on a level abstains and costs nothing.
    """

    def __init__(self, levels: Sequence[float], total: int, alpha: float) -> None:
        self.total = total
        self._distinct = sorted({float(level) for level in levels if not level >= 1})
        check(level=self._distinct, total=total, alpha=alpha)
        self._row = [self._distinct.index(level) if not level >= 1 else None for level in levels]
        self.alpha_local = alpha / 2 / max(1, len(self._distinct))
        at_look = local_level(LOOK, tuple(self._distinct), alpha / 2)
        indices = [order_index(LOOK, level, at_look) or LOOK + 1 for level in self._distinct]
        self._allowed_at_look = LOOK - np.array(indices, np.int64)
        self._counts = np.empty(0, np.int64)  # those seen, and room
        self._allowed = np.empty((len(self._distinct), 1), np.int64)  # see `allowed_failures`
        self.draws = 0
        # Of each distinct level: its bound, how many of the counts are at least that, and (m, k).
        self._bound = np.full(len(self._distinct), total + 1)
        self._failures = np.zeros(len(self._distinct), np.int64)
        self._origin: list[tuple[int, int] | None] = [None] * len(self._distinct)

    def update(self, correct: ArrayLike) -> None:
        """Take the counts [n] of the next draws, in their order; any n, with the same result."""
        new = checked_counts(correct, self.total).astype(np.int64)
        start, self.draws = self.draws, self.draws + len(new)
        self._make_room()
        self._counts[start : self.draws] = new
        allowed = self._allowed[:, start + 1 : self.draws + 1]
        failures = np.cumsum(new >= self._bound[:, None], axis=1) + self._failures[:, None]
        if len(new):
            self._failures = failures[:, -1]
        for row in np.flatnonzero((failures <= allowed).any(axis=1)):
            self._lower(row, start, allowed[row])

    @property
    def bounds(self) -> list[int | None]:
        """In the order of `levels`; None abstains."""
        return [None if self._of(row) is None else int(self._bound[row]) for row in self._row]

    @property
    def origins(self) -> list[tuple[int, int] | None]:
        """(m, k) of each bound: the k-th smallest of the first m counts, the first m that gave it."""
        return [self._of(row) for row in self._row]

    def _of(self, row: int | None) -> tuple[int, int] | None:
        return None if row is None else self._origin[row]

    def _lower(self, row: int, start: int, allowed: np.ndarray) -> None:
        """Bring the bound down to the smallest that some prefix longer than `start` gives."""
        old, new = self._counts[:start], self._counts[start : self.draws]

        def holds(bound: int) -> np.ndarray:  # at each of those prefixes
            return np.count_nonzero(old > bound) + np.cumsum(new > bound) <= allowed

        low, high = 0, int(self._bound[row]) - 1
        while low < high:
            bound = (low + high) // 2
            low, high = (low, bound) if holds(bound).any() else (bound + 1, high)
        first = int(holds(low).argmax())
        m = start + 1 + first
        self._bound[row], self._origin[row] = low, (m, m - int(allowed[first]))
        self._failures[row] = np.count_nonzero(self._counts[: self.draws] >= low)

    def _make_room(self) -> None:
        if self.draws <= len(self._counts):
            return
        room = max(1024, 1 << (self.draws - 1).bit_length())
        self._counts = np.concatenate([self._counts, np.empty(room - len(self._counts), np.int64)])
        rows = [allowed_failures(room, level, self.alpha_local) for level in self._distinct]
        self._allowed = np.array(rows).reshape(len(rows), room + 1)
        at_look = self._allowed[:, LOOK]
        np.maximum(at_look, self._allowed_at_look, out=at_look)


@lru_cache(maxsize=64)
def allowed_failures(draws: int, level: float, alpha: float) -> np.ndarray:
    """int64 [draws + 1]: how many of m trials may fail that the others decide; -1 where none may.

    `m - allowed_failures[m]` is the index k of the order statistic that bounds the quantile.
    """
    # The successes that decide against f failures, for f = 0 ... 2^j. The last f has more failures
    # than `draws` trials may: to decide, more than `level` of them have to succeed.
    size = 1 << (math.ceil(draws * (1 - level)) + 2).bit_length()
    successes = np.full(size + 1, draws + 1)
    none = np.zeros(1, np.int64)
    successes[:1] = _fewest_successes(none, none + 1, none + draws + 1, level, alpha)
    step = size // 2
    while step:
        middle = np.arange(step, size, 2 * step)
        low, high = successes[middle - step], successes[middle + step]
        successes[middle] = _fewest_successes(middle, low, high, level, alpha)
        step //= 2
    # One more failure never takes back what m trials allow.
    needed = successes + np.arange(size + 1)
    return np.searchsorted(needed, np.arange(draws + 1), side="right") - 1


def _fewest_successes(
    failures: np.ndarray, low: np.ndarray, high: np.ndarray, level: float, alpha: float
) -> np.ndarray:
    """The least in [low, high] that decides against `failures`; `high` where none below does."""
    low, high = np.array(low), np.array(high)
    while len(open_ := np.flatnonzero(low < high)):
        at = (low[open_] + high[open_]) // 2
        enough = log_e_value(at, failures[open_], level) >= -math.log(alpha)
        low[open_] = np.where(enough, low[open_], at + 1)
        high[open_] = np.where(enough, at, high[open_])
    return low


class Decision:
    """Does the quantile at `level` of the counts stay at or below tau?

    `answer` is None, and then for good
      "yes"  P(count <= tau) is above `level`: with the level of `shifted_level` the
             (q, eta)-Learnability is at most tau. Wrong with probability alpha at most.
      "no"   P(count <= tau) is below `level`: no number of draws certifies tau at this (q, eta,
             sigma). Wrong with probability alpha at most. It does not say that a shift within eta
             gets beyond tau.
    Both at every moment. `draws` is how many it took, or has seen so far. tau, a count, is fixed
    beforehand.
    """

    def __init__(self, level: float, tau: int, alpha: float) -> None:
        check(level=level, alpha=alpha)
        self.level, self.tau, self.alpha = level, tau, alpha
        self.answer: str | None = None
        self.draws = self._successes = 0

    def update(self, correct: ArrayLike) -> str | None:
        """Take the counts [n] of the next draws, in their order; gives `answer`."""
        counts = np.asarray(correct)
        if counts.ndim != 1:
            raise UsageError(f"correct: one count a draw, not an array of shape {counts.shape}")
        if self.answer or not len(counts):
            return self.answer
        s = self._successes + np.cumsum(counts <= self.tau)
        m = self.draws + np.arange(1, len(counts) + 1)
        yes = log_e_value(s, m - s, self.level) >= -math.log(self.alpha)
        no = log_e_value(m - s, s, 1 - self.level) >= -math.log(self.alpha)
        last = int((yes | no).argmax()) if (yes | no).any() else len(counts) - 1
        self.draws, self._successes = int(m[last]), int(s[last])
        self.answer = "yes" if yes[last] else "no" if no[last] else None
        return self.answer
