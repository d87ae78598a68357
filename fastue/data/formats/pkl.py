"""Noise as the public REM code and its heirs keep it: a pickled numpy array int8 [N, C, H, W] in
1/255, in the order of the data set."""

import pickle
from pathlib import Path

import numpy as np

from fastue.core.errors import DataError
from fastue.data.atomic import atomic_write, make_folder
from fastue.data.folder import check_memory
from fastue.data.formats.noise import Noise, of_array
from fastue.data.store import NoiseStore

# What a pickle of an array names, by numpy 1 and numpy 2 and by each protocol; nothing else is
# looked up.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"names {module}.{name}, which is not looked up")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def write(path: Path, store: NoiseStore) -> None:
    check_memory(path, 2 * store.header["rows"] * int(np.prod(store.shape)))
    make_folder(path.parent)
    noise = store.bank().numpy()
    atomic_write(path, lambda file: pickle.dump(noise, file, protocol=4))


def read(path: Path) -> Noise:
    try:
        with path.open("rb") as file:
            noise = _Arrays(file).load()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # damage shows in as many kinds as a pickle has instructions
        raise DataError(f"{path}: damaged, or more than a numpy array: {error}") from error
    if not isinstance(noise, np.ndarray):
        raise DataError(f"{path}: holds a {type(noise).__name__}; one array is expected")
    return of_array(path, noise)
