"""The compiled library, loaded on the first call of an op that wants it. Nothing else in fastue touches it.

`fastue._C` (always built where there is a compiler) defines the native ops and their CPU code. `fastue/_cuda*.so`
(built only where torch has CUDA) adds the CUDA code to the same ops and holds no Python symbol.
"""

import importlib
import pathlib
from collections.abc import Callable
from functools import cache

import torch

NAMESPACE = "fastue_native"


@cache
def _load(device: str) -> str:
    """Load the library for a device type; return why it cannot be used, "" when it can."""
    if device == "cpu":
        try:
            importlib.import_module("fastue._C")
        except ImportError as error:
            return f"not available: {error}"
        return ""
    missing = _load("cpu")
    if missing:
        return missing
    if torch.version.cuda is None:
        return "not available: this torch has no CUDA"
    library = next(pathlib.Path(__file__).parent.parent.glob("_cuda*.so"), None)
    if library is None:
        return "not available: fastue/_cuda was not built"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"not available: {error}"
    return ""


def op(name: str, device: str) -> Callable:
    """The native op of that name for a device type, or ImportError with the reason."""
    missing = _load(device)
    if missing:
        raise ImportError(missing)
    key = device.upper()
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key):
        why = f"this CPU lacks what {name} needs" if device == "cpu" else f"{NAMESPACE}::{name} has no {key} kernel"
        raise ImportError(f"not available: {why}")
    return getattr(getattr(torch.ops, NAMESPACE), name).default
