"""What a run will take, before it starts: the method says how long, the rest is arithmetic."""

import math

from fastue.data.dataset import ImageDataset
from fastue.methods.base import Config, Method, duration
from fastue.protocol.check import seconds as check_seconds


def plan(
    data: ImageDataset,
    method: Method,
    config: Config,
    *,
    check: bool = True,
    written: int | None = None,
) -> str:
    """Time, memory and disk of the method on `data` (on the device of `data`), as text. `written`
    is how many values a written picture has on average, where that is not as many as in `data`.
    """
    pixels = math.prod(data.shape)
    bank = (len(data) if config.mode == "sample" else data.num_classes) * pixels
    pictures = _bytes(len(data) * pixels)
    files = _bytes(len(data) * (written or pixels))
    seconds = method.plan(data, config) if method.plan else "not known before"
    if check:
        seconds += f"; {duration(check_seconds(data, config))} a check"
    return (
        f"time    {seconds}\n"
        f"memory  {pictures} pictures and {_bytes(4 * bank)} noise, besides a network\n"
        f"disk    up to {files} pictures, {_bytes(bank)} noise, {_bytes(8 * bank)} while it runs"
    )


def _bytes(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"
