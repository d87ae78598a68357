"""An atomic snapshot of a running method: a kill leaves the old snapshot or the new one."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from fastue.core.errors import DataError
from fastue.data.atomic import make_folder, remove_stale, sync_folder, writing
from fastue.data.tensorfile import read_tensors, write_tensors

_NAME = "checkpoint.safetensors"


def save(folder: str | os.PathLike[str], tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Replace the snapshot in `folder` (made when absent) by these tensors and JSON-able state.

    The old snapshot is replaced by a rename once the new one is on the disk. Values, dtypes and
    channels_last layout come back exactly. Raises DataError when the disk is full; the old snapshot
    is then still there.
    """
    write_tensors(make_folder(folder) / _NAME, tensors, state)


def load(folder: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and state of the snapshot, or None; a killed save's leftover is removed.

    Raises DataError when the snapshot is damaged.
    """
    path = Path(folder) / _NAME
    remove_stale(folder, deep=False)
    if not path.exists():
        return None
    try:
        return read_tensors(path)
    except DataError as error:
        raise DataError(f"{error} Delete {path} to start again.") from error


def clear(folder: str | os.PathLike[str]) -> None:
    """Remove the snapshot, and the folder when nothing else is in it."""
    folder = Path(folder)
    if not folder.is_dir():
        return
    with writing(folder):
        (folder / _NAME).unlink(missing_ok=True)
        remove_stale(folder, deep=False)
        if any(folder.iterdir()):
            sync_folder(folder)
        else:
            folder.rmdir()
