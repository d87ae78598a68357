"""Pictures of a report: the originals, what was written, and what a countermeasure makes of it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastue.data.atomic import atomic_write_bytes, make_folder
from fastue.data.dataset import ImageDataset
from fastue.data.preview import difference, one_of_each
from fastue.data.writers import encode_png

SHOWN, TREATED = 6, 3  # rows of a grid


def shown(
    originals: ImageDataset | None,
    protected: ImageDataset,
    treated: dict[str, Tensor] | None = None,
) -> dict[str, dict[str, Tensor]]:
    """The grids of a report: {title: {column: uint8 [R,C,H,W]}}, each row of another class while
    there are such. Clean, protected and the difference x10 ("" is its title; protected alone where
    there are no originals), then for each of `treated` what became of the protected pictures."""
    rows = _rows(protected)
    after = protected.take(rows).cpu()
    known = {} if originals is None else {"clean": originals.take(rows).cpu()}
    grids = {"": {**known, "protected": after}}
    if known:
        grids[""]["difference x10"] = _difference(known["clean"], after)
    for name, pictures in (treated or {}).items():
        what = "to clean x10" if known else "to protected x10"
        changed = _difference(known.get("clean", after), pictures)
        grid = {**known, "protected": after, name: pictures, what: changed}
        grids[f"After {name}"] = {column: each[:TREATED] for column, each in grid.items()}
    return grids


def keep(folder: Path, name: str, protected: ImageDataset, treated: ImageDataset) -> None:
    """Keep the shown pictures of `treated`, the protected ones after a countermeasure, side by side
    in folder/<name>.png; nothing where there are others, or none has changed."""
    if treated.ids != protected.ids or treated.shape != protected.shape:
        return
    rows = _rows(protected)
    before, after = protected.take(rows), treated.take(rows)
    if not torch.equal(before, after):
        strip = torch.cat(list(after.cpu()), dim=2).permute(1, 2, 0).contiguous().numpy()
        atomic_write_bytes(make_folder(folder) / f"{name}.png", encode_png(strip))


def kept(folder: Path, names: Collection[str], protected: ImageDataset) -> dict[str, Tensor]:
    """What `keep` left of these countermeasures, each uint8 [R,C,H,W]."""
    found = {}
    for name in names:
        if (path := folder / f"{name}.png").exists():
            channels, height, width = protected.shape
            strip = np.array(Image.open(path)).reshape(height, -1, width, channels)
            found[name] = torch.from_numpy(strip).permute(1, 3, 0, 2)
    return found


def _rows(data: ImageDataset) -> Tensor:
    return torch.tensor(one_of_each(data.labels, SHOWN))


def _difference(one: Tensor, other: Tensor) -> Tensor:
    return difference(one, other).to(torch.uint8)
