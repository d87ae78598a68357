"""A network in a file: weights and buffers as safetensors, and how to build it again."""

from pathlib import Path

import torch
from torch import nn

from fastue import models
from fastue.core.errors import DataError, UsageError
from fastue.data.tensorfile import read_tensors, write_tensors


def save(
    path: Path, model: nn.Module, *, arch: str, classes: list[str], channels: int, **notes
) -> str:
    """Write the network; `notes` (JSON) say where it comes from. Returns the file's sha256."""
    state = {
        "kind": "surrogate",
        "arch": arch,
        "classes": classes,
        "channels": channels,
        "notes": notes,
    }
    return write_tensors(path, dict(model.state_dict()), state)


def load(path: Path, *, arch: str | None = None, classes: int | None = None, channels: int = 3):
    """(network in eval mode on the CPU, what it is: arch, classes, channels, notes).

    A `.safetensors` of ours says itself what it is; for a plain state_dict saved by torch (read
    with weights_only=True) pass arch and the number of classes. Raises DataError for damaged or
    unfitting files.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors, about = read_tensors(path)
        if about.get("kind") != "surrogate":
            raise DataError(f"{path}: holds no network written by fastue")
    else:
        if arch is None or classes is None:
            raise UsageError(
                f"--surrogate {path}: a plain state_dict needs --arch to say which network it is of"
            )
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file") from error
        except Exception as error:  # torch raises whatever its unpickler met
            raise DataError(
                f"{path}: not a state_dict that torch.load(weights_only=True) reads ({error})"
            ) from error
        about = {
            "arch": arch,
            "classes": [str(k) for k in range(classes)],
            "channels": channels,
            "notes": {},
        }
    model = models.build(about["arch"], len(about["classes"]), about["channels"])
    try:
        # DistributedDataParallel puts "module." before each name.
        state = {name.removeprefix("module."): value for name, value in tensors.items()}
        model.load_state_dict(state)
    except (RuntimeError, AttributeError) as error:
        raise DataError(
            f"{path}: does not fit {about['arch']}: {str(error).splitlines()[0]}"
        ) from error
    return model.eval(), about
