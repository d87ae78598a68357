"""Every format of pictures gives back what it was given, and refuses what it cannot hold."""

import io
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from fastue.core.errors import DataError, UsageError
from fastue.data.formats import FORMATS, of_name
from fastue.data.writers import write_npz

NAMES = {
    "png": "set",
    "webp": "set",
    "csv": "set",
    "npz": "set.npz",
    "avatar": "set.npz",
    "tar": "set.tar",
    "parquet": "set.parquet",
}


def load(name):
    if name == "parquet":
        pytest.importorskip("pyarrow")
    return FORMATS[name].load()


def stored(module, dataset):
    return module.stored(dataset) if hasattr(module, "stored") else dataset


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_round_trip(name, channels, dataset, tmp_path):
    module, data = load(name), replace(dataset, images=dataset.images[:, :channels])
    if (name, channels) == ("webp", 1):
        with pytest.raises(DataError, match="gray"):
            module.check(data)
        return
    module.check(data)
    module.write(tmp_path / NAMES[name], data)
    assert module.read(tmp_path / NAMES[name]).fingerprint() == stored(module, data).fingerprint()
    assert os.listdir(tmp_path) == [NAMES[name]]


def test_npz_has_the_bytes_of_the_other_writer(dataset, tmp_path):
    load("npz").write(tmp_path / "a.npz", dataset)
    zero = dataset.images[:1].char() * 0
    write_npz(tmp_path / "b.npz", dataset, zero, dataset.labels * 0)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("name", ["tar", "parquet"])
def test_equal_content_gives_equal_bytes(name, dataset, tmp_path):
    for path in ("a", "b"):
        load(name).write(tmp_path / path, dataset)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_shards(dataset, tmp_path):
    tar, path = load("tar"), tmp_path / "set-{0..2}.tar"
    tar.write(path, dataset)
    assert sorted(os.listdir(tmp_path)) == ["set-0.tar", "set-1.tar", "set-2.tar"]
    assert tar.read(path).fingerprint() == dataset.fingerprint()
    (tmp_path / "set-1.tar").unlink()
    with pytest.raises(DataError, match="set-1.tar: no such file"):
        tar.read(path)
    tar.write(path, dataset)  # what a kill left is gone on with
    assert tar.read(path).fingerprint() == dataset.fingerprint()
    with pytest.raises(UsageError, match="something else"):
        tar.write(path, dataset.subset(range(9, -1, -1)))


@pytest.mark.parametrize("name", ["png", "webp", "csv"])
def test_a_class_without_pictures_is_refused(name, dataset):
    with pytest.raises(DataError, match="without a picture"):
        load(name).check(replace(dataset, classes=[*dataset.classes, "dog"]))


def test_folders_refuse_class_names_with_a_slash(dataset):
    with pytest.raises(DataError, match="class names"):
        load("png").check(replace(dataset, classes=["a/b", "c", "d"]))


def test_a_failed_folder_leaves_nothing(dataset, tmp_path, monkeypatch):
    png = load("png")
    monkeypatch.setattr(png._folders, "encoded", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        png.write(tmp_path / "set", dataset)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["tar", "parquet", "npz"])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_a_truncated_file_is_named(name, share, dataset, tmp_path):
    path = tmp_path / NAMES[name]
    load(name).write(path, dataset)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(DataError, match=NAMES[name]):
        load(name).read(path)


@pytest.mark.parametrize("member", ["../x.png", "/etc/x.png", "a/../../x.png"])
def test_members_outside_the_archive_are_refused(member, tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo(member), io.BytesIO())
    with pytest.raises(DataError, match="set.tar.*plain file"):
        load("tar").read(tmp_path / "set.tar")


@pytest.mark.parametrize("line", ["00000.png,x,ant,a", "../a.png,0,ant,a", "00000.png,-1,ant,a"])
def test_tables_that_make_no_sense(line, dataset, tmp_path):
    load("csv").write(tmp_path / "set", dataset)
    (tmp_path / "set" / "labels.csv").write_text(f"file,label,class,id\n{line}\n")
    with pytest.raises(DataError, match="labels.csv, line 2"):
        load("csv").read(tmp_path / "set")


def test_parquet_without_its_columns(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": np.arange(3)}), tmp_path / "set.parquet")
    with pytest.raises(DataError, match="set.parquet: needs the columns"):
        load("parquet").read(tmp_path / "set.parquet")


def test_formats_are_told_by_the_name():
    assert of_name("a.tar") == "tar" and of_name("folder") == "png"
    assert of_name("a.npz") == "npz" and of_name("a.npz", "avatar") == "avatar"
    for name, to in (("a.jpg", None), ("a.tar", "npz"), ("a", "gif"), ("a.zip", None)):
        with pytest.raises(UsageError):
            of_name(name, to)
