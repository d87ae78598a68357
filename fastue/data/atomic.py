"""Files that are either whole or absent.

A temporary file beside the target, write, fsync, rename, fsync the folder.
"""

import contextlib
import errno
import fcntl
import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from fastue.core.errors import DataError

_MARK = ".fastue-tmp"


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    """Replace `path` by `data`; with durable=False it is not forced to the disk (see sync_all)."""
    atomic_write(path, lambda file: file.write(data), durable=durable)


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace `path` by `text` in UTF-8."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Replace `path` by JSON with sorted keys and a fixed layout: equal values give equal bytes."""
    atomic_write_text(path, canonical_json(value) + "\n")


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, indented by one; NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)


def atomic_write(
    path: str | os.PathLike[str], fill: Callable[[IO[bytes]], object], *, durable: bool = True
) -> None:
    """Call fill(file) on a temporary file beside `path`, then rename it to `path`.

    A kill at any moment leaves the old file or the new one. A full disk, a missing permission or
    any other failure removes the temporary file; what the system reports becomes a DataError that
    says what to do.
    """
    path = Path(path)
    temporary = path.with_name(f"{_short(path.name)}.{os.getpid()}{_MARK}")
    try:
        with writing(path):
            try:
                with temporary.open("wb") as file:
                    fill(file)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
            if durable:
                sync_folder(path.parent)
    except FileNotFoundError as error:
        raise DataError(f"{path.parent}: no such folder to write to") from error


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path` to be filled, then made durable and renamed to `path`.

    A kill at any moment leaves no `path`; what a killed run left is removed by the next. Raises
    DataError where `path` exists and is not an empty folder.
    """
    path = Path(path)
    temporary = path.with_name(f"{_short(path.name)}{_MARK}")
    with writing(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            sync_all()
            try:
                os.rename(temporary, path)
            except OSError as error:
                if error.errno == errno.ENOTEMPTY:
                    raise DataError(f"{path}: exists already") from error
                raise
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write to `path` into a DataError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DataError(
                f"{path}: the disk is full. Free some space and run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise DataError(f"{path}: no permission to write here; choose another --out") from error
        if error.errno == errno.EFBIG:
            raise DataError(
                f"{path}: the file would be larger than this system allows (see ulimit -f)"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise DataError(f"{path}: a file stands where a folder is needed") from error
        raise


@contextlib.contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """One process at a time, the others wait; what holds the file `lock` ends with its process,
    however that ends. Nothing without a file."""
    if lock is None:
        yield
        return
    make_folder(lock.parent)
    with writing(lock):
        file = open(lock, "w")  # noqa: SIM115 - held open below
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made with its parents when absent."""
    path = Path(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def sync_folder(path: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all() -> None:
    """Make everything written so far durable: once after many files with durable=False."""
    os.sync()


def remove_stale(folder: str | os.PathLike[str], *, deep: bool = True) -> int:
    """Delete what a killed run left in `folder` (and below it); returns how many files."""
    folder = Path(folder)
    paths = folder.rglob(f"*{_MARK}") if deep else folder.glob(f"*{_MARK}")
    stale = [path for path in paths if path.is_file()]
    for path in stale:
        with writing(path):
            path.unlink(missing_ok=True)
    return len(stale)


def remove_stale_of(path: str | os.PathLike[str]) -> None:
    """Delete what killed writes of this one file left beside it."""
    path = Path(path)
    with writing(path):
        for left in path.parent.glob(f"{glob.escape(_short(path.name))}.*{_MARK}"):
            left.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Whether a file name is one of our temporary ones."""
    return name.endswith(_MARK)


def free_space_check(folder: str | os.PathLike[str], need: int) -> None:
    """Raise DataError unless the disk of `folder` has `need` bytes free.

    The folder need not exist yet: then the disk of its nearest parent.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if need > free:
        raise DataError(
            f"{folder}: about {_size(need)} are needed and {_size(free)} are free. "
            "Free some space or choose another --out."
        )


def _short(name: str) -> str:
    """Leave room for the suffix within the 255 bytes that a file name may have."""
    return name if len(name.encode()) < 200 else name.encode()[:200].decode(errors="ignore")


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
