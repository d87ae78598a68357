"""Written pictures: exact pixels, exact names, and a verify that finds whatever was done to them."""

import hashlib
import importlib.util
import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_helpers import Child, colour_picture
from PIL import Image

from fastue.core.errors import DataError
from fastue.data import writers
from fastue.data.layout import MANIFEST
from fastue.data.npz import open_npz
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.tensorfile import write_tensors
from fastue.data.verify import open_protected, verify
from fastue.data.writers import picture_names, protected_pictures, write_folder, write_npz

HEADER = {"method": "emn", "config": {"seed": 7}}


def noise_for(dataset, per="sample"):
    rows = len(dataset) if per == "sample" else dataset.num_classes
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-8, 9, (rows, *dataset.shape), dtype=torch.int8, generator=generator)


def protect(out, dataset, *, per="sample", compat="none", kind="png"):
    noise = noise_for(dataset, per)
    store = NoiseStore.create(
        out, dataset, per=per, eps=8 / 255, header={**HEADER, "compat": compat}, shard_rows=4
    )
    for shard in store.missing_shards():
        store.write_shard(shard, noise[store.shard_slice(shard)])
    rows = dataset.labels if per == "class" else torch.arange(len(dataset))
    options = {"change": "positive" if compat == "emn2021" else "additive"}
    if kind == "png":
        store.finish(
            write_folder(out / "images", dataset, lambda index: noise[rows[index]], **options)
        )
    else:
        store.finish(write_npz(out / "protected.npz", dataset, noise, rows, **options))
    return noise[rows]


@pytest.fixture
def out(tmp_path, dataset):
    protect(tmp_path / "out", dataset)
    return tmp_path / "out"


def by_hand(dataset, noise, compat="none"):
    noise = noise.int().clamp(min=0) if compat == "emn2021" else noise.int()
    return (dataset.images.int() + noise).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("kind", ["png", "npz"])
@pytest.mark.parametrize("per", ["sample", "class"])
@pytest.mark.parametrize("compat", ["none", "emn2021"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_written_is_x_plus_noise_exactly(tmp_path, dataset, kind, per, compat, channels):
    dataset = replace(dataset, images=dataset.images[:, :channels])
    noise = protect(tmp_path, dataset, per=per, compat=compat, kind=kind)
    found = open_protected(tmp_path)
    assert torch.equal(found.images, by_hand(dataset, noise, compat))
    assert (found.ids, found.classes) == (dataset.ids, dataset.classes) and torch.equal(
        found.labels, dataset.labels
    )
    result = verify(tmp_path, dataset)
    assert result.ok, result.text()
    change = (found.images.int() - dataset.images.int()).double()
    assert result.max_levels == change.abs().max()
    assert result.psnr == pytest.approx(float(10 * torch.log10(255**2 / change.square().mean())))
    assert result.pictures == result.checked == 10 and verify(tmp_path).ok


def test_range_and_signs_at_the_edges():
    x = torch.tensor([0, 0, 5, 250, 255, 255, 128], dtype=torch.uint8).reshape(1, 1, 1, 7)
    noise = torch.tensor([-8, 8, -8, 8, 8, -8, -127], dtype=torch.int8).reshape(1, 1, 1, 7)
    row = torch.zeros(1, dtype=torch.int64)
    assert protected_pictures(x, noise, row).flatten().tolist() == [0, 8, 0, 255, 255, 247, 1]
    assert protected_pictures(x, noise, row, change="positive").flatten().tolist() == [
        0,
        8,
        5,
        255,
        255,
        255,
        128,
    ]


def test_many_pictures_in_pieces(dataset):
    rows = torch.arange(3000) % 10
    images = dataset.images[rows]
    noise = noise_for(dataset)
    found = protected_pictures(images, noise, rows)
    assert torch.equal(found, by_hand(dataset, noise)[rows])
    assert found.permute(0, 2, 3, 1).is_contiguous()


def test_names_follow_the_originals(out, dataset):
    files = json.loads((out / MANIFEST).read_text())["pictures"]["files"]
    assert files == [f"images/{name.removesuffix('.jpg')}.png" for name in dataset.ids]
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png")) == sorted(files)


@pytest.mark.parametrize(
    ("ids", "names"),
    [
        (["ant/a.jpg", "ant/a.png"], ["ant/a.jpg.png", "ant/a.png.png"]),
        (["ant/a.jpg", "ant/A.JPG"], ["ant/a.jpg-0.png", "ant/A.JPG-1.png"]),
        (["ant/a.jpg", "ant/sub/a.jpg"], ["ant/a.png", "ant/sub/a.png"]),
        (["00000", "v1.5"], ["ant/00000.png", "ant/v1.5.png"]),
        (["elsewhere/x.bmp", "ant/été.webp"], ["ant/elsewhere/x.png", "ant/été.png"]),
    ],
)
def test_names_are_unique_and_stay_in_the_class_folder(dataset, ids, names):
    two = replace(
        dataset, images=dataset.images[:2], labels=torch.zeros(2, dtype=torch.int64), ids=ids
    )
    assert picture_names(two)[0] == names


@pytest.mark.parametrize("name", ["../up", "a/../../up", "/etc/x", "a//b", ".", ""])
def test_ids_that_leave_the_folder_are_refused(tmp_path, dataset, name):
    bad = replace(dataset, ids=[name, *dataset.ids[1:]])
    with pytest.raises(DataError, match="ids that cannot be file names"):
        write_folder(tmp_path / "images", bad, noise_for(dataset).__getitem__)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["..", "a/b", "/a", ""])
def test_class_names_that_leave_the_folder_are_refused(tmp_path, dataset, name):
    bad = replace(dataset, classes=[name, "bee", "cow"])
    with pytest.raises(DataError, match="class names that cannot be folder names"):
        write_folder(tmp_path / "images", bad, noise_for(dataset).__getitem__)
    assert not list(tmp_path.iterdir())


def test_from_folder_to_folder_with_awkward_pictures(folder, tmp_path):
    colour_picture(1).convert("L").save(folder / "cat" / "0.jpg")
    colour_picture(2).convert("CMYK").save(folder / "dog" / "ink.jpg")
    dataset = open_dataset(folder)
    protect(tmp_path / "out", dataset)
    assert verify(tmp_path / "out", folder).ok
    assert (tmp_path / "out" / "images" / "cat" / "0.jpg.png").exists()


def test_a_resized_source_is_verified_at_its_size(folder, tmp_path):
    colour_picture(1, 20, 30).save(folder / "cat" / "big.png")
    protect(tmp_path / "out", open_dataset(folder, size=8))
    assert verify(tmp_path / "out", folder).ok


@pytest.mark.parametrize("source", ["demo:test", "set.npz"])
def test_other_sources_are_verified_by_name(tmp_path, dataset, source):
    if source.startswith("demo"):
        if importlib.util.find_spec("skimage") is None:
            pytest.skip("scikit-image, whose photographs the demo set is, is missing")
    else:
        source = str(tmp_path / source)
        pixels = dataset.images.permute(0, 2, 3, 1).numpy()
        np.savez(source, x=pixels, y=dataset.labels.numpy(), ids=np.array(dataset.ids))
    protect(tmp_path / "out", open_dataset(source))
    result = verify(tmp_path / "out", source)
    assert result.ok and result.source_checked, result.text()


def digests(out):
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def test_writing_again_repairs_and_touches_nothing_else(out, dataset, tmp_path):
    before = digests(out)
    files = sorted((out / "images").rglob("*.png"))
    files[0].unlink()
    files[1].write_bytes(b"")
    Image.new("RGB", (5, 6)).save(files[2])
    untouched = files[3].stat().st_mtime_ns
    time.sleep(0.01)
    write_folder(out / "images", dataset, noise_for(dataset).__getitem__)
    assert digests(out) == before and files[3].stat().st_mtime_ns == untouched


def test_equal_npz_files_have_equal_bytes(tmp_path, dataset):
    for name in ("a", "b"):
        write_npz(tmp_path / f"{name}.npz", dataset, noise_for(dataset), torch.arange(10))
        time.sleep(2.1 if name == "a" else 0)  # zip archives count time in steps of two seconds
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    again = open_npz(tmp_path / "a.npz")
    assert again.ids == dataset.ids and again.classes == dataset.classes


def test_killed_while_writing_and_started_again_ends_in_the_same_files(
    tmp_path, dataset, monkeypatch
):
    # for power cuts, and slow where others write too
    monkeypatch.setattr(writers, "sync_all", lambda: None)
    rows = torch.arange(400) % 10
    many = replace(
        dataset,
        images=dataset.images[rows],
        labels=dataset.labels[rows],
        ids=[f"{row:05d}" for row in range(400)],
    )
    expected = protect(tmp_path / "whole", many)
    whole = {p.relative_to(tmp_path / "whole"): d for p, d in digests(tmp_path / "whole").items()}

    def work(say):
        say("started")
        protect(tmp_path / "killed", many)

    cut = 0
    for attempt in range(5):
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        child = Child(work)
        child.first_word()
        time.sleep(0.02 + 0.03 * attempt)
        child.kill()
        cut += not (tmp_path / "killed" / MANIFEST).exists()
        Child(work).wait()
        assert {
            p.relative_to(tmp_path / "killed"): d for p, d in digests(tmp_path / "killed").items()
        } == whole
    assert cut > 0 and torch.equal(
        open_protected(tmp_path / "killed").images, by_hand(many, expected)
    )


def test_progress_counts_every_picture(tmp_path, dataset):
    seen = []
    write_folder(
        tmp_path,
        dataset,
        noise_for(dataset).__getitem__,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (10, 10)


def test_full_disk_while_writing(tmp_path, dataset, monkeypatch):
    import errno

    from fastue.data import atomic

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", fail)
    with pytest.raises(DataError, match="disk is full"):
        write_folder(tmp_path / "images", dataset, noise_for(dataset).__getitem__)
    assert not [path for path in (tmp_path / "images").rglob("*") if path.is_file()]


# What may happen to a written directory, and the list of the result in which it must be found.
def spoil(out, dataset, kind):
    first = out / "images" / "ant" / "0.png"
    if kind == "missing":
        first.unlink()
    elif kind == "extra":
        colour_picture(1).save(out / "images" / "ant" / "new.png")
    elif kind == "unreadable":
        first.write_bytes(first.read_bytes()[:40])
    elif kind == "wrong_size":
        colour_picture(1, 9, 9).save(first)
    elif kind == "lossy":
        Image.open(first).save(first, "JPEG", quality=100)
    elif kind == "changed":
        pixels = np.asarray(Image.open(first)).copy()
        pixels[0, 0, 0] ^= 1
        Image.fromarray(pixels).save(first)
    elif kind == "over_budget":
        pixels = np.asarray(Image.open(first)).copy()
        pixels[0, 0, 0] = int(dataset.images[0, 0, 0, 0]) + 100 & 255
        Image.fromarray(pixels).save(first)
    elif kind == "wrong_label":
        manifest = json.loads((out / MANIFEST).read_text())
        manifest["labels"][0] = 1
        (out / MANIFEST).write_text(json.dumps(manifest))
    elif kind == "swapped":
        other = out / "images" / "ant" / "3.png"
        whole = first.read_bytes()
        first.write_bytes(other.read_bytes())
        other.write_bytes(whole)


@pytest.mark.parametrize("with_source", [True, False])
@pytest.mark.parametrize(
    ("kind", "listed"),
    [
        (kind, kind)
        for kind in (
            "missing",
            "extra",
            "unreadable",
            "wrong_size",
            "lossy",
            "changed",
            "over_budget",
            "wrong_label",
        )
    ]
    + [("swapped", "changed")],
)
def test_verify_finds_it_and_names_it(out, dataset, kind, listed, with_source):
    if kind == "over_budget" and not with_source:
        listed = "changed"  # how large the change is, only the originals can tell
    spoil(out, dataset, kind)
    result = verify(out, dataset if with_source else None)
    assert not result.ok
    name = "ant/new.png" if kind == "extra" else "ant/0"
    assert any(name in entry for entry in getattr(result, listed)), result.text()
    assert "WRONG" in result.text() and name in result.text()


def test_verify_believes_no_hash_that_agrees_with_a_changed_picture(out, dataset):
    # Somebody who can change a picture can change the recorded hashes too; the originals and the noise still tell.
    spoil(out, dataset, "changed")
    found = open_protected(out)
    store = NoiseStore.open(out)
    hashes = [
        hashlib.sha256(p.permute(1, 2, 0).contiguous().numpy()).digest() for p in found.images
    ]
    path = out / store.manifest["pictures"]["hashes"]
    digest = write_tensors(
        path, {"sha256": torch.tensor([list(h) for h in hashes], dtype=torch.uint8)}, {}
    )
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["pictures"]["hashes_sha256"] = digest
    (out / MANIFEST).write_text(json.dumps(manifest))
    assert verify(out).ok
    assert verify(out, dataset).changed == ["images/ant/0.png"]


def test_verify_names_a_damaged_shard_and_still_checks_the_pictures(out, dataset):
    shard = out / "noise" / "shard-00001.safetensors"
    for damage in (lambda: shard.write_bytes(shard.read_bytes()[:-1]), shard.unlink):
        damage()
        with pytest.raises(DataError, match="shard-00001"):
            NoiseStore.open(out)
        result = verify(out, dataset)
        assert not result.ok and "shard-00001" in result.text()
        assert result.checked == 10 and result.changed == []


def test_verify_names_damaged_hashes(out, dataset):
    (out / "noise" / "pictures.safetensors").write_bytes(b"x")
    assert "pictures.safetensors" in verify(out).text()
    assert verify(out, dataset).changed == []


def test_verify_against_another_source(out, dataset):
    other = replace(dataset, ids=["ant/other.jpg", *dataset.ids[1:]])
    result = verify(out, other)
    assert result.not_in_source == ["ant/0.jpg"] and "fingerprint differs" in result.text()
    relabelled = replace(dataset, labels=dataset.labels.roll(1))
    assert "label differs" in verify(out, relabelled).text()
    with pytest.raises(DataError, match="protected were"):
        verify(out, replace(dataset, images=dataset.images[:, :, :4]))


def test_verify_finds_changes_in_an_npz(tmp_path, dataset):
    protect(tmp_path, dataset, kind="npz")
    whole = dict(np.load(tmp_path / "protected.npz"))
    x = whole["x"].copy()
    x[4, 0, 0, 0] ^= 1
    np.savez(tmp_path / "protected.npz", **{**whole, "x": x})
    assert verify(tmp_path, dataset).changed == verify(tmp_path).changed == [dataset.ids[4]]
    np.savez(
        tmp_path / "protected.npz",
        **{key: value[:9] for key, value in whole.items() if key != "classes"},
    )
    assert verify(tmp_path).missing == [dataset.ids[9]]
    (tmp_path / "protected.npz").unlink()
    assert "no such file" in verify(tmp_path).text()


def test_open_protected_refuses_what_is_not_whole(tmp_path, out, dataset):
    spoil(out, dataset, "missing")
    with pytest.raises(DataError, match="1 of 10 written pictures are missing: images/ant/0.png"):
        open_protected(out)
    colour_picture(1, 9, 9).save(out / "images" / "ant" / "0.png")
    with pytest.raises(DataError, match="2 different sizes"):
        open_protected(out)
    Image.fromarray(np.asarray(Image.open(out / "images" / "ant" / "3.png"))).save(
        out / "images" / "ant" / "0.png"
    )
    shutil.rmtree(out / "noise")
    assert len(open_protected(out)) == 10
    NoiseStore.create(tmp_path / "begun", dataset, per="sample", eps=8 / 255, header=HEADER)
    for action in (open_protected, verify):
        with pytest.raises(DataError, match="unfinished"):
            action(tmp_path / "begun")
        with pytest.raises(DataError, match="no such directory"):
            action(tmp_path / "none")
