"""Pictures of a protection: clean, noise around grey, protected, difference x10."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastue.data import visibility
from fastue.data.atomic import atomic_write_bytes
from fastue.data.budget import Budget
from fastue.data.dataset import ImageDataset
from fastue.data.pictures import decode
from fastue.data.store import NoiseStore

COLUMNS = ("clean", "noise", "protected", "difference x10")
_GAP, _TITLE = 4, 18


def preview_grid(
    clean: Tensor,
    protected: Tensor,
    levels: int,
    cell: int = 128,
    caption: Sequence[str] = (),
) -> Image.Image:
    """A grid of clean, noise, protected and difference. clean and protected are uint8 [R,C,H,W].

    The noise is drawn around grey so that +-budget is white and black; the difference is
    |protected - clean| x 10.
    """
    noise = (128 + (protected.int() - clean.int()) * (127 / max(levels, 1))).clamp(0, 255)
    columns = [clean, noise, protected, difference(clean, protected)]
    return picture_grid(dict(zip(COLUMNS, columns, strict=True)), cell, caption)


def difference(one: Tensor, other: Tensor) -> Tensor:
    """|one - other| x 10 of uint8 pictures, at most 255, int32."""
    return ((other.int() - one.int()).abs() * 10).clamp(0, 255)


def picture_grid(
    columns: dict[str, Tensor], cell: int = 128, caption: Sequence[str] = ()
) -> Image.Image:
    """A labelled grid, one row a picture, and lines of text below. Columns are [R,C,H,W] of levels
    0 to 255, named; pixels that are enlarged stay sharp."""
    height, width = next(iter(columns.values())).shape[2:]
    rows = max(map(len, columns.values()))
    size = (max(1, cell * width // max(height, width)), max(1, cell * height // max(height, width)))
    width_all, bottom = len(columns) * (size[0] + _GAP) + _GAP, _TITLE + rows * (size[1] + _GAP)
    lines = [part for line in caption for part in _wrapped(line, width_all - 2 * _GAP)]
    grid = Image.new("RGB", (width_all, bottom + _TITLE * len(lines)), "white")
    draw = ImageDraw.Draw(grid)
    for number, line in enumerate(lines):
        draw.text((_GAP, bottom + _TITLE * number + 1), line, fill="black")
    for c, (name, column) in enumerate(columns.items()):
        left = _GAP + c * (size[0] + _GAP)
        draw.text((left, 3), name, fill="black")
        for r, picture in enumerate(column.to(torch.uint8)):
            array = picture.permute(1, 2, 0).cpu().numpy()
            array = array if array.shape[2] == 3 else array[:, :, 0]
            image = Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
            method = Image.Resampling.NEAREST if size[0] >= width else Image.Resampling.LANCZOS
            grid.paste(image.resize(size, method), (left, _TITLE + r * (size[1] + _GAP)))
    return grid


def one_of_each(labels: Tensor, count: int) -> list[int]:
    """The first row of each class, of at most `count` classes; labels int64 [N]."""
    labels = labels.cpu()
    return [int((labels == k).nonzero()[0]) for k in labels.unique()[:count]]


def _wrapped(line: str, width: int) -> list[str]:
    """The line in parts that are at most `width` pixels wide in the font of the drawing."""
    font, lines = ImageFont.load_default(), [""]
    for word in line.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def preview_of(
    directory: Path, originals: ImageDataset, rows: int = 8, caption: Sequence[str] = ()
) -> Path:
    """Write directory/preview.png: up to `rows` written pictures beside their originals.

    One of each class comes first. Below stand `caption` and how visible the change is.
    """
    manifest = NoiseStore.open(directory, checksums=False).manifest
    first = one_of_each(originals.labels, rows)
    chosen = (first + [i for i in range(len(originals)) if i not in set(first)])[:rows]
    files = [directory / manifest["pictures"]["files"][row] for row in chosen]
    size = manifest.get("size")  # where pictures are of their own sizes
    written = torch.from_numpy(np.stack([decode(file, size)[0] for file in files])).permute(
        0, 3, 1, 2
    )
    clean, levels = originals.take(torch.tensor(chosen)).cpu(), manifest["levels"]
    if Budget.of(manifest).norm != "linf":  # no bound on a single value: drawn to what is there
        levels = int((written.int() - clean.int()).abs().max())
    if "visibility" in manifest:
        caption = [visibility.text(manifest["visibility"]), *caption]
    buffer = io.BytesIO()
    preview_grid(clean, written, levels, caption=caption).save(buffer, "PNG")
    path = directory / "preview.png"
    atomic_write_bytes(path, buffer.getvalue())
    return path
