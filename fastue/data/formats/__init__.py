"""Formats that are read and written, by name; one module each, loaded when it is used.

A module of pictures has `check(dataset)`, which raises DataError for what the format cannot hold,
`write(path, dataset)`, whole or not at all, `read(path, size=None)`, and where what comes back is
not what was given (ids become file names, rows are sorted) `stored(dataset)`, which is. A module of
noise has `write(path, store)` and `read(path) -> noise.Noise`. Imports no torch.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType

from fastue.core.errors import UsageError


@dataclass(frozen=True)
class Format:
    """One format. `suffixes` tells it by the name; the first is how it is written."""

    module: str
    suffixes: tuple[str, ...]
    summary: str
    noise: bool = False  # holds noise, not pictures

    def load(self) -> ModuleType:
        return importlib.import_module(f"{__name__}.{self.module}")


FORMATS = {
    "png": Format("png", (), "folder <class>/<name>.png"),
    "webp": Format("webp", (), "folder <class>/<name>.webp, lossless"),
    "csv": Format("table", (), "folder 00000.png, 00001.png … and labels.csv"),
    "npz": Format("npz", (".npz",), "arrays x, y, ids, classes"),
    "avatar": Format("avatar", (), ".npz with data and targets, as AVATAR reads it"),
    "beton": Format("beton", (".beton",), "FFCV's, raw pixels; ids and classes beside it"),
    "tar": Format("tar", (".tar",), "WebDataset; set-{00000..00007}.tar: 8 shards"),
    "parquet": Format("parquet", (".parquet",), "Hugging Face's image columns"),
    "pt": Format("pt", (".pt",), "noise float32 [N,C,H,W] in [-eps, eps], as EMN and PUE", True),
    "pkl": Format("pkl", (".pkl",), "noise int8 [N,C,H,W] in 1/255, as REM", True),
    "zst": Format("zst", (".safetensors.zst",), "noise int8, entropy-coded, with its ids", True),
}
_LOSSY = (".jpg", ".jpeg", ".jfif", ".avif", ".heic")


def of_name(name: str, to: str | None = None) -> str:
    """The format that a file or folder of this name has; `to` names it where the name does not.

    A name without a suffix of ours is a folder of PNG. Raises UsageError for formats that are
    unknown, lossy, or another than the name says.
    """
    low = name.lower()
    told = next((key for key, form in FORMATS.items() if low.endswith(form.suffixes)), None)
    if to is not None:
        if to not in FORMATS:
            raise UsageError(f"--to {to}: use one of {', '.join(FORMATS)}")
        if told not in (None, to) and not (told == "npz" and to == "avatar"):
            raise UsageError(f"{name}: named like {told}, and --to says {to}; rename it")
        return to
    if told is None and low.endswith(_LOSSY):
        raise UsageError(f"{name}: lossy formats weaken the noise and are not written; use png")
    if told is None and low.endswith(
        (".zip", ".gz", ".zst", ".tgz", ".npy", ".safetensors", ".pth")
    ):
        raise UsageError(f"{name}: no format of this name; use one of {', '.join(FORMATS)}")
    return told or "png"
