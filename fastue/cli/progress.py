"""Progress with rate and time left: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time


class Progress:
    """One line of work at a time; `update(name, done, total, info)` starts a new line when the name changes."""

    def __init__(self, unit: str, every: float = 10.0):
        self.unit, self.every = unit, every
        self.tty = sys.stderr.isatty()
        self.name, self.bar = "", None
        self.started = self.printed = time.monotonic()
        self.first = 0

    def update(self, name: str, done: int, total: int, info: dict) -> None:
        note = ", ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in info.items()
        )
        if self.tty:
            self._bar(name, done, total, note)
        else:
            self._line(name, done, total, note)

    def _bar(self, name: str, done: int, total: int, note: str) -> None:
        from tqdm import tqdm

        if name != self.name or self.bar is None or done < self.bar.n:
            self.close()
            self.name, self.bar = (
                name,
                tqdm(total=total, desc=name, unit=f" {self.unit}", dynamic_ncols=True),
            )
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(done - self.bar.n)
        if done >= total:
            self.close()

    def _line(self, name: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if name != self.name:
            self.name, self.started, self.first = name, now, done
        if now - self.printed < self.every:
            return
        self.printed = now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        speed = f" ({rate:.3g}/s, {(total - done) / rate:.0f} s left)" if rate > 0 else ""
        print(
            f"{name}: {done}/{total} {self.unit}{speed} {note}".rstrip(),
            file=sys.stderr,
            flush=True,
        )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.name, self.bar = "", None
