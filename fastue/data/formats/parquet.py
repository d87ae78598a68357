"""Parquet as Hugging Face's `datasets` reads it: image {bytes, path} with PNG bytes, label int64.

The path of a picture is its id; class names stand in the schema's metadata.
"""

import json
from pathlib import Path

from fastue.core.errors import DataError, UsageError
from fastue.data.atomic import atomic_write, make_folder
from fastue.data.dataset import ImageDataset
from fastue.data.formats._pictures import BATCH, decoded, encoded
from fastue.data.npz import from_arrays
from fastue.data.writers import encode_png


def check(dataset: ImageDataset) -> None:
    """Holds every data set."""
    _pyarrow()


def write(path: Path, dataset: ImageDataset) -> None:
    pa, pq = _pyarrow()
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {
        "image": {"_type": "Image"},
        "label": {"names": dataset.classes, "_type": "ClassLabel"},
    }
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    labels, files = dataset.labels.cpu().numpy(), encoded(dataset, encode_png)

    def fill(file) -> None:
        # PNG is compressed already.
        with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False) as writer:
            for start in range(0, len(dataset), BATCH):
                ids = dataset.ids[start : start + BATCH]
                rows = [{"bytes": next(files), "path": name} for name in ids]
                columns = [pa.array(rows, image), pa.array(labels[start : start + BATCH])]
                writer.write_batch(pa.record_batch(columns, schema=schema))

    make_folder(path.parent)
    atomic_write(path, fill)


def read(path: Path, size: int | None = None) -> ImageDataset:
    pa, pq = _pyarrow()
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            _check_schema(path, schema, pa)
            label = file.read(["label"]).column("label")
            if label.null_count:
                raise DataError(f"{path}: {label.null_count} labels are missing")
            ids = [name for batch in _images(file) for name in batch.field("path").to_pylist()]
            if None in ids or len(set(ids)) != len(ids):
                ids = None
            names = ids or [f"row {row}" for row in range(len(label))]

            def files():
                for batch in _images(file):
                    yield [data or b"" for data in batch.field("bytes").to_pylist()]

            return from_arrays(
                decoded(str(path), names, files, size),
                label.to_numpy(),
                source=str(path),
                ids=ids,
                classes=_classes(path, schema),
            )
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged, or not a Parquet file: {error}") from error


def _images(file):
    for batch in file.iter_batches(BATCH, columns=["image"]):
        yield batch.column("image")


def _check_schema(path: Path, schema, pa) -> None:
    there = {name: schema.field(name).type for name in schema.names}
    image, label = there.get("image"), there.get("label")
    fields = {image.field(k).name for k in range(image.num_fields)} if image is not None else set()
    if not {"bytes", "path"} <= fields or label is None or not pa.types.is_integer(label):
        raise DataError(
            f"{path}: needs the columns image (with bytes and path) and label (whole numbers); "
            f"holds {', '.join(schema.names)}"
        )


def _classes(path: Path, schema) -> list[str] | None:
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        names = json.loads(text)["info"]["features"]["label"].get("names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: the metadata of Hugging Face is damaged") from error
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise DataError(f"{path}: class names must be strings")
    return names


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError("Parquet needs pyarrow: pip install fastue[convert]") from error
    return pyarrow, pyarrow.parquet
