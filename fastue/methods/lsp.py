"""LSP: linearly separable perturbations (Yu et al., KDD 2022, arXiv 2111.00898), sample-wise and
class-wise.

The noise of other methods, given the labels of its pictures, is almost linearly separable: that is
what a victim learns in place of the pictures. So it may as well be drawn, without any network:

    corner_k in {-1, +1}^D    one for each class
    point_i = corner_k + 0.4 z_i,  z_i ~ N(0, I)    one for each picture i of class k
    noise_i = each of the D numbers repeated over a block of patch x patch pixels of a channel, put
    into the budget

The blocks are there because augmentation (crops, flips) destroys what changes from pixel to pixel.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastue import distributed
from fastue.core.errors import UsageError
from fastue.data.budget import NORMS
from fastue.methods.base import (
    ABOVE_0,
    Checkpointer,
    Config,
    Cost,
    Method,
    Perturbation,
    flag,
    lazy,
    length,
    silent,
    whole,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from fastue.data.dataset import ImageDataset
else:
    np, torch = lazy("numpy"), lazy("torch")

grains = lazy("fastue.ops._grain")
keyed = lazy("fastue.data.keyed")

PUBLISHED_L2 = 6 / 255 * (32 * 32 * 3) ** 0.5  # 1.304, of 32x32 colour pictures
SPREAD = 0.4  # standard deviation of a point around its corner, in half edges of the cube
_ROWS = 1024  # pictures that one generator serves


@dataclass(frozen=True)
class LSPConfig(Config):
    """`eps` left at None is 8/255 in linf, and the published length for 32x32 colour pictures in
    l2.
    """

    method = "lsp"

    norm: str = flag("linf", "what eps bounds: each value, or a picture's 2-norm", choices=NORMS)
    eps: float | None = flag(
        None, "budget in [0,1] pixel units", parse=length, shown="8/255, in l2 1.304"
    )
    patch: int = flag(8, "side of a block of equal noise, in pixels", parse=whole, check=ABOVE_0)

    def __post_init__(self) -> None:
        if self.eps is None:
            object.__setattr__(self, "eps", PUBLISHED_L2 if self.norm == "l2" else 8 / 255)
        super().__post_init__()

    @property
    def grain(self) -> int:
        """That of the noise as it is kept: in l2 the length of all pixels counts."""
        return self.patch if self.norm == "linf" else 1

    def text(self) -> str:
        return f"blocks of {self.patch}x{self.patch}, {super().text()}"


def lsp(
    data: ImageDataset,
    config: LSPConfig,
    *,
    checkpoint: Checkpointer | None = None,
    clock: Any = None,
    progress: Callable[[str, int, int, dict], None] = silent,
) -> Perturbation:
    """The noise for `data`, on the device `data` is on. It takes seconds: a killed run is simply
    repeated, but for shards that are there.
    """
    _, height, width = data.shape
    grid = grains.bank_shape(data.shape, config.patch)
    corners = _corners(data.num_classes, int(np.prod(grid)), config.seed)
    labels = data.labels.cpu().numpy()
    count = data.num_classes if config.mode == "class" else len(data)

    def drawn(rows: range) -> torch.Tensor:
        """Noise of these rows, which begin where a generator does: a value for each block, or in
        l2, whose length is that of all pixels, for each pixel."""
        points = corners[rows.start : rows.stop]
        if config.mode == "sample":
            points = _around(corners[labels[rows.start : rows.stop]], config.seed, rows.start)
        points = points.reshape(-1, *grid)
        if config.norm == "l2":
            for axis in (2, 3):
                points = points.repeat(config.patch, axis)
            points = points[:, :, :height, :width]
        return torch.from_numpy(_into_budget(points, config)).float()

    numbers = f"{corners.shape[1]} numbers a picture, blocks of {config.patch}x{config.patch}"
    shape = grains.bank_shape(data.shape, config.grain)
    about = {"norm": config.norm, "summary": numbers, "grain": config.grain}
    about["size"] = (height, width)
    bank: Any = None
    if checkpoint is not None and config.mode == "sample":
        bank = checkpoint.bank(count, shape, _ROWS)
    if bank is not None:
        rank, ranks = checkpoint.ranks
        for shard in range(rank, bank.shards, ranks):
            if bank.sweeps(shard) == 0:
                begin, end = bank.rows_of(shard).start, bank.rows_of(shard).stop
                blocks = [range(k, min(k + _ROWS, end)) for k in range(begin, end, _ROWS)]
                bank.store(shard, torch.cat([drawn(block) for block in blocks]), correct=0)
            progress("draw", shard + 1, bank.shards, {})
        bank.wait()
        distributed.barrier()
        bank.scan()
        return Perturbation(bank, config.mode, config.eps, **about)
    noise = torch.empty(count, *shape)
    for start in range(0, count, _ROWS):
        block = range(start, min(start + _ROWS, count))
        noise[start : block.stop] = drawn(block)
        progress("draw", block.stop, count, {})
    return Perturbation(noise.to(data.device), config.mode, config.eps, **about)


def _corners(classes: int, size: int, seed: int) -> np.ndarray:
    """A random corner of the cube {-1, 1}^size for each class, float64 [classes, size], no two the
    same.
    """
    generator = keyed.keyed_generator(seed, "lsp-corners")
    corners: dict[bytes, np.ndarray] = {}
    while len(corners) < classes:
        corner = generator.integers(0, 2, size) * 2.0 - 1.0
        corners.setdefault(corner.tobytes(), corner)
    return np.stack(list(corners.values()))


def _around(corners: np.ndarray, seed: int, first: int) -> np.ndarray:
    """A point near the corner of each picture from row `first` on, float64 [at most _ROWS, size];
    that of row i is a function of (seed, i, its corner).
    """
    generator = keyed.keyed_generator(seed, "lsp-points", first // _ROWS)
    return corners + SPREAD * generator.standard_normal(corners.shape)


def _into_budget(noise: np.ndarray, config: LSPConfig) -> np.ndarray:
    """[B,C,H,W] around -1 and 1, clipped at eps (linf) or scaled to the 2-norm eps (l2)."""
    if config.norm == "linf":
        return config.eps * noise.clip(-1, 1)
    lengths = np.sqrt(np.square(noise).sum((1, 2, 3), keepdims=True))
    return config.eps * noise / lengths


def plan(data: ImageDataset, config: LSPConfig, n: int) -> Cost:
    """Draws the noise of a few pictures."""
    few = data.subset(range(min(len(data), 256)))
    lsp(few.subset([0]), config)  # what is loaded at the first call
    start = time.perf_counter()
    lsp(few, config)
    rate = len(few) / (time.perf_counter() - start)
    if config.mode == "class":  # that was all of it
        return Cost({}, len(few) / rate)
    return Cost({"noise": rate}, n / rate)


def check(data: ImageDataset, config: LSPConfig) -> None:
    """Each class needs a corner of its own."""
    channels, height, width = data.shape
    blocks = channels * -(-height // config.patch) * -(-width // config.patch)
    if data.num_classes > 2**blocks:
        raise UsageError(
            f"--patch {config.patch}: {blocks} blocks do not tell {data.num_classes} classes "
            "apart; use a smaller one"
        )
    if config.patch > max(height, width):
        raise UsageError(f"--patch {config.patch}: the pictures are {height}x{width}")


METHOD = Method(LSPConfig, lsp, plan, check)
