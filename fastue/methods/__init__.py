"""The methods by name. A new one is a file here and a line in METHODS: see base.Method."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastue.core.errors import UsageError
from fastue.methods.base import Config, Method, Perturbation, default_text

if TYPE_CHECKING:
    from torch import Tensor

METHODS = {
    "emn": "error-minimizing noise (Huang et al. 2021)",
    "pue": "emn under weight noise, made for a certificate (Wang et al. 2025)",
    "uge": "pictures for one authorized network, by gradient matching (Ye and Wang 2024)",
    "keyed": "emn in few directions, which who has a key file takes out again (ours)",
    "lsp": "linearly separable noise, drawn without a network (Yu et al. 2022)",
}


def get(name: str) -> Method:
    """A method by its name. Raises UsageError for another name."""
    if name not in METHODS:
        raise UsageError(f"--method {name}: use one of {', '.join(METHODS)}")
    return importlib.import_module(f"{__name__}.{name}").METHOD


def configure(name: str, settings: dict[str, Any]) -> Config:
    """The method's config with these settings, values or text. Raises UsageError for settings that
    are not its own.
    """
    config = get(name).config
    own = _names(name)
    for setting in settings:
        if setting in own:
            continue
        flag = "--" + setting.replace("_", "-")
        if owners := [other for other in METHODS if setting in _names(other)]:
            raise UsageError(f"{flag} belongs to --method {' or '.join(owners)}, not to {name}")
        raise UsageError(f"{flag}: no setting of {name}; it takes {', '.join(sorted(own))}")
    return config(**settings)


def _names(name: str) -> set[str]:
    return {setting.name for setting in dataclasses.fields(get(name).config)}


def flags(name: str) -> list[dataclasses.Field]:
    """The settings of a method that are flags of `fastue protect`."""
    fields = dataclasses.fields(get(name).config)
    return [setting for setting in fields if setting.metadata.get("help")]


def flag_table(name: str) -> str:
    """The flags of a method as the table in its page under docs/."""
    lines = ["| flag | default | |", "|---|---|---|"]
    for setting in flags(name):
        about = setting.metadata
        values = f" ({', '.join(about['choices'])})" if about["choices"] else ""
        flag = "--" + setting.name.replace("_", "-")
        lines.append(f"| `{flag}` | {default_text(setting)} | {about['help']}{values} |")
    return "\n".join(lines)


def in_memory(name: str) -> Callable[..., Perturbation]:
    """The method as a function of tensors, for who has no folder: see the text it carries."""

    def make(
        images: Tensor, labels: Tensor, *, classes: list[str] | None = None, **settings
    ) -> Perturbation:
        from fastue.data.dataset import ImageDataset

        count = int(labels.max()) + 1 if len(labels) else 0
        names = classes or [str(k) for k in range(count)]
        rows = [str(row) for row in range(len(images))]
        data = ImageDataset(images, labels, rows, names, source=f"images of {name}()")
        config = configure(name, settings).on(data.device)
        get(name).check(data, config)
        return get(name).make(data, config)

    make.__name__ = make.__qualname__ = name
    make.__doc__ = f"""Noise for pictures in memory: {METHODS[name]}.

    images uint8 [N,C,H,W], labels int64 [N] from 0; `classes` names them. The noise is made on
    the device of `images`. `settings` are the flags of `fastue protect --method {name}` with
    underscores for hyphens: mode="class", eps=8/255, seed=1 … The protected pictures are what
    `.apply(images, labels)` of the result gives.
    """
    return make
