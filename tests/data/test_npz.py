"""Arrays from .npz files and from torchvision's sets."""

import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from fastue.core.errors import DataError, UsageError
from fastue.data.sources import open_dataset

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
Y = np.array([0, 1, 2, 0, 1, 2])


def save(tmp_path, **arrays):
    np.savez(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


@pytest.mark.parametrize(("x", "y"), [("x", "y"), ("data", "targets"), ("images", "labels")])
@pytest.mark.parametrize("layout", ["nhwc", "nchw", "gray"])
def test_names_and_layouts(tmp_path, x, y, layout):
    pictures = {"nhwc": X, "nchw": X.transpose(0, 3, 1, 2), "gray": X[..., 0]}[layout]
    data = open_dataset(save(tmp_path, **{x: pictures, y: Y}))
    expected = X[..., :1] if layout == "gray" else X
    assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), expected)
    assert data.labels.tolist() == Y.tolist() and data.classes == ["0", "1", "2"]
    assert data.ids == [f"{row:05d}" for row in range(6)] and data.notes == []


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
def test_label_types_and_columns(tmp_path, dtype):
    assert (
        open_dataset(save(tmp_path, x=X, y=Y.astype(dtype)[:, None])).labels.tolist() == Y.tolist()
    )


def test_ids_and_class_names(tmp_path):
    names = np.array(list("abcdef"))
    data = open_dataset(
        save(tmp_path, x=X, y=Y, ids=names, classes=np.array(["ant", "bee", "cow", "dog"]))
    )
    assert data.ids == list("abcdef") and data.classes == ["ant", "bee", "cow", "dog"]
    assert "1 classes without a picture: dog" in data.notes[0]


def test_size(tmp_path):
    data = open_dataset(save(tmp_path, x=X, y=Y), size=2)
    assert data.shape == (3, 2, 2) and "resized from 4x5 to 2x2" in data.notes[0]


def with_nan():
    x = X / 255.0
    x[0, 0, 0, 0] = np.nan
    return x


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": with_nan(), "y": Y}, "NaN"),
        ({"x": X / 255.0, "y": Y}, r"float64; they must be uint8.*\* 255"),
        ({"x": X.astype(np.int16), "y": Y}, "int16; they must be uint8"),
        ({"x": X, "y": Y[:5]}, "6 pictures and 5 labels"),
        ({"x": X, "y": Y - 1}, "negative labels, the first at row 0"),
        ({"x": X, "y": Y * 1000}, "label 2000 for 6 pictures"),
        ({"x": X, "y": np.array([0, 1, 2, 0, 1, 2**64 - 1], np.uint64)}, "too large"),
        ({"x": X, "y": Y, "classes": np.array(["a", "b"])}, "label 2, but only 2 classes"),
        ({"x": X, "y": Y.astype(float)}, "labels are float64"),
        ({"x": X, "y": np.array([0, 1, np.nan, 0, 1, 2])}, "a label is missing at row 2"),
        ({"x": X, "y": np.eye(3)[Y]}, r"labels have shape \[6, 3\]"),
        ({"x": X[..., :2], "y": Y}, "one or three channels"),
        ({"x": X[0, 0], "y": Y}, "shape"),
        ({"x": X[:0], "y": Y[:0]}, "shape"),
        ({"y": Y}, "no array named x"),
        ({"x": X}, "no array named y"),
        ({"x": X, "y": np.zeros(6, int)}, "single class"),
        ({"x": X, "y": Y, "ids": np.arange(6)}, "ids must be a 1-d array of strings"),
        ({"x": X, "y": Y, "ids": np.array(["a"] * 6)}, "unique"),
        ({"x": X, "y": Y, "ids": np.array(["a", "b"])}, "2 ids"),
    ],
)
def test_arrays_that_cannot_be_used(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        open_dataset(save(tmp_path, **arrays))


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_pickles_are_never_loaded(tmp_path):
    objects = np.empty(6, dtype=object)
    objects[:] = [Bomb() for _ in range(6)]
    with pytest.raises(DataError, match="pickled objects"):
        open_dataset(save(tmp_path, x=X, y=objects))
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="not an .npz"):
        open_dataset(tmp_path / "raw.npz")


def test_damaged_archives(tmp_path):
    path = save(tmp_path, x=X, y=Y)
    whole = path.read_bytes()
    for broken in (b"", b"words", whole[: len(whole) // 2], whole[:200] + b"\0" * 40 + whole[240:]):
        path.write_bytes(broken)
        with pytest.raises(DataError, match="set.npz"):
            open_dataset(path)
    with pytest.raises(DataError, match="no such file"):
        open_dataset(tmp_path / "none.npz")


def test_an_archive_that_unpacks_to_more_than_memory_stops(tmp_path, monkeypatch):
    path = save(tmp_path, x=X, y=Y)
    monkeypatch.setattr(
        zipfile.ZipFile, "infolist", lambda self: [type("Member", (), {"file_size": 1 << 60})()]
    )
    with pytest.raises(DataError, match="GiB in memory"):
        open_dataset(path)


def test_labels_table_does_not_go_with_arrays(tmp_path):
    with pytest.raises(UsageError, match="--labels goes with a folder"):
        open_dataset(save(tmp_path, x=X, y=Y), labels="table.csv")


class TestTorchvision:
    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("safetensors")
        from fastue.core.vision import import_torchvision

        try:
            import_torchvision()
        except UsageError as error:
            pytest.skip(str(error))

    def cifar(self, tmp_path, monkeypatch):
        """CIFAR-10's files in small, and its checksums set to match."""
        import hashlib

        from torchvision.datasets import CIFAR10

        folder = tmp_path / CIFAR10.base_folder
        folder.mkdir()
        lists = {"train_list": [], "test_list": []}
        for key, name in (("train_list", "data_batch_1"), ("test_list", "test_batch")):
            pixels = RNG.integers(0, 256, (8, 3072), dtype=np.uint8)
            body = pickle.dumps({"data": pixels, "labels": [0, 1, 2, 3, 4, 5, 6, 9]})
            (folder / name).write_bytes(body)
            lists[key].append([name, hashlib.md5(body).hexdigest()])
            lists[f"{key} pixels"] = pixels.reshape(8, 3, 32, 32)
        meta = pickle.dumps({"label_names": [f"class {k}" for k in range(10)]})
        (folder / "batches.meta").write_bytes(meta)
        monkeypatch.setattr(CIFAR10, "train_list", lists["train_list"])
        monkeypatch.setattr(CIFAR10, "test_list", lists["test_list"])
        checked = {
            "filename": "batches.meta",
            "key": "label_names",
            "md5": hashlib.md5(meta).hexdigest(),
        }
        monkeypatch.setattr(CIFAR10, "meta", checked)
        return lists

    def test_cifar10(self, tmp_path, monkeypatch):
        lists = self.cifar(tmp_path, monkeypatch)
        for ending, key in (("", "train_list"), (":train", "train_list"), (":test", "test_list")):
            data = open_dataset(f"torchvision:CIFAR10:{tmp_path}{ending}")
            assert np.array_equal(data.images.numpy(), lists[f"{key} pixels"])
            assert data.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 9] and data.classes[9] == "class 9"

    def test_sets_of_files_are_decoded(self, tmp_path):
        for label in ("a", "b"):
            (tmp_path / label).mkdir()
            Image.fromarray(X[0]).save(tmp_path / label / "x.png")
        data = open_dataset(f"torchvision:ImageFolder:{tmp_path}")
        assert data.classes == ["a", "b"] and np.array_equal(
            data.images[1].permute(1, 2, 0).numpy(), X[0]
        )

    @pytest.mark.parametrize(
        ("source", "error", "message"),
        [
            ("torchvision:CIFAR10:{}", DataError, "downloads nothing"),
            ("torchvision:CIFAR10:{}/none", DataError, "no such folder"),
            ("torchvision:NoSuchSet:{}", UsageError, "no data set named NoSuchSet"),
            ("torchvision:folder:{}", UsageError, "no data set named folder"),
            ("torchvision:CIFAR10", UsageError, "expected torchvision:NAME:FOLDER"),
        ],
    )
    def test_what_is_not_there(self, tmp_path, source, error, message):
        with pytest.raises(error, match=message):
            open_dataset(source.format(tmp_path))

    def test_operators_without_a_kernel_still_raise(self):
        from fastue.core import vision

        assert vision.prepare() == "imported"
        if "+cpu" not in torch.__version__:
            pytest.skip("torchvision's own library may be loaded here")
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        with pytest.raises((RuntimeError, NotImplementedError)):
            sys.modules["torchvision"].ops.nms(boxes, torch.ones(1), 0.5)
