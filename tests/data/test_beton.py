"""The .beton format without FFCV: what is written comes back, what is damaged or foreign is named."""

import json
import shutil
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_helpers import Child

from fastue.commands.protect import protect
from fastue.core.errors import DataError, UsageError
from fastue.data import atomic, beton
from fastue.data.beton import beton_blocks, open_beton, write_beton
from fastue.data.dataset import ImageDataset
from fastue.data.sources import open_dataset
from fastue.data.verify import verify


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def large():
    """Twenty pictures of 0.9 MB: nine fill a page."""
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (20, 3, 500, 600), dtype=np.uint8)
    return ImageDataset(
        torch.from_numpy(x), torch.arange(20) % 2, [f"k/{i}" for i in range(20)], ["ant", "bee"]
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_comes_back(tmp_path, dataset, channels):
    dataset = replace(dataset, images=dataset.images[:, :channels])
    write_beton(tmp_path / "new" / "set.beton", dataset)
    again = open_dataset(tmp_path / "new" / "set.beton")
    assert again.fingerprint() == dataset.fingerprint() and again.notes == []
    assert again.images.is_contiguous(memory_format=torch.channels_last)
    assert names(tmp_path / "new") == ["set.beton", "set.beton.json"]


def test_equal_data_gives_equal_bytes_and_pages_hold_whole_pictures(tmp_path, large):
    for name in ("a.beton", "b.beton"):
        write_beton(tmp_path / name, large)
    for end in ("beton", "beton.json"):
        assert (tmp_path / f"a.{end}").read_bytes() == (tmp_path / f"b.{end}").read_bytes()
    assert open_beton(tmp_path / "a.beton").fingerprint() == large.fingerprint()
    table = beton.read_table(tmp_path / "a.beton")
    first, last = table.start // table.page, (table.start + table.size - 1) // table.page
    assert (first == last).all() and len(set(first)) == 3


def test_without_its_json_ids_and_classes_are_numbers(tmp_path, dataset):
    write_beton(tmp_path / "set.beton", dataset)
    (tmp_path / "set.beton.json").unlink()
    again = open_beton(tmp_path / "set.beton")
    assert again.ids[:2] == ["00000", "00001"] and again.classes == ["0", "1", "2"]
    assert torch.equal(again.images, dataset.images) and torch.equal(again.labels, dataset.labels)


@pytest.mark.parametrize("block", [1, 4, 10, 99])
def test_blocks_in_file_order(tmp_path, dataset, block):
    write_beton(tmp_path / "set.beton", dataset)
    found = list(beton_blocks(tmp_path / "set.beton", block))
    assert [len(index) for _, _, index in found][:-1] == [block] * (len(found) - 1)
    pixels, labels, index = (np.concatenate(part) for part in zip(*found, strict=True))
    assert pixels.dtype == np.uint8 and labels.dtype == index.dtype == np.int64
    assert index.tolist() == list(range(10)) and labels.tolist() == dataset.labels.tolist()
    assert np.array_equal(pixels, dataset.images.permute(0, 2, 3, 1).numpy())
    with pytest.raises(UsageError, match="at least 1"):
        beton_blocks(tmp_path / "set.beton", 0)


def test_one_block_is_in_memory_at_a_time(tmp_path, large):
    write_beton(tmp_path / "set.beton", large)
    tracemalloc.start()
    for _ in beton_blocks(tmp_path / "set.beton", 2):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < large.images.numel() / 3


def test_size(tmp_path, dataset):
    write_beton(tmp_path / "set.beton", dataset)
    again = open_dataset(tmp_path / "set.beton", size=4)
    assert again.shape == (3, 4, 4) and again.notes == ["10 pictures resized to 4x4"]
    assert again.ids == dataset.ids


def test_jpeg_needs_a_second_word(tmp_path, large):
    with pytest.raises(UsageError, match="weakens the noise.*lossy_ok=True"):
        write_beton(tmp_path / "set.beton", large, jpeg=90)
    assert names(tmp_path) == []
    smooth = torch.arange(600, dtype=torch.float32).mul(255 / 600).byte()
    large = replace(large, images=smooth.expand(20, 3, 500, 600))
    write_beton(tmp_path / "set.beton", large, jpeg=95, lossy_ok=True)
    again = open_beton(tmp_path / "set.beton")
    assert again.notes == ["20 pictures are stored as JPEG"] and again.ids == large.ids
    off = (again.images.int() - large.images.int()).abs().float()
    assert off.max() > 0 and off.mean() < 1
    assert (tmp_path / "set.beton").stat().st_size < large.images.numel()
    with pytest.raises(UsageError, match="1 to 100, not 0"):
        write_beton(tmp_path / "set.beton", large, jpeg=0, lossy_ok=True)


def test_protect_and_verify_read_it(tmp_path, tiny):
    write_beton(tmp_path / "set.beton", tiny(6))
    protect(tmp_path / "set.beton", tmp_path / "out", "lsp", check=False)
    result = verify(tmp_path / "out", tmp_path / "set.beton")
    assert result.ok and result.source_checked and result.checked == 24


@pytest.mark.parametrize("before", [False, True])
def test_a_killed_write_leaves_the_old_pair_or_none(tmp_path, dataset, before):
    path = tmp_path / "set.beton"
    other = replace(dataset, images=255 - dataset.images, ids=[f"new{i}" for i in range(10)])
    if before:
        write_beton(path, dataset)

    def work(say):
        def slow(file, *_):
            file.write(b"half of it")
            file.flush()
            say("writing")
            time.sleep(60)

        beton._write = slow
        write_beton(path, other)

    child = Child(work)
    assert child.first_word() == "writing\n"
    child.kill()
    whole = [name for name in names(tmp_path) if not atomic.is_temporary(name)]
    assert len(names(tmp_path)) == len(whole) + 1
    assert whole == (["set.beton", "set.beton.json"] if before else [])
    if before:
        assert open_beton(path).fingerprint() == dataset.fingerprint()
    write_beton(path, other)
    assert open_beton(path).fingerprint() == other.fingerprint()
    assert names(tmp_path) == ["set.beton", "set.beton.json"]


def test_a_failed_write_leaves_nothing(tmp_path, dataset, monkeypatch):
    write_beton(tmp_path / "set.beton", dataset)
    monkeypatch.setattr(beton, "_write", lambda file, *_: file.write(b"half of it") / 0)
    with pytest.raises(ZeroDivisionError):
        write_beton(tmp_path / "set.beton", dataset)
    assert names(tmp_path) == ["set.beton", "set.beton.json"]
    assert open_beton(tmp_path / "set.beton").ids == dataset.ids


def test_new_pictures_never_stand_under_old_names(tmp_path, dataset, monkeypatch):
    """Stopped between the two files: no names, rather than the wrong ones."""
    write_beton(tmp_path / "set.beton", dataset)
    monkeypatch.setattr(beton, "atomic_write_json", lambda path, value: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_beton(tmp_path / "set.beton", replace(dataset, images=255 - dataset.images))
    assert names(tmp_path) == ["set.beton"]
    assert torch.equal(open_beton(tmp_path / "set.beton").images, 255 - dataset.images)


def test_names_of_another_file_are_refused(tmp_path, dataset):
    write_beton(tmp_path / "set.beton", dataset)
    write_beton(tmp_path / "b.beton", replace(dataset, images=255 - dataset.images))
    shutil.copy(tmp_path / "b.beton", tmp_path / "set.beton")
    with pytest.raises(
        DataError, match=r"set.beton: damaged, or set.beton.json belongs to another"
    ):
        open_beton(tmp_path / "set.beton")
    beside = tmp_path / "set.beton.json"
    whole = json.loads(beside.read_text())
    for change, message in [
        ({"bytes": 1}, "belongs to another file"),
        ({"ids": whole["ids"][1:]}, "belongs to another file"),
        ({"ids": [1] * 10}, "not the names"),
        ({"channels": 2}, "not the names"),
    ]:
        beside.write_text(json.dumps(whole | change))
        with pytest.raises(DataError, match=message):
            beton_blocks(tmp_path / "set.beton", 4)
    beside.write_text("[]")
    with pytest.raises(DataError, match="not the names"):
        open_beton(tmp_path / "set.beton")


def test_damage_is_named(tmp_path, dataset):
    path = tmp_path / "set.beton"
    write_beton(path, dataset)
    (tmp_path / "set.beton.json").unlink()
    whole = bytearray(path.read_bytes())
    rows = beton._HEADER.itemsize + 3 * beton._FIELD.itemsize

    def changed(place, value):
        return whole[:place] + value + whole[place + len(value) :]

    for broken, message in [
        (b"", "not a .beton"),
        (b"words", "not a .beton"),
        (changed(0, b"\x03"), "version 2"),
        (changed(4, b"\x00" * 4), "version 2"),  # the size of a page
        (changed(4, b"\x40\x00\x00\x00"), "10 pictures"),  # pictures of 90 bytes, pages of 64
        (changed(8, b"\x00" * 8), "no pictures"),
        (changed(8, b"\xff" * 8), "cut off"),  # that many rows
        (changed(16, b"\xff" * 8), "cut off"),  # where the list of regions is
        (changed(24, b"\xff"), "kind of its own"),
        (changed(rows, b"\x07"), "1 pictures, the first in row 0"),  # neither raw nor JPEG
        (changed(rows + 1, b"\x07"), "1 pictures, the first in row 0"),  # the width
        (changed(rows + 1, b"\x00\x00"), "1 pictures, the first in row 0"),
        (changed(rows + 5, b"\xff" * 8), "1 pictures, the first in row 0"),  # where it lies
        (changed(rows + 5, b"\x05"), "1 pictures, the first in row 0"),
        (changed(len(whole) - 24, b"\x08"), "1 pictures, the first in row 9"),  # its row
        (whole[:-24], "1 pictures, the first in row 9"),  # a region lacks
        (changed(len(whole) - 8, b"\xff" * 8), "1 pictures, the first in row 9"),  # its size
        (whole[: len(whole) // 2], "cut off"),
    ]:
        path.write_bytes(broken)
        with pytest.raises(DataError, match=message):
            open_beton(path)
    path.write_bytes(whole)
    assert torch.equal(open_beton(path).images, dataset.images)
    with pytest.raises(DataError, match="no such file"):
        open_dataset(tmp_path / "none.beton")


def test_sets_that_the_format_cannot_hold(tmp_path, dataset):
    for data in (dataset.subset([]), replace(dataset, images=torch.zeros(10, 3, 0, 4).byte())):
        with pytest.raises(DataError, match="cannot hold"):
            write_beton(tmp_path / "set.beton", data)
    assert names(tmp_path) == []
