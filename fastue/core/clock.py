"""Where the time of a run goes."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

T = TypeVar("T")


class Clock:
    """Seconds by name: `with clock("network"): ...`. A clock that is not `running` costs nothing
    and measures nothing.

    On a GPU a running clock waits for the device at both ends of a span, so a profiled run is
    slower than a plain one.
    """

    def __init__(self, device: torch.device | None = None, *, running: bool = False):
        self.device, self.running = device, running
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []  # lines for people, told below the times
        self.started = time.perf_counter()

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if not self.running:
            yield
            return
        self._wait()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def over(self, name: str, items: Iterable[T]) -> Iterator[T]:
        """The items, with the time it takes to get each one counted."""
        source = iter(items)
        while True:
            with self(name):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def text(self) -> str:
        """One line a name, largest first, and what is left over."""
        total = time.perf_counter() - self.started
        spans = sorted(self.seconds.items(), key=lambda span: -span[1])
        spans.append(("other", total - sum(self.seconds.values())))
        lines = [f"{name:<12} {spent:8.2f} s {100 * spent / total:5.1f} %" for name, spent in spans]
        return "\n".join(lines + self.notes)

    def _wait(self) -> None:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
