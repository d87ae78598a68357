"""fastue: make image data sets unlearnable, prove it, and try to break it.

    import fastue
    fastue.protect("pictures/train", "protected", mode="class")

Each name is loaded when it is first used; `import fastue` itself loads not even torch.
docs/API.md describes them all.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from fastue import ops
    from fastue.commands.attack import attack
    from fastue.commands.certify import certify
    from fastue.commands.convert import convert
    from fastue.commands.protect import protect
    from fastue.commands.verify import verify
    from fastue.data.protected import Protected
    from fastue.data.sources import open_dataset
    from fastue.matching import GradientTarget, gradient_match
    from fastue.methods.base import Perturbation
    from fastue.models.projection import KeyProjection
    from fastue.ops import use_backend

    def emn(images: Tensor, labels: Tensor, **settings: Any) -> Perturbation: ...
    def pue(images: Tensor, labels: Tensor, **settings: Any) -> Perturbation: ...
    def uge(images: Tensor, labels: Tensor, **settings: Any) -> Perturbation: ...
    def keyed(images: Tensor, labels: Tensor, **settings: Any) -> Perturbation: ...
    def lsp(images: Tensor, labels: Tensor, **settings: Any) -> Perturbation: ...


__version__ = "0.1.0"

__all__ = [
    "GradientTarget",
    "KeyProjection",
    "Protected",
    "__version__",
    "attack",
    "certify",
    "convert",
    "emn",
    "gradient_match",
    "keyed",
    "lsp",
    "open_dataset",
    "ops",
    "protect",
    "pue",
    "uge",
    "use_backend",
    "verify",
]

# The module that a name is taken from.
_HOMES = {
    "protect": "fastue.commands.protect",
    "verify": "fastue.commands.verify",
    "attack": "fastue.commands.attack",
    "certify": "fastue.commands.certify",
    "convert": "fastue.commands.convert",
    "open_dataset": "fastue.data.sources",
    "Protected": "fastue.data.protected",
    "KeyProjection": "fastue.models.projection",
    "use_backend": "fastue.ops",
    "GradientTarget": "fastue.matching",
    "gradient_match": "fastue.matching",
}
_METHODS = ("emn", "pue", "uge", "keyed", "lsp")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _METHODS:
        # fastue.methods.emn is the file of the method; the function of tensors is made from it.
        value = importlib.import_module("fastue.methods").in_memory(name)
    elif name == "ops":
        return importlib.import_module("fastue.ops")
    else:
        raise AttributeError(f"module 'fastue' has no attribute {name!r}")
    globals()[name] = value  # from now on found without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
