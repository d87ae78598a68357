"""fastue.Protected: what was written, as a torch Dataset."""

import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fastue.core.errors import DataError
from fastue.data.protected import Protected
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.writers import protected_pictures, write_folder, write_npz


def write(out, data, per, *, change="additive", kind="png"):
    """A protected directory of `data` as protect leaves it, with noise from a generator."""
    rows = torch.arange(len(data)) if per == "sample" else data.labels
    shape = (len(data) if per == "sample" else data.num_classes, *data.shape)
    noise = torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(1)).to(torch.int8)
    header = {"method": "emn", "config": {}}
    store = NoiseStore.create(
        out, data, per=per, eps=8 / 255, change=change, shard_rows=7, header=header
    )
    for shard in store.missing_shards():
        store.write_shard(shard, noise[store.shard_slice(shard)])
    if kind == "png":
        store.finish(write_folder(out / "images", data, store.rows, change=change))
    else:
        store.finish(write_npz(out / "protected.npz", data, noise, rows, change=change))
    return protected_pictures(data.images, noise, rows, change=change)


@pytest.fixture
def source(tiny_folder):
    return tiny_folder(per_class=3)


@pytest.mark.parametrize("change", ["additive", "positive"])
@pytest.mark.parametrize("per", ["sample", "class"])
def test_files_and_originals_with_noise_are_the_same_pictures(source, tmp_path, per, change):
    data, out = open_dataset(source), tmp_path / "out"
    expected = write(out, data, per, change=change)
    files = Protected(out)
    sums = Protected(out, originals=source)
    assert len(files) == len(sums) == 12
    assert files.classes == data.classes and files.ids == data.ids
    assert files.manifest["method"] == "emn"
    for row in range(12):
        for picture, label, identity in (files[row], sums[row]):
            assert picture.dtype == torch.uint8 and torch.equal(picture, expected[row])
            assert label == int(data.labels[row]) and identity == data.ids[row]
    assert not torch.equal(files[0][0], data.images[0])


def test_pictures_in_an_npz(source, tmp_path):
    expected = write(tmp_path / "out", open_dataset(source), "sample", kind="npz")
    dataset = Protected(tmp_path / "out")
    assert all(torch.equal(dataset[row][0], expected[row]) for row in range(12))


def test_only_the_images_and_the_manifest_are_needed(source, tmp_path):
    write(tmp_path / "out", open_dataset(source), "sample")
    shutil.rmtree(tmp_path / "out" / "noise")
    assert Protected(tmp_path / "out")[3][2] == "1/000.png"
    with pytest.raises(DataError, match="shard-00000"):
        Protected(tmp_path / "out", originals=source)


def test_rows_count_from_either_end_and_iteration_stops(source, tmp_path):
    write(tmp_path / "out", open_dataset(source), "sample")
    dataset = Protected(tmp_path / "out")
    assert dataset[-1][2] == dataset.ids[-1] and len(list(dataset)) == 12
    for row in (12, -13):
        with pytest.raises(IndexError, match="of 12"):
            dataset[row]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_in_the_workers_of_a_loader(source, tmp_path, context):
    expected = write(tmp_path / "out", open_dataset(source), "class")
    dataset = Protected(tmp_path / "out", originals=source)
    loader = DataLoader(dataset, 5, num_workers=2, multiprocessing_context=context)
    pictures, labels, ids = zip(*loader, strict=True)
    assert torch.equal(torch.cat(pictures), expected)
    assert torch.cat(labels).tolist() == dataset.labels
    assert [name for batch in ids for name in batch] == dataset.ids


def test_a_transform_takes_the_uint8_picture(source, tmp_path):
    write(tmp_path / "out", open_dataset(source), "sample")
    dataset = Protected(tmp_path / "out", transform=lambda picture: picture.float() / 255)
    assert torch.equal(dataset[0][0], Protected(tmp_path / "out")[0][0].float() / 255)


def test_a_loaded_dataset_is_the_same(source, tmp_path):
    write(tmp_path / "out", open_dataset(source), "sample")
    copy = pickle.loads(pickle.dumps(Protected(tmp_path / "out")))
    assert torch.equal(copy[4][0], Protected(tmp_path / "out")[4][0])


def test_errors_name_the_file(source, tiny_folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match="out: no such directory"):
        Protected(out)
    write(out, open_dataset(source), "sample")
    first, second, third = sorted((out / "images").rglob("*.png"))[:3]
    first.unlink()
    second.write_bytes(b"no picture")
    Image.fromarray(np.zeros((3, 3, 3), np.uint8)).save(third)
    dataset = Protected(out)
    for row, path in enumerate((first, second, third)):
        with pytest.raises(DataError, match=str(path)):
            dataset[row]
    with pytest.raises(DataError, match="other.*fingerprint"):
        Protected(out, originals=tiny_folder("other", per_class=3, seed=9))
    with pytest.raises(DataError, match="fewer.*lacks 4.*002"):
        Protected(out, originals=tiny_folder("fewer", per_class=2))
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match="manifest.json"):
        Protected(out)
