"""Noise while it is being made, in shard files: for sets whose noise does not fit in memory, and for
several processes that share it.

BANK/00012.7.safetensors   float32 noise of shard 12 after 7 sweeps; no file is noise of 0

A shard is read, improved, written beside the old one, forced to the disk and renamed; then the old
one goes. The name says how far a shard is, and its header what the sweep counted, so the files are
the journal: there is no second record that could say something else.
"""

import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastue.core.errors import DataError
from fastue.data.atomic import make_folder, remove_stale, writing
from fastue.data.tensorfile import TensorFile, read_header, read_tensors, write_tensors

_NAME = re.compile(r"(\d{5})\.(\d+)\.safetensors")


class Bank:
    """Noise float32 [rows, C, h, w] in shards of `shard_rows`.

    `shape` is (C, h, w). Files that are there already are gone on with. Several processes may have
    one bank, as long as each writes shards of its own.
    """

    def __init__(self, folder: Path, rows: int, shape: tuple[int, int, int], shard_rows: int):
        self.folder, self.shape, self.shard_rows = make_folder(folder), shape, shard_rows
        self._rows = rows
        self._paths: dict[int, tuple[int, Path]] = {}
        self._headers: dict[int, tuple[int, TensorFile]] = {}
        self._writer = ThreadPoolExecutor(1)
        self._reader = ThreadPoolExecutor(1)
        self._writing: Future | None = None
        self._next: tuple[int, Future] | None = None
        self.scan()

    def __len__(self) -> int:
        return self._rows

    @property
    def shards(self) -> int:
        return -(-self._rows // self.shard_rows)

    def rows_of(self, shard: int) -> range:
        begin = shard * self.shard_rows
        return range(begin, min(begin + self.shard_rows, self._rows))

    def scan(self) -> None:
        """Look again at what is in the folder: other processes write there too."""
        self.wait()
        found: dict[int, tuple[int, Path]] = {}
        for entry in sorted(os.listdir(self.folder)):
            if match := _NAME.fullmatch(entry):
                shard, sweeps = int(match[1]), int(match[2])
                if sweeps > found.get(shard, (0, None))[0]:
                    found[shard] = sweeps, self.folder / entry
        self._paths = found

    def tidy(self) -> None:
        """Remove what a kill has left: temporary files, and shards that a newer one has replaced."""
        remove_stale(self.folder)
        self.scan()
        newest = {path for _, path in self._paths.values()}
        for path in self.folder.iterdir():
            if _NAME.fullmatch(path.name) and path not in newest:
                with writing(path):
                    path.unlink(missing_ok=True)

    def sweeps(self, shard: int) -> int:
        """How many sweeps a shard has been through."""
        return self._paths.get(shard, (0, None))[0]

    def correct(self, shard: int) -> int:
        """What its last sweep counted."""
        return read_header(self._paths[shard][1]).state["correct"] if shard in self._paths else 0

    def load(self, shard: int, then: int | None = None) -> Tensor:
        """Noise of a shard, float32 [rows of it, C, h, w] channels_last, checksum verified.

        `then` is the shard that will be asked for next: it is read in the meantime.
        """
        ready, self._next = self._next, None
        if ready is not None and ready[0] == shard:
            noise = ready[1].result()
        else:
            noise = self._read(shard)
        if then is not None:
            self._next = then, self._reader.submit(self._read, then)
        return noise

    def store(self, shard: int, noise: Tensor, correct: int) -> None:
        """Commit a shard after one more sweep, in the background; at most one is on its way.

        `noise` must not be changed afterwards. Raises DataError when the disk is full (perhaps at
        the next call, or in `wait`).
        """
        self.wait()
        self._writing = self._writer.submit(self._write, shard, noise, correct)

    def wait(self) -> None:
        """Until everything stored is on the disk."""
        done, self._writing = self._writing, None
        if done is not None:
            done.result()

    def rows(self, index: Tensor) -> Tensor:
        """Noise of these rows (int64 [B]) as last committed, float32 [B, C, h, w] channels_last."""
        self.wait()
        c, h, w = self.shape
        numbers = index.cpu().numpy()
        out = np.zeros((len(numbers), h, w, c), dtype=np.float32)
        shards = numbers // self.shard_rows
        for shard in np.unique(shards).tolist():
            if shard in self._paths:
                places = np.flatnonzero(shards == shard)
                found = np.empty((len(places), h, w, c), dtype=np.float32)
                rows = numbers[places] - shard * self.shard_rows
                self._header(shard).read_rows("noise", rows, found)
                out[places] = found
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def link(self, folder: Path) -> None:
        """Let `folder` hold today's files, too; they stay when this bank goes on."""
        self.wait()
        for path in make_folder(folder).iterdir():
            path.unlink()
        for _, path in self._paths.values():
            with writing(folder):
                os.link(path, folder / path.name)

    def at(self, folder: Path) -> "Bank":
        """The same bank in another folder."""
        return Bank(folder, self._rows, self.shape, self.shard_rows)

    def _read(self, shard: int) -> Tensor:
        c, h, w = self.shape
        if shard not in self._paths:
            noise = torch.zeros(len(self.rows_of(shard)), h, w, c)
        else:
            path = self._paths[shard][1]
            noise = read_tensors(path)[0]["noise"]
            if tuple(noise.shape) != (len(self.rows_of(shard)), h, w, c):
                raise DataError(f"{path}: belongs to another run; delete its folder")
        return noise.permute(0, 3, 1, 2)

    def _write(self, shard: int, noise: Tensor, correct: int) -> None:
        old = self._paths.get(shard)
        sweeps = (old[0] if old else 0) + 1
        path = self.folder / f"{shard:05d}.{sweeps}.safetensors"
        write_tensors(path, {"noise": noise.permute(0, 2, 3, 1)}, {"correct": correct})
        self._paths[shard] = sweeps, path
        if old:
            with writing(old[1]):
                old[1].unlink(missing_ok=True)

    def _header(self, shard: int) -> TensorFile:
        sweeps, path = self._paths[shard]
        if self._headers.get(shard, (0,))[0] != sweeps:
            self._headers[shard] = sweeps, read_header(path)
        return self._headers[shard][1]
