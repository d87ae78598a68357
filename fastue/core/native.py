"""The compiled libraries, loaded on the first call of an op that wants one. Nothing else touches them.

`fastue/_C*.so` defines the native ops and their CPU code; `fastue/_cuda*.so` adds the CUDA code to the
same ops. Neither holds a Python symbol. setup.py builds what it can and leaves `fastue/_build.json`,
which says of the rest why not.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

NAMESPACE = "fastue_native"
PACKAGE = Path(__file__).parent.parent
LIBRARIES = {"cpp": "_C", "cuda": "_cuda"}


def builds() -> dict[str, str]:
    """{"cpp" or "cuda": "built: how" or "not built: why, and the remedy"}, by the installation."""
    try:
        report = json.loads((PACKAGE / "_build.json").read_text())
    except FileNotFoundError:
        report = {}
    remedy = "pip install --no-build-isolation -e ."
    absent = {"built": False, "how": f"fastue was never installed from here; {remedy}"}
    states = {}
    for name in LIBRARIES:
        entry = report.get(name, absent)
        states[name] = f"{'built' if entry['built'] else 'not built'}: {entry['how']}"
    return states


def _load_library(name: str) -> str:
    """Load the C++ or the CUDA library; return why it cannot be used, "" when it can."""
    library = next(PACKAGE.glob(f"{LIBRARIES[name]}.*so"), None)
    if library is None:
        return f"not available: {builds()[name]}"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"not available: {error}"
    return ""


@cache
def _load(device: str) -> str:
    """Load the library for a device type; return why it cannot be used, "" when it can."""
    if device == "cpu":
        return _load_library("cpp")
    if torch.version.cuda is None:
        return "not available: this torch has no CUDA"
    return _load("cpu") or _load_library("cuda")


def op(name: str, device: str) -> Callable:
    """The native op of that name for a device type, or ImportError with the reason."""
    missing = _load(device)
    if missing:
        raise ImportError(missing)
    key = device.upper()
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{name}", key):
        why = (
            f"this CPU lacks what {name} needs"
            if device == "cpu"
            else f"{NAMESPACE}::{name} has no {key} kernel"
        )
        raise ImportError(f"not available: {why}")
    return getattr(getattr(torch.ops, NAMESPACE), name).default
