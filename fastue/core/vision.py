"""The one place that imports torchvision.

torchvision's wheels are linked to CUDA libraries. Beside a CPU build of torch its library does not
load, and the import then fails because two of its operators have no schema. Declaring these
schemas, without any kernel, is enough: data sets, transforms and models work, and what needs the
library still raises torchvision's own error. Where torchvision is healthy nothing is declared.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

from fastue.core.errors import UsageError

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision(part: str = "") -> ModuleType:
    """torchvision, or torchvision.<part>. Raises UsageError when it is not installed."""
    return _load("torchvision", part)


def import_timm(part: str = "") -> ModuleType:
    """timm (which imports torchvision), or timm.<part>. Raises UsageError when it is not
    installed."""
    return _load("timm", part)


def _load(package: str, part: str) -> ModuleType:
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f"{package} is not installed: pip install 'fastue[vision]' with the pins of constraints.txt"
        )
    prepare()
    return importlib.import_module(f"{package}.{part}" if part else package)


def prepare() -> str:
    """Make `import torchvision` possible; says what was found: imported, absent, native or schemas
    only."""
    if "torchvision" in sys.modules:
        return "imported"
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return "absent"
    library = next(Path(spec.origin).parent.glob("_C*.so"), None)
    if library is not None:
        try:
            torch.ops.load_library(str(library))
            return "native"
        except OSError:
            pass
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", _SCHEMA)
    return "schemas only"
