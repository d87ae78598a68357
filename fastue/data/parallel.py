"""Threads for decoding and encoding: Pillow and zlib release the interpreter lock meanwhile."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def map_blocks(work: Callable[[range], T], n: int, block: int = 64) -> Iterator[T]:
    """work(range) over consecutive blocks of n rows, results in row order.

    An exception (or Ctrl-C) cancels the blocks that have not started and is raised once the running
    ones are done.
    """
    ranges = [range(start, min(start + block, n)) for start in range(0, n, block)]
    workers = min(16, len(ranges), len(os.sched_getaffinity(0)) + 1)
    if workers <= 1:
        yield from map(work, ranges)
        return
    pool = ThreadPoolExecutor(workers)
    try:
        # Only so far ahead: results that nobody has taken yet are memory.
        ahead: deque = deque()
        for rows in ranges:
            ahead.append(pool.submit(work, rows))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
