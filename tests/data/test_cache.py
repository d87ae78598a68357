"""Decoded pictures in a file: the pictures that memory would hold, decoded once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastue.core.errors import DataError
from fastue.data import cache, folder
from fastue.data.dataset import batches
from fastue.data.sources import open_dataset


def the_file(path):
    (found,) = path.glob("*/pictures.u8")
    return found


def test_the_same_data_set_as_in_memory(tiny_folder, tmp_path):
    source = tiny_folder()
    plain, mapped = open_dataset(source), open_dataset(source, cache=tmp_path / "cache")
    assert plain.pages is None and mapped.pages is not None
    assert mapped.ids == plain.ids and torch.equal(mapped.labels, plain.labels)
    assert torch.equal(mapped.images, plain.images)
    assert mapped.fingerprint() == plain.fingerprint()
    order = torch.tensor([40, 3, 95, 3])
    for a, b in zip(batches(plain, 3, order), batches(mapped, 3, order), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert a.x.stride() == b.x.stride()
    part = mapped.subset([5, 6])
    assert part.pages is None and torch.equal(part.images, plain.images[[5, 6]])
    assert open_dataset(source, cache=tmp_path / "other", limit=10**9).pages is None
    assert not (tmp_path / "other").exists()


def test_pictures_are_decoded_once_and_again_when_one_changes(tiny_folder, tmp_path, monkeypatch):
    source, decoded = tiny_folder(), []
    real = folder.decode
    monkeypatch.setattr(folder, "decode", lambda *a: decoded.append(a[0].name) or real(*a))
    first = open_dataset(source, cache=tmp_path / "cache")
    assert len(decoded) > 96
    decoded.clear()
    assert open_dataset(source, cache=tmp_path / "cache").fingerprint() == first.fingerprint()
    assert len(decoded) <= 2  # the first picture, for its size
    Image.new("RGB", (12, 12), "red").save(source / first.ids[7])
    changed = open_dataset(source, cache=tmp_path / "cache")
    assert torch.equal(changed.images[7, :, 0, 0], torch.tensor([255, 0, 0], dtype=torch.uint8))
    assert changed.fingerprint() != first.fingerprint()


def test_killed_while_filling_it_goes_on(tiny_folder, tmp_path, monkeypatch):
    source = tiny_folder(per_class=80)  # five blocks of 64 pictures
    whole = open_dataset(source)
    monkeypatch.setattr(cache, "_STRETCH", 1)
    real, begun = folder._decoded_blocks, []

    def dies(root, ids, size, shape, begin, on_error):
        begun.append(begin)
        for number, block in enumerate(real(root, ids, size, shape, begin, on_error)):
            if number == 2:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(folder, "_decoded_blocks", dies)
    with pytest.raises(KeyboardInterrupt):
        open_dataset(source, cache=tmp_path)
    path = the_file(tmp_path)
    with path.open("ab") as file:
        file.write(b"half a picture")
    with (path.parent / "journal.jsonl").open("a") as file:
        file.write('{"pictures": 19')
    with pytest.raises(KeyboardInterrupt):
        open_dataset(source, cache=tmp_path)
    monkeypatch.setattr(folder, "_decoded_blocks", real)
    again = open_dataset(source, cache=tmp_path)
    assert begun == [0, 128] and again.fingerprint() == whole.fingerprint()
    assert not (path.parent / "journal.jsonl").exists()


def test_odd_pictures_are_treated_as_in_memory(tiny_folder, tmp_path):
    source = tiny_folder()
    Image.new("L", (12, 12), 9).save(source / "0" / "000.png")  # gray comes first
    Image.new("CMYK", (12, 12)).save(source / "1" / "cmyk.jpg")
    (source / "2" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1 of 98 pictures cannot be read:\n  2/bad.png"):
        open_dataset(source, cache=tmp_path / "cache")
    for _ in range(2):  # decoded, then found
        mapped = open_dataset(source, cache=tmp_path / "cache", on_error="skip")
        plain = open_dataset(source, on_error="skip")
        assert torch.equal(mapped.images, plain.images) and mapped.notes == plain.notes
        assert len(mapped.notes) == 3
    Image.new("RGB", (13, 12)).save(source / "3" / "wide.png")
    with pytest.raises(DataError, match=r"2 different sizes .*13x12: 1 \(3/wide.png\)"):
        open_dataset(source, cache=tmp_path / "cache", on_error="skip")


def test_damage_is_said(tiny_folder, tmp_path):
    source = tiny_folder()
    open_dataset(source, cache=tmp_path / "cache")
    path = the_file(tmp_path / "cache")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged; delete it"):
        open_dataset(source, cache=tmp_path / "cache")


def test_a_walk_gives_memory_back(tmp_path):
    """What is mapped counts as memory of the process until it is given back."""
    shape = (1200, 256, 256, 3)  # 225 MiB
    with (tmp_path / "pictures.u8").open("wb") as file:
        for _ in range(12):
            file.write(np.ones((100, *shape[1:]), np.uint8).data)
    from fastue.data.dataset import ImageDataset, Pages

    pages = Pages(tmp_path / "pictures.u8", shape)
    ids = [str(row) for row in range(len(pages.images))]
    data = ImageDataset(pages.images, torch.zeros(1200, dtype=torch.int64), ids, ["a"], pages=pages)

    def mapped() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) >> 10

    before, most = mapped(), 0
    for x, _, _ in batches(data, 50):
        assert x.sum() == x.numel()
        most = max(most, mapped() - before)
    assert 0 < most < 120


def test_index_is_plain_json(tiny_folder, tmp_path):
    data = open_dataset(tiny_folder(), cache=tmp_path)
    index = json.loads((the_file(tmp_path).parent / "index.json").read_text())
    assert index == {"pictures": 96, "notes": [], "fingerprint": data.fingerprint()}


def test_a_beton_goes_into_it_too(tiny, tmp_path):
    from fastue.data.beton import write_beton

    data, path = tiny(), tmp_path / "a.beton"
    write_beton(path, data)
    for _ in range(2):
        mapped = open_dataset(path, cache=tmp_path / "cache")
        assert mapped.pages is not None and mapped.ids == data.ids
        assert torch.equal(mapped.images, data.images)
        assert mapped.fingerprint() == data.fingerprint()
