"""Noise as the public EMN and PUE codes keep it: one float32 tensor [N or classes, C, H, W] in
[-eps, eps], in the order of the data set, by torch.save."""

import math
import pickle
from pathlib import Path

import torch

from fastue.core.errors import DataError
from fastue.data.atomic import atomic_write, make_folder
from fastue.data.folder import check_memory
from fastue.data.formats.noise import Noise, of_array
from fastue.data.store import NoiseStore


def write(path: Path, store: NoiseStore) -> None:
    check_memory(path, 5 * store.header["rows"] * math.prod(store.shape))
    make_folder(path.parent)
    noise = store.bank().float().div_(255)
    atomic_write(path, lambda file: torch.save(noise, file))


def read(path: Path) -> Noise:
    """Pickled code is not run: torch.load with weights_only."""
    try:
        noise = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: damaged, or no plain tensor: {reason}") from error
    if not isinstance(noise, torch.Tensor):
        raise DataError(f"{path}: holds a {type(noise).__name__}; one tensor is expected")
    if noise.is_floating_point():
        noise = noise.float()
    return of_array(path, noise.detach().numpy())
