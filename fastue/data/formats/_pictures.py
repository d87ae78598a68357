"""Encoding a data set by batches and decoding one from bytes, by threads; what formats refuse."""

import io
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from fastue.core.errors import DataError
from fastue.data.dataset import ImageDataset, batches
from fastue.data.folder import check_memory, some
from fastue.data.parallel import map_blocks
from fastue.data.pictures import PictureError, decode

BATCH = 512  # rows in memory at a time


def blocks(dataset: ImageDataset) -> Iterator[np.ndarray]:
    """Pixels uint8 [B,H,W,C] of consecutive rows."""
    for batch in batches(dataset, BATCH):
        yield batch.x.permute(0, 2, 3, 1).cpu().contiguous().numpy()


def encoded(dataset: ImageDataset, encode: Callable[[np.ndarray], bytes]) -> Iterator[bytes]:
    """The file of each picture, in order."""
    for pixels in blocks(dataset):

        def work(rows: range, pixels: np.ndarray = pixels) -> list[bytes]:
            return [encode(pixels[row]) for row in rows]

        for files in map_blocks(work, len(pixels)):
            yield from files


def decoded(
    source: str, names: list[str], read: Callable[[], Iterable[list[bytes]]], size: int | None
) -> np.ndarray:
    """Pixels uint8 [N,H,W,C] of the pictures whose bytes read() gives, in lists, in order.

    Gray ones among coloured ones are repeated over three channels. Raises DataError that names the
    picture for bytes that are none, and for pictures of different sizes.
    """
    channels = 1
    while True:
        out = np.empty((0, 0, 0, 0), np.uint8)
        start, widest = 0, 0
        for files in read():
            if start == 0:
                first = _decode(source, names[0], files[0], size).shape
                shape = (len(names), *first[:2], max(first[2], channels))
                check_memory(source, int(np.prod(shape)))
                out = np.empty(shape, np.uint8)

            def work(rows: range, files: list[bytes] = files, start: int = start) -> int:
                widest = 0
                for row in rows:
                    name = names[start + row]
                    pixels = _decode(source, name, files[row], size)
                    if pixels.shape[:2] != out.shape[1:3]:  # noqa: B023 - done before the next
                        raise DataError(
                            f"{source}: {name} is {pixels.shape[1]}x{pixels.shape[0]}, others "
                            f"are {out.shape[2]}x{out.shape[1]}; pass --size S to bring all to "  # noqa: B023
                            "one size"
                        )
                    widest = max(widest, pixels.shape[2])
                    if pixels.shape[2] <= out.shape[3]:  # noqa: B023
                        out[start + row] = pixels  # noqa: B023
                return widest

            widest = max([widest, *map_blocks(work, len(files))])
            start += len(files)
        if start != len(names) or start == 0:
            raise DataError(f"{source}: {start} pictures for {len(names)} labels")
        if widest <= out.shape[3]:
            return out
        channels = widest  # the first was gray, another is coloured: again, with room for colours


def _decode(source: str, name: str, data: bytes, size: int | None) -> np.ndarray:
    try:
        return decode(io.BytesIO(data), size)[0]
    except PictureError as error:
        raise DataError(f"{source}: {name}: {error}") from error


def refuse_empty_classes(dataset: ImageDataset) -> None:
    """For formats that know a class by its pictures."""
    empty = set(range(dataset.num_classes)) - set(dataset.labels.unique().tolist())
    if empty:
        names = some(dataset.classes[label] for label in sorted(empty))
        raise DataError(
            f"{dataset.source}: classes without a picture ({names}), which this format cannot "
            "hold; use npz, tar or parquet"
        )


def refuse_large(dataset: ImageDataset, most: int) -> None:
    """For formats with a largest side, in pixels."""
    if max(dataset.shape[1:]) > most:
        raise DataError(f"{dataset.source}: pictures are larger than {most} pixels; use png")
