"""The one place that imports ffcv: its loader as batches that keep what fastue promises.

FFCV 1.0.2 gathers and decodes pictures; that part is used as it is. Around it: the order is fastue's
own, batches keep their memory, threads end when the loop does, and torch's threads are left alone.
Crops and flips are not FFCV's, which ignore its seed, but `ops.apply_noise`'s.
"""

import contextlib
import functools
import importlib.util
import itertools
import math
import os
import queue
import weakref
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch

from fastue.core.errors import DataError, UsageError
from fastue.data.beton import Table, read_table
from fastue.data.beton import beton_blocks as beton_blocks
from fastue.data.beton import open_beton as open_beton
from fastue.data.beton import write_beton as write_beton
from fastue.data.dataset import Batch, epoch_order
from fastue.data.keyed import keyed_generator

_ORDERS = ("sequential", "random", "quasi_random")
_KEPT = 5  # batches' memory that is kept for more: as much as FFCV's ring
_MIXED = 1 << 29  # bytes of pages that quasi_random mixes, and at most twice that in memory


class FFCVLoader:
    """Batches of a .beton by FFCV: Batch(x uint8 [B,C,H,W] channels_last, y int64, index int64).

    path     pictures of one size, raw or JPEG. FFCV decodes JPEG by a fast, less exact method: its
             pixels are not those of open_beton, so noise made for the one does not fit the other
    batch    rows of a batch; the last of an epoch may be smaller
    order    "sequential"; "random", which is that of `epoch_order` in memory; "quasi_random" for
             files larger than memory: pages in random order, the rows of 512 MiB of them mixed
    seed     of the order, with `epoch`
    workers  threads that decode: 1 is enough for raw pictures; at most one a core
    device   where batches go

    An epoch has every row once. `epoch` says which one the next pass is; it is the caller's to set:

        for loader.epoch in range(30):
            for x, y, index in loader:
                inputs = ops.apply_noise(x, bank, index, scale=1 / 255, ids=index, seed=0,
                                         epoch=loader.epoch, pad=4, flip=True)

    With a store's int8 bank, and without ids, `inputs` is the protected picture that was written,
    in [0, 1]. `index` is the row in the file; `ids` and `classes` name rows and labels. Raises
    UsageError where ffcv is not installed and DataError for files that cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        batch: int,
        order: str = "sequential",
        *,
        seed: int = 0,
        workers: int = 1,
        device: torch.device | str = "cpu",
    ):
        if batch < 1 or workers < 1:
            raise UsageError(f"batch and workers must be at least 1, not {batch} and {workers}")
        if order not in _ORDERS:
            raise UsageError(f"order must be one of {', '.join(_ORDERS)}, not {order!r}")
        self._table: Table = read_table(path)
        self._table.shape()
        self._labels = torch.from_numpy(self._table.labels)
        self.batch, self.order, self.seed, self.device = batch, order, seed, torch.device(device)
        self.epoch = 0
        ffcv = _ffcv()
        from ffcv.fields.decoders import SimpleRGBImageDecoder
        from numba import config

        pipelines = dict.fromkeys(self._table.fields) | {
            self._table.picture: [SimpleRGBImageDecoder()]
        }
        self._loader = ffcv.Loader(
            os.fspath(path),
            batch_size=batch,
            num_workers=min(workers, config.NUMBA_NUM_THREADS),
            # Mapped and left to the system's cache; or pages read into memory of its own.
            os_cache=order != "quasi_random",
            drop_last=False,
            pipelines=pipelines,
        )
        graph = self._loader.graph
        memory = graph.allocate_memory(batch, 1)
        ((picture, one),) = memory["operation"].items()
        memory["operation"][picture] = _Memory(one.shape[1:])
        graph.allocate_memory = lambda *_: memory

    def __len__(self) -> int:
        """Batches of an epoch."""
        return -(-len(self._table) // self.batch)

    @property
    def ids(self) -> list[str]:
        width = max(5, len(str(len(self._table))))
        numbers = (f"{row:0{width}d}" for row in range(len(self._table)))
        return self._table.names.get("ids") or list(numbers)

    @property
    def classes(self) -> list[str]:
        numbers = map(str, range(int(self._table.labels.max()) + 1))
        return self._table.names.get("classes") or list(numbers)

    def _rows(self) -> np.ndarray:
        """Rows of the epoch in order, int64 [N]: a function of (N, seed, epoch), for "quasi_random"
        of where they lie in the file, too."""
        n = len(self._table)
        if self.order == "sequential":
            return np.arange(n)
        if self.order == "random":
            return epoch_order(n, self.seed, self.epoch).numpy()
        draw = keyed_generator(self.seed, "quasi_random", self.epoch)
        page = self._table.start // self._table.page
        place = draw.permutation(int(page.max()) + 1)[page]
        return np.lexsort((draw.random(n), place // max(1, _MIXED // self._table.page)))

    def __iter__(self) -> Iterator[Batch]:
        order = self._rows()
        self._loader.next_traversal_order = lambda: order
        epoch = iter(self._loader)
        try:
            for rows in torch.from_numpy(order).split(self.batch):
                pixels = torch.from_numpy(_next(epoch, self._table)[..., : self._table.channels])
                yield Batch(
                    pixels.contiguous().permute(0, 3, 1, 2).to(self.device),
                    self._labels.index_select(0, rows).to(self.device),
                    rows.to(self.device),
                )
        finally:
            _stop(epoch)


class _Memory:
    """What FFCV decodes batches into, in place of its ring, which later batches overwrite: memory
    of a batch that nobody holds any more, as new memory costs as much as half the decoding; or new.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._shape = shape
        self._free: list[memoryview] = []

    def __getitem__(self, slot: int) -> np.ndarray:
        """uint8 of the shape; every batch's tensor refers to it."""
        try:
            piece = self._free.pop()
        except IndexError:
            piece = np.empty(math.prod(self._shape), np.uint8).data
        # Not the array that is returned: numpy's views of a view refer to what lies under both.
        lent = np.frombuffer(piece, np.uint8)
        weakref.finalize(lent, self._back, piece).atexit = False
        return lent.reshape(self._shape)

    def _back(self, piece: memoryview) -> None:
        if len(self._free) < _KEPT:
            self._free.append(piece)


def _next(epoch, table: Table) -> np.ndarray:
    """The next pixels [B,H,W,3]. FFCV's own `next` waits for ever where its thread has failed."""
    while True:
        try:
            _, (pixels,) = epoch.output_queue.get(timeout=1)
            return pixels
        except queue.Empty:
            if not epoch.is_alive() and epoch.output_queue.empty():
                raise DataError(f"{table.path}: FFCV stopped; its error is above") from None


def _stop(epoch) -> None:
    """End an epoch's threads, wherever it is. FFCV leaves them waiting for somebody to take what
    they have made."""
    epoch.iter_ixes = iter(())
    epoch.terminate_event.set()
    while epoch.is_alive():
        with contextlib.suppress(queue.Empty):
            epoch.output_queue.get(timeout=0.01)
    epoch.close()
    epoch.closed = True
    readers = getattr(getattr(epoch.memory_context, "executor", None), "threads", ())
    for thread in itertools.chain((epoch,), readers):
        thread.join()


@functools.cache
def _ffcv() -> ModuleType:
    """ffcv, with torch's number of threads as before, and without two of its side effects."""
    if importlib.util.find_spec("ffcv") is None:
        raise UsageError(
            "ffcv is not installed: pip install 'fastue[ffcv]' with the pins of constraints.txt, "
            "after the system packages that docs/FFCV.md names"
        )
    threads = torch.get_num_threads()
    try:
        import ffcv
    except ImportError as error:
        raise UsageError(f"ffcv is installed and cannot be imported: {error}") from error
    finally:
        torch.set_num_threads(threads)
    import numba
    from ffcv.memory_managers.os_cache import OSCacheManager
    from ffcv.pipeline.compiler import Compiler

    def set_num_threads(n: int) -> None:
        """Of numba only: every epoch sets torch's, too, and from a thread, so that no caller could
        put it back in time."""
        Compiler.num_threads = n if n > 0 else numba.config.NUMBA_NUM_THREADS
        numba.set_num_threads(Compiler.num_threads)

    def compile_reader(self):
        """Typed when it is called. FFCV's own makes numba's one type of a byte array read-only for
        everybody; what had been compiled for that type cannot be found any more, and numba says so
        with a KeyError when it is thrown away."""

        def read(address, state):
            memory, starts, sizes = state
            return memory[address : address + sizes[np.searchsorted(starts, address)]]

        return Compiler.compile(read)

    Compiler.set_num_threads = set_num_threads
    OSCacheManager.compile_reader = compile_reader
    return ffcv
