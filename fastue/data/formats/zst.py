"""Noise to send: a safetensors file of int8 noise at its grain, with the ids it belongs to, in one
zstd frame. `zstd -d` gives a file that every safetensors reader opens."""

import json
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastue.core.errors import DataError, UsageError
from fastue.data.atomic import atomic_write, make_folder
from fastue.data.formats.noise import Noise
from fastue.data.store import NoiseStore
from fastue.ops._grain import bank_shape

_LEVEL = 9  # by a trial on sign-like noise: behind it the files hardly shrink any more
_MOST = 1 << 31  # bytes of a header that are believed


def write(path: Path, store: NoiseStore) -> None:
    """A shard at a time; equal noise gives equal bytes."""
    zstandard, header = _zstandard(), store.header
    about = {
        "per": header["per"],
        "names": header["ids"] if header["per"] == "sample" else header["classes"],
        "shape": header["shape"],
        "grain": store.grain,
        "change": store.change,
    }
    count = header["rows"] * int(np.prod(store.stored))
    entry = {"dtype": "I8", "shape": [header["rows"], *store.stored], "data_offsets": [0, count]}
    text = json.dumps({"__metadata__": {"fastue": json.dumps(about)}, "noise": entry}).encode()
    text += b" " * (-len(text) % 8)

    def fill(file: IO[bytes]) -> None:
        packer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        with packer.stream_writer(file, closefd=False) as packed:
            packed.write(len(text).to_bytes(8, "little") + text)
            for shard in range(store.shard_count):
                packed.write(store.coarse(shard).data)

    make_folder(path.parent)
    atomic_write(path, fill)


def read(path: Path) -> Noise:
    zstandard = _zstandard()
    try:
        with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as unpacked:
            length = int.from_bytes(_exactly(unpacked, 8), "little")
            if length > _MOST:
                raise ValueError("its header is too long")
            header = json.loads(_exactly(unpacked, length))
            about: dict[str, Any] = json.loads(header["__metadata__"]["fastue"])
            entry = header["noise"]
            rows, shape, grain = entry["shape"][0], tuple(about["shape"]), int(about["grain"])
            stored = bank_shape(shape, grain)
            if entry["dtype"] != "I8" or tuple(entry["shape"][1:]) != stored:
                raise ValueError("its entries do not fit together")
            data = bytearray(_exactly(unpacked, rows * int(np.prod(stored))))
            if unpacked.read(1):
                raise ValueError("it goes on behind its end")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError, zstandard.ZstdError) as error:
        raise DataError(f"{path}: damaged, or not written by fastue: {error}") from error
    levels = np.frombuffer(data, np.int8).reshape(rows, *stored)
    return Noise(levels, shape, grain, about["per"], about["names"], about["change"])


def _exactly(file, count: int) -> bytes:
    parts = []
    while count:
        part = file.read(min(count, 1 << 24))
        if not part:
            raise ValueError("cut short")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _zstandard():
    try:
        return import_module("zstandard")
    except ImportError as error:
        raise UsageError('.zst takes zstandard: pip install "fastue[convert]"') from error
