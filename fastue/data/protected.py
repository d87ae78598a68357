"""A protected directory as a torch Dataset, for a training loop of one's own."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastue.core.errors import DataError
from fastue.data.dataset import ImageDataset
from fastue.data.folder import some
from fastue.data.fullsize import files_of, original, view
from fastue.data.pictures import PictureError, decode
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.verify import open_protected
from fastue.data.writers import protected_original, protected_pictures


class Protected(Dataset):
    """What `fastue protect` wrote as a torch Dataset: (picture uint8 [C, H, W], label int, id str).

    directory  with its `manifest.json` and `images/`; a picture is decoded when it is asked for
    originals  clean pictures, open or as `open_dataset` takes them: the noise of the store is added
               to these, and `images/` is not read
    transform  called with the uint8 picture; what it returns takes its place

    Pictures that were written at their own size are resized and cut out as protect did.
    `classes` names the labels, `ids` the pictures in order, `manifest` is what manifest.json holds.
    Works in the workers of a DataLoader. Raises DataError, naming the file, for an unfinished run
    and for pictures that are missing, damaged, of another size, or not those that were protected.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        originals: str | os.PathLike[str] | ImageDataset | None = None,
        transform: Callable[[Tensor], Any] | None = None,
    ):
        self.directory = Path(directory)
        self.transform = transform
        # The noise is needed only where it is added here; who was sent images/ alone has none.
        self._store = NoiseStore.open(self.directory, shards=originals is not None)
        self.manifest: dict[str, Any] = self._store.manifest
        self.classes: list[str] = self.manifest["classes"]
        self.ids: list[str] = self.manifest["ids"]
        self.labels: list[int] = self.manifest["labels"]
        self._pixels: Tensor | None = None
        self._clean: ImageDataset | None = None
        pictures = self.manifest["pictures"]
        if originals is not None:
            self._clean = _matching(originals, self.manifest)
        elif pictures is None:
            raise DataError(f"{directory}: holds noise only; pass the originals to add it to")
        elif pictures["kind"] == "npz":
            self._pixels = open_protected(self.directory).images

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> tuple[Any, int, str]:
        if not -len(self) <= row < len(self):
            raise IndexError(f"{self.directory}: picture {row} of {len(self)}")
        row %= len(self)
        picture = self._picture(row)
        if self.transform is not None:
            picture = self.transform(picture)
        return picture, self.labels[row], self.ids[row]

    def _picture(self, row: int) -> Tensor:
        if self._pixels is not None:
            return self._pixels[row].clone()
        if self._clean is None:
            return self._decoded(self.directory / self.manifest["pictures"]["files"][row])
        noise, only = self._store.rows([row]), torch.zeros(1, dtype=torch.int64)
        clean, way = self._clean.images[row : row + 1], self._store.change
        if not self.manifest.get("full_size"):
            return protected_pictures(clean, noise, only, change=way)[0]
        path = files_of(self._clean) / self.ids[row]
        whole = original(path, clean[0].permute(1, 2, 0).cpu().numpy())
        shown = view(protected_original(whole, noise[0], change=way), self.manifest["size"])
        return torch.from_numpy(shown.copy()).permute(2, 0, 1)

    def _decoded(self, path: Path) -> Tensor:
        try:
            pixels, _ = decode(path, self.manifest.get("size"))
        except PictureError as error:
            raise DataError(f"{path}: {error}") from error
        picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        if list(picture.shape) != self.manifest["shape"]:
            raise DataError(
                f"{path}: is {list(picture.shape)}, the manifest says {self.manifest['shape']}"
            )
        return picture


def _matching(
    originals: str | os.PathLike[str] | ImageDataset, manifest: dict[str, Any]
) -> ImageDataset:
    """The originals in the order of the manifest, which must be those that were protected."""
    if not isinstance(originals, ImageDataset):
        height, width = manifest["shape"][1:]
        size = height if height == width else None
        originals = open_dataset(originals, size=size, on_error="skip")
    place = {name: row for row, name in enumerate(originals.ids)}
    if missing := [name for name in manifest["ids"] if name not in place]:
        raise DataError(
            f"{originals.source}: lacks {len(missing)} of the protected pictures: {some(missing)}"
        )
    ordered = originals.subset([place[name] for name in manifest["ids"]])
    if ordered.fingerprint() != manifest["source_fingerprint"]:
        raise DataError(
            f"{originals.source}: not the pictures that were protected (fingerprint differs)"
        )
    return ordered
