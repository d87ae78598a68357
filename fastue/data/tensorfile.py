"""One safetensors file with a JSON header of ours and a checksum, written atomically.

The library's own writer is not used: it keeps string metadata in an unordered map, so that the same
content can give different bytes, and it needs the whole file in memory once more.
"""

import hashlib
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastue.core.errors import DataError
from fastue.data.atomic import atomic_write

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BLOCK = 1 << 24


@dataclass(frozen=True)
class TensorFile:
    """What a header says: our JSON, and dtype name, shape and byte range of each tensor."""

    path: Path
    state: dict[str, Any]
    # begin and end count from the start of the file
    entries: dict[str, tuple[str, tuple[int, ...], int, int]]

    def read_rows(self, name: str, rows: np.ndarray, out: np.ndarray) -> None:
        """Rows (int64 [B]) of a tensor into `out` [B, ...] of its dtype, neighbours in one read.

        Read, not mapped: a map of a large file that is read here and there is memory.
        """
        _, shape, begin, _ = self.entries[name]
        size = out[:1].nbytes
        if out.shape[1:] != shape[1:] or not out.flags.c_contiguous:
            raise ValueError(f"rows of {shape[1:]} are read into {out.shape[1:]}")
        target = memoryview(out).cast("B") if size else None
        with self.path.open("rb", buffering=0) as file:
            for first, last in _stretches(rows):
                offset, wanted = begin + int(rows[first]) * size, target[first * size : last * size]
                while wanted:
                    if not (count := os.preadv(file.fileno(), [wanted], offset)):
                        raise DataError(f"{self.path}: damaged: cut short")
                    offset, wanted = offset + count, wanted[count:]


def _stretches(rows: np.ndarray) -> list[tuple[int, int]]:
    """(first, end) of the places of `rows` where one follows the other."""
    ends = np.flatnonzero(np.diff(rows) != 1) + 1
    return list(itertools.pairwise([0, *ends.tolist(), len(rows)])) if len(rows) else []


def write_tensors(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], state: dict[str, Any]
) -> str:
    """Write tensors (any layout, any device) and JSON-able `state`; returns the file's sha256.

    Equal values give equal bytes. Which 4-d tensors were channels_last is remembered, so that a
    resumed computation sees the same memory layout and takes the same kernels. Raises TypeError for
    state that is not JSON.
    """
    flat = {name: tensor.detach().cpu() for name, tensor in sorted(tensors.items())}
    last = [name for name, tensor in flat.items() if _is_channels_last(tensor)]
    flat = {name: tensor.contiguous() for name, tensor in flat.items()}
    body = hashlib.sha256()
    for tensor in flat.values():
        for block in _blocks(tensor):
            body.update(block)
    ours = json.dumps(
        {"channels_last": last, "sha256": body.hexdigest(), "state": state}, sort_keys=True
    )
    header: dict[str, Any] = {"__metadata__": {"fastue": ours}}
    offset = 0
    # The format wants no gaps; the order of the bytes is ours to choose and is by name.
    for name, tensor in flat.items():
        count = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + count],
        }
        offset += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    whole = hashlib.sha256()

    def fill(file: IO[bytes]) -> None:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            whole.update(part)
        for tensor in flat.values():
            for block in _blocks(tensor):
                file.write(block)
                whole.update(block)

    atomic_write(path, fill)
    return whole.hexdigest()


def read_header(path: str | os.PathLike[str]) -> TensorFile:
    """The header of a file of write_tensors, its size checked; DataError for anything else."""
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            count = int.from_bytes(file.read(8), "little")
            if not 2 <= count <= min(size - 8, 100_000_000):
                raise ValueError("no header")
            header = json.loads(file.read(count))
        ours = json.loads(header.pop("__metadata__")["fastue"])
        entries = {
            name: (
                entry["dtype"],
                tuple(int(n) for n in entry["shape"]),
                8 + count + int(entry["data_offsets"][0]),
                8 + count + int(entry["data_offsets"][1]),
            )
            for name, entry in header.items()
        }
        if max((entry[3] for entry in entries.values()), default=8 + count) != size:
            raise ValueError("cut short")
        return TensorFile(path, ours["state"], entries)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: damaged, or not written by fastue") from error


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors and the state of a file, the checksum verified. Raises DataError when damaged."""
    head = read_header(path)
    try:
        with safe_open(head.path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(head.entries)}
            ours = json.loads(file.metadata()["fastue"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DataError(f"{path}: damaged, or not written by fastue") from error
    body = hashlib.sha256()
    for tensor in tensors.values():
        for block in _blocks(tensor):
            body.update(block)
    if body.hexdigest() != ours["sha256"]:
        raise DataError(f"{path}: damaged: its contents do not match its checksum")
    for name in ours["channels_last"]:
        tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
    return tensors, head.state


def file_sha256(path: str | os.PathLike[str]) -> str:
    """sha256 (hex) of a file's bytes."""
    try:
        with Path(path).open("rb") as file:
            return _digest(file)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _blocks(tensor: Tensor) -> list[memoryview]:
    """The bytes of a contiguous CPU tensor, in pieces, without a copy."""
    flat = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
    return [flat[start : start + _BLOCK].data for start in range(0, flat.size, _BLOCK)]


def _is_channels_last(tensor: Tensor) -> bool:
    return (
        tensor.ndim == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )
