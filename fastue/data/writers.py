"""Writers of protected pictures: clip(x + noise, 0, 255) as PNG files or as one .npz, nothing
lossy.
"""

import hashlib
import io
import os
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastue.core.errors import DataError
from fastue.data.atomic import atomic_write, atomic_write_bytes, make_folder, sync_all, writing
from fastue.data.dataset import ImageDataset, batches
from fastue.data.fullsize import enlarge, files_of, original
from fastue.data.parallel import map_blocks
from fastue.data.pictures import EXTENSIONS, PictureError, decode
from fastue.data.store import WrittenPictures, is_inside

_BLOCK = 128


def protected_pictures(
    images: Tensor, noise: Tensor, rows: Tensor, *, change: str = "additive"
) -> Tensor:
    """clip(x + noise[rows], 0, 255): images uint8 [B,C,H,W], noise int8 [M,C,H,W] in 1/255, rows
    int64 [B] -> uint8.

    change is one of fastue.data.budget.CHANGES: with "positive", negative noise becomes 0.
    The result is channels_last, on the device of `images`. The arithmetic is numpy's on the host:
    it runs in the writers' threads, where torch's own threads would wait for each other.
    """
    x = images.permute(0, 2, 3, 1).cpu().numpy()
    bank, index = noise.permute(0, 2, 3, 1).cpu().numpy(), rows.cpu().numpy()
    out = np.empty(x.shape, dtype=np.uint8)
    step = 1024  # the int16 sum of a whole data set would be twice its size
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        total = bank[index[part]].astype(np.int16)
        if change == "positive":
            np.maximum(total, 0, out=total)
        total += x[part]
        out[part] = np.clip(total, 0, 255, out=total)
    return torch.from_numpy(out).permute(0, 3, 1, 2).to(images.device)


def protected_original(pixels: np.ndarray, noise: Tensor, *, change: str) -> np.ndarray:
    """The same for one picture at its own size, uint8 [H,W,C], with the noise of its view, int8
    [C,S,S].
    """
    own = torch.from_numpy(enlarge(noise.numpy(), *pixels.shape[:2]))[None]
    x, only = torch.from_numpy(pixels).permute(2, 0, 1)[None], torch.zeros(1, dtype=torch.int64)
    return protected_pictures(x, own, only, change=change)[0].permute(1, 2, 0).numpy()


def write_folder(
    folder: str | os.PathLike[str],
    dataset: ImageDataset,
    noise: Callable[[Tensor], Tensor],
    *,
    change: str = "additive",
    full_size: bool = False,
    part: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> WrittenPictures:
    """Write every picture of `dataset` with its noise as folder/<class>/<name>.png, by threads.

    noise(index) gives that of the rows `index` (int64 [B]) of the data set, int8 [B,C,H,W] in
    1/255, as NoiseStore.rows does. Of `part` = (k, n) processes each writes its share of the
    pictures, and has 0 for the hashes of the others. With `full_size` each picture is decoded again
    and written at its own size, its noise enlarged (data/fullsize.py). A file that already holds
    the right pixels is left alone, so a killed run can be repeated. All is on the disk when this
    returns. Raises DataError when a class name cannot be a folder name or the disk is full, and
    with `full_size` when a picture has changed since it was read.
    """
    folder = Path(folder)
    root = files_of(dataset) if full_size else None
    names, notes = picture_names(dataset)
    for parent in sorted({os.path.dirname(name) for name in names}):
        make_folder(folder / parent)
    hashes = np.zeros((len(dataset), 32), dtype=np.uint8)
    own = range(part[0] * _BLOCK, len(dataset), part[1] * _BLOCK)  # where its blocks begin

    def work(blocks: range) -> int:
        (block,) = blocks
        index = torch.arange(own[block], min(own[block] + _BLOCK, len(dataset)))
        pictures, bank = dataset.take(index.to(dataset.device)).cpu(), noise(index)
        if root is None:
            pictures = protected_pictures(pictures, bank, torch.arange(len(index)), change=change)
        for place, row in enumerate(index.tolist()):
            picture = pictures[place].permute(1, 2, 0).numpy()
            if root is not None:
                picture = original(root / dataset.ids[row], picture)
                picture = protected_original(picture, bank[place], change=change)
            hashes[row] = pixel_hash(picture)
            if not _holds(folder / names[row], picture):
                atomic_write_bytes(folder / names[row], encode_png(picture), durable=False)
        return len(index)

    done, total = 0, sum(min(_BLOCK, len(dataset) - begin) for begin in own)
    with writing(folder):
        for count in map_blocks(work, len(own), 1):
            done += count
            progress(done, total)
        sync_all()
    return WrittenPictures("png", [f"{folder.name}/{name}" for name in names], hashes, tuple(notes))


def write_npz(
    path: str | os.PathLike[str],
    dataset: ImageDataset,
    noise: Tensor,
    rows: Tensor,
    *,
    change: str = "additive",
) -> WrittenPictures:
    """Write all pictures with their noise as one .npz: x uint8 [N,H,W,C], y int64 [N], ids and
    classes as strings.

    Equal content gives equal bytes (the archive holds no times).
    """
    path = Path(path)
    pictures = protected_pictures(dataset.images.cpu(), noise.cpu(), rows.cpu(), change=change)
    x = pictures.permute(0, 2, 3, 1).numpy()
    arrays = {
        "x": x,
        "y": dataset.labels.cpu().numpy(),
        "ids": np.array(dataset.ids),
        "classes": np.array(dataset.classes),
    }

    def fill(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                # numpy's own writer stamps the current time into the archive
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    make_folder(path.parent)
    atomic_write(path, fill)
    hashes = (
        np.stack([pixel_hash(picture) for picture in x]) if len(x) else np.empty((0, 32), np.uint8)
    )
    return WrittenPictures("npz", [path.name], hashes)


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG bytes of uint8 pixels [H,W,1] or [H,W,3]."""
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    # Noise repeats nothing but runs, and the search for more takes most of the time
    # (`python -m bench.loaders --png`).
    picture.save(buffer, "PNG", compress_type=zlib.Z_RLE)
    return buffer.getvalue()


def pixel_hash(pixels: np.ndarray) -> np.ndarray:
    """sha256 of uint8 pixels [H,W,C], as uint8 [32]."""
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(pixels).data).digest(), dtype=np.uint8)


def picture_hashes(dataset: ImageDataset) -> list[bytes]:
    """pixel_hash of every picture, in row order."""
    hashes: list[bytes] = []
    for x, _, _ in batches(dataset, 1024):
        pixels = x.permute(0, 2, 3, 1).cpu().numpy()
        hashes += [pixel_hash(picture).tobytes() for picture in pixels]
    return hashes


def picture_names(dataset: ImageDataset) -> tuple[list[str], list[str]]:
    """The file name of each picture, <class>/<id without class and extension>.png, and notes.

    Pictures that would share a name (a.jpg and a.png, or names that differ in case only) keep their
    extension: a.jpg.png and a.png.png. Raises DataError for class names and ids that would leave
    the folder.
    """
    bad = [name for name in dataset.classes if not is_inside(name) or "/" in name]
    if bad:
        raise DataError(
            f"class names that cannot be folder names, rename them: {', '.join(map(repr, bad[:5]))}"
        )
    bad = [name for name in dataset.ids if not is_inside(name)]
    if bad:
        raise DataError(
            f"ids that cannot be file names, rename them: {', '.join(map(repr, bad[:5]))}"
        )
    whole = []
    for name, label in zip(dataset.ids, dataset.labels.tolist(), strict=True):
        folder = f"{dataset.classes[label]}/"
        whole.append(folder + name.removeprefix(folder))
    short = [
        stem if end.lower() in EXTENSIONS else stem + end
        for stem, end in map(os.path.splitext, whole)
    ]
    names = [f"{name}.png" for name in short]
    shared = _shared(names)
    for row in shared:
        names[row] = f"{whole[row]}.png"
    for row in _shared(names):
        names[row] = f"{whole[row]}-{row}.png"
    if _shared(names):
        raise DataError(
            f"picture names that cannot be told apart, rename them: {names[_shared(names)[0]]!r}"
        )
    notes = []
    if shared:
        notes.append(
            f"{len(shared)} pictures share a name with another and keep their extension in it"
        )
    return names, notes


def _shared(names: list[str]) -> list[int]:
    groups: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        groups[name.casefold()].append(row)
    return [row for group in groups.values() if len(group) > 1 for row in group]


def _holds(path: Path, pixels: np.ndarray) -> bool:
    if not path.exists():
        return False
    try:
        written, _ = decode(path)
    except PictureError:
        return False
    return is_png(path) and np.array_equal(written, pixels)


def is_png(path: Path) -> bool:
    """Whether a file begins like a PNG, whatever its name says."""
    with path.open("rb") as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"
