"""A data set and its batches: x uint8 [B,C,H,W], y int64 [B], index int64 [B].

Pictures are uint8, stored [N,H,W,C] and seen as [N,C,H,W] (channels_last), in memory or in a file
that is mapped into it (data/cache.py), so that a batch is one gather of contiguous rows. `index` is
the row in the data set; noise and random draws are looked up by it.
"""

import hashlib
import json
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastue.core.errors import DataError, UsageError
from fastue.data.keyed import keyed_generator

_HASH_BLOCK = 1 << 24
_AROUND = 1 << 16
_KEPT = 1 << 26  # bytes of a file of pictures that stay in memory


class Batch(NamedTuple):
    x: Tensor  # uint8 [B, C, H, W], channels_last
    y: Tensor  # int64 [B]
    index: Tensor  # type: ignore[assignment]  # int64 [B], row in the data set; hides tuple.index


class Pages:
    """Pictures uint8 [N,H,W,C] in a file, mapped into memory; what has been read is given back to
    the system now and then, so that a walk through a large file does not fill the memory.

    `fingerprint` is that of the data set the file was written for; empty where nobody knows.
    """

    def __init__(self, path: Path, shape: Sequence[int], fingerprint: str = ""):
        self.path, self.fingerprint = path, fingerprint
        count = int(np.prod(shape, dtype=np.int64))
        with path.open("rb") as file:
            # Private, so that torch may have an array it could write to; nothing does.
            self._map = mmap.mmap(file.fileno(), count, access=mmap.ACCESS_COPY)
        pixels = torch.from_numpy(np.frombuffer(self._map, np.uint8, count))
        self.images = pixels.view(*shape).permute(0, 3, 1, 2)
        self._read = 0

    def used(self, count: int) -> None:
        """`count` bytes have been read."""
        self._read += count
        if self._read >= _KEPT:
            self._read = 0
            self._map.madvise(mmap.MADV_DONTNEED)


@dataclass
class ImageDataset:
    """Labelled pictures of one size.

    images uint8 [N,C,H,W] (made channels_last), labels int64 [N] in [0, len(classes)), ids unique
    strings (relative path or row), classes names. `source` says where it came from, `notes` what
    was converted, skipped or odd, `pages` the file that images are mapped from where they are not
    in memory, `root` the folder that the ids are picture files in. Raises DataError when these do
    not fit together.
    """

    images: Tensor
    labels: Tensor
    ids: list[str]
    classes: list[str]
    source: str = ""
    notes: list[str] = field(default_factory=list)
    pages: Pages | None = None
    root: Path | None = None

    def __post_init__(self) -> None:
        if self.pages is not None and self.images is not self.pages.images:
            self.pages = None  # a copy with other pictures
        name = self.source or "data set"
        dtype, shape = self.images.dtype, list(self.images.shape)
        if dtype != torch.uint8 or len(shape) != 4 or shape[1] not in (1, 3):
            raise DataError(
                f"{name}: pictures must be uint8 [N, 1 or 3, H, W], "
                f"not {str(dtype).removeprefix('torch.')} {shape}"
            )
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise DataError(f"{name}: labels must be int64 [N]")
        if not len(self.images) == len(self.labels) == len(self.ids):
            raise DataError(
                f"{name}: {len(self.images)} pictures, {len(self.labels)} labels and "
                f"{len(self.ids)} ids"
            )
        if len(self.labels):
            lowest, highest = int(self.labels.min()), int(self.labels.max())
            if lowest < 0 or highest >= len(self.classes):
                raise DataError(
                    f"{name}: labels run from {lowest} to {highest}, "
                    f"but there are {len(self.classes)} classes"
                )
        for what, names in (("ids", self.ids), ("class names", self.classes)):
            if len(set(names)) != len(names):
                raise DataError(f"{name}: {what} must be unique")
        if self.pages is None:
            self.images = self.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every picture."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    @property
    def device(self) -> torch.device:
        """Where batches are; pictures in a file come there one batch at a time."""
        return self.labels.device

    def to(self, device: torch.device | str) -> "ImageDataset":
        """The same data set with its batches on `device`."""
        images = self.images.to(device) if self.pages is None else self.images
        return replace(self, images=images, labels=self.labels.to(device))

    def take(self, index: Tensor) -> Tensor:
        """Pictures of the rows `index` (int64 [B]), uint8 [B,C,H,W] channels_last, on `device`."""
        rows = index.to(self.images.device)
        x = gather(self.images, rows)
        if self.pages is not None:
            # The system maps a neighbourhood of each page that is asked for.
            self.pages.used(max(x.numel(), len(rows) * _AROUND))
        return x.to(self.device)

    def rows_of(self, classes: Sequence[int]) -> Tensor:
        """Rows of the pictures of these classes, int64, in order, on the CPU."""
        wanted = torch.zeros(self.num_classes, dtype=torch.bool)
        wanted[list(classes)] = True
        return wanted[self.labels.cpu()].nonzero()[:, 0]

    def subset(self, rows: Sequence[int] | Tensor | np.ndarray) -> "ImageDataset":
        """These rows in this order; ids keep naming the same pictures, all classes stay."""
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.device)
        return replace(
            self,
            images=self.take(index),
            labels=self.labels.index_select(0, index),
            ids=[self.ids[row] for row in index.tolist()],
            notes=list(self.notes),
        )

    def fingerprint(self) -> str:
        """sha256 (hex) over ids, labels, classes, shape and pixels.

        Memory layout, device and source do not count.
        """
        if self.pages is not None and self.pages.fingerprint:
            return self.pages.fingerprint
        head = {
            "ids": self.ids,
            "labels": self.labels.tolist(),
            "classes": self.classes,
            "shape": list(self.images.shape),
        }
        digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        pixels = self.images.permute(0, 2, 3, 1).cpu().numpy().reshape(-1)
        for start in range(0, pixels.size, _HASH_BLOCK):
            digest.update(pixels[start : start + _HASH_BLOCK].data)
            if self.pages is not None:
                self.pages.used(_HASH_BLOCK)
        return digest.hexdigest()


def gather(images: Tensor, index: Tensor) -> Tensor:
    """Rows of channels_last [N,C,H,W] as channels_last [B,C,H,W]: one contiguous copy a picture."""
    return images.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def batches(
    dataset: ImageDataset, size: int, order: Tensor | np.ndarray | None = None
) -> Iterator[Batch]:
    """Batches of `size` rows (the last may be smaller), in `order` or in the data set's own."""
    if size < 1:
        raise UsageError(f"batch size must be at least 1, not {size}")
    if order is None:
        rows = torch.arange(len(dataset), device=dataset.device)
    else:
        rows = torch.as_tensor(order, dtype=torch.int64).to(dataset.device)
    for start in range(0, len(rows), size):
        index = rows[start : start + size]
        yield Batch(dataset.take(index), dataset.labels.index_select(0, index), index)


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of n rows, int64 [n]: a function of (n, seed, epoch), on every machine."""
    return torch.from_numpy(keyed_generator(seed, "order", epoch).permutation(n))
