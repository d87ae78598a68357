"""Pictures of any size: noise for their views, enlarged; written, checked, read back."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import colour_picture
from PIL import Image

from fastue.commands.attack import attack
from fastue.commands.protect import protect
from fastue.core.errors import DataError, UsageError
from fastue.data import fullsize
from fastue.data.dataset import ImageDataset
from fastue.data.pictures import decode
from fastue.data.protected import Protected
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.verify import open_protected, verify
from fastue.data.writers import write_folder
from fastue.protocol import cells

SIZE = 16
SIZES = [(16, 16), (40, 23), (23, 61), (11, 9), (12, 30), (33, 33)]  # width, height
LSP = {"method": "lsp", "patch": 4, "norm": "linf", "eps": 8 / 255, "check": False, "device": "cpu"}
EMN = {
    "arch": "cnn-w8", "precision": "float32", "batch": 4, "train_steps": 2, "max_sweeps": 1,
    "steps": 2, "subset": 1.0, "device": "cpu", "check": False,
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two classes of JPEG pictures of six sizes, one gray, one on its side by its EXIF tag."""
    root = tmp_path / "source"
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for number, (width, height) in enumerate(SIZES):
            picture = colour_picture(10 * label + number, 6, 5).resize((width, height))
            picture.save(root / name / f"{number}.jpg", quality=90)
    Image.open(root / "cat" / "2.jpg").convert("L").save(root / "cat" / "2.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / "dog" / "1.jpg").save(root / "dog" / "1.jpg", exif=exif)
    return root


def written(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in [*(out / "images").rglob("*.png"), out / "manifest.json"]
    }


def by_hand(noise: np.ndarray, height: int, width: int) -> np.ndarray:
    """The noise [C,S,S] where a picture's pixels are in its view, for pictures whose sides are
    whole multiples of S: repeated, and mirrored beside the view."""
    times = min(height, width) // noise.shape[1]
    whole = np.concatenate([noise[:, :, ::-1], noise, noise[:, :, ::-1]], 2)
    whole = np.concatenate([whole[:, ::-1], whole, whole[:, ::-1]], 1)
    whole = whole.repeat(times, 1).repeat(times, 2)
    top, left = (whole.shape[1] - height) // 2, (whole.shape[2] - width) // 2
    return whole[:, top : top + height, left : left + width]


def random_noise(channels: int = 3, levels: int = 8, side: int = SIZE) -> np.ndarray:
    return np.random.default_rng(3).integers(-levels, levels + 1, (channels, side, side), np.int8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (48, 96), (64, 32), (16, 40)])
def test_enlarged_noise_repeats_in_the_view_and_is_mirrored_beside_it(shape, channels):
    noise = random_noise(channels)
    assert np.array_equal(fullsize.enlarge(noise, *shape), by_hand(noise, *shape))


@pytest.mark.parametrize("levels", [1, 8, 127])
@pytest.mark.parametrize("shape", [(9, 11), (1, 1), (5, 100), (23, 40), (100, 3), (17, 16)])
def test_enlarged_noise_keeps_the_budget_at_odd_sizes(shape, levels):
    noise = fullsize.enlarge(random_noise(levels=levels), *shape)
    assert noise.dtype == np.int8 and noise.shape == (3, *shape)
    assert np.abs(noise.astype(int)).max() <= levels
    for strongest in (-levels, levels):  # the arithmetic of means loses nothing of a flat field
        flat = np.full((3, SIZE, SIZE), strongest, np.int8)
        assert (fullsize.enlarge(flat, *shape) == strongest).all()


@pytest.mark.parametrize(
    ("shape", "least"), [((24, 24), 0.9), ((50, 41), 0.9), ((64, 90), 0.95), ((12, 14), 0.65)]
)
def test_the_view_of_a_protected_picture_shows_the_noise(shape, least):
    signs = np.where(random_noise(side=8) > 0, 8, -8).astype(np.int8).repeat(2, 1).repeat(2, 2)
    grey = np.full((*shape, 3), 128, np.uint8)
    change = (grey + fullsize.enlarge(signs, *shape).transpose(1, 2, 0)).astype(np.uint8)
    shown = fullsize.view(change, SIZE).transpose(2, 0, 1).astype(int) - 128
    product = (shown * signs).sum() / np.sqrt((shown**2).sum() * (signs.astype(int) ** 2).sum())
    assert product > least, product


def test_a_view_is_what_decode_shows(source):
    for path in source.rglob("*.jpg"):
        assert np.array_equal(fullsize.view(decode(path)[0], SIZE), decode(path, SIZE)[0])


@pytest.mark.parametrize("settings", [LSP, {**LSP, "mode": "class"}, EMN, {**EMN, "mode": "class"}])
def test_pictures_are_written_at_their_own_size(source, tmp_path, settings):
    out = tmp_path / "out"
    protect(source, out, size=SIZE, full_size=True, **settings)
    data, store = open_dataset(source, size=SIZE), NoiseStore.open(out)
    files = store.manifest["pictures"]["files"]
    noise = store.rows(torch.arange(len(data)))
    assert store.manifest["full_size"] and store.manifest["size"] == SIZE
    assert noise.abs().max() > 0
    for row, name in enumerate(data.ids):
        clean, _ = decode(source / name)
        picture = np.asarray(Image.open(out / files[row]))
        assert picture.shape == (*clean.shape[:2], 3), name
        own = fullsize.enlarge(noise[row].numpy(), *clean.shape[:2]).transpose(1, 2, 0)
        assert np.array_equal(picture, (clean.astype(int) + own).clip(0, 255)), name
        assert np.abs(picture - clean.astype(int)).max() <= 8, name
    turned = files[data.ids.index("dog/1.jpg")]
    assert Image.open(out / turned).size == (23, 40) and not Image.open(out / turned).getexif()
    result = verify(out, source)
    assert result.ok and result.checked == len(data) and 0 < result.max_levels <= 8
    assert verify(out, data).ok and verify(out).ok
    assert (out / "preview.png").exists()


def test_a_set_of_gray_pictures_stays_gray(source, tmp_path):
    for path in source.rglob("*.jpg"):
        Image.open(path).convert("L").save(path)
    protect(source, tmp_path / "out", size=SIZE, full_size=True, **LSP)
    assert {Image.open(p).mode for p in (tmp_path / "out" / "images").rglob("*.png")} == {"L"}
    assert verify(tmp_path / "out", source).ok and open_protected(tmp_path / "out").shape[0] == 1


def test_what_is_read_back_are_the_views(source, tmp_path):
    out = tmp_path / "out"
    protect(source, out, size=SIZE, full_size=True, **LSP)
    data = open_protected(out)
    assert data.shape == (3, SIZE, SIZE) and data.ids == open_dataset(source, size=SIZE).ids
    for row, name in enumerate(NoiseStore.open(out).manifest["pictures"]["files"]):
        shown = torch.from_numpy(decode(out / name, SIZE)[0].copy()).permute(2, 0, 1)
        assert torch.equal(data.images[row], shown)
    for same in (Protected(out), Protected(out, originals=source)):
        assert all(torch.equal(same[row][0], data.images[row]) for row in range(len(data)))


@pytest.mark.parametrize("with_source", [True, False])
def test_verify_finds_a_changed_pixel_and_another_size(source, tmp_path, with_source):
    out = tmp_path / "out"
    protect(source, out, size=SIZE, full_size=True, **LSP)
    pixels = np.asarray(Image.open(out / "images/cat/1.png")).copy()
    pixels[0, 39, 0] ^= 1  # in the corner, outside the view
    Image.fromarray(pixels).save(out / "images/cat/1.png")
    Image.open(out / "images/dog/5.png").crop((0, 0, 33, 32)).save(out / "images/dog/5.png")
    result = verify(out, source if with_source else None)
    assert "images/cat/1.png" in result.changed and "images/dog/5.png" in result.changed
    assert set(result.changed) == {"images/cat/1.png", "images/dog/5.png"}
    assert result.wrong_size == (["images/dog/5.png"] if with_source else [])


def test_verify_needs_the_files(source, tmp_path, dataset):
    protect(source, tmp_path / "out", size=SIZE, full_size=True, **LSP)
    data = open_dataset(source, size=SIZE)
    no_files = ImageDataset(data.images, data.labels, data.ids, data.classes, "arrays")
    with pytest.raises(DataError, match="arrays: pictures at full size come from a folder"):
        verify(tmp_path / "out", no_files)


def test_written_again_only_what_is_missing_gets_the_same_bytes(source, tmp_path):
    out = tmp_path / "out"
    protect(source, out, size=SIZE, full_size=True, **LSP)
    before, data, store = written(out), open_dataset(source, size=SIZE), NoiseStore.open(out)
    (out / "images/cat/1.png").unlink()
    (out / "images/dog/3.png").write_bytes(b"half")
    kept = (out / "images/cat/0.png").stat().st_mtime_ns
    write_folder(out / "images", data, store.rows, full_size=True)
    assert written(out) == before
    assert (out / "images/cat/0.png").stat().st_mtime_ns == kept


@pytest.mark.parametrize("how", ["gone", "changed", "gray"])
def test_a_source_that_changes_in_the_run_is_noticed_and_can_be_restored(source, tmp_path, how):
    out, whole, kept = tmp_path / "out", tmp_path / "whole", tmp_path / "kept.jpg"
    protect(source, whole, size=SIZE, full_size=True, **EMN)
    target = source / "dog" / "4.jpg"
    shutil.copy2(target, kept)

    def meddle(phase, done, total, info):
        if phase == "write noise":
            target.unlink()
            if how == "changed":
                colour_picture(99, 12, 30).save(target)
            if how == "gray":
                Image.open(kept).convert("L").save(target)

    with pytest.raises(DataError, match=r"dog/4\.jpg.*restore it"):
        protect(source, out, size=SIZE, full_size=True, progress=meddle, **EMN)
    assert not (out / "manifest.json").exists() and (out / "noise/shard-00000.safetensors").exists()
    shutil.copy2(kept, target)
    protect(source, out, size=SIZE, full_size=True, **EMN)
    assert written(out) == written(whole)


def test_the_same_pixels_in_another_format_are_the_same_picture(source):
    data = open_dataset(source, size=SIZE)
    path, row = source / "cat/5.jpg", data.ids.index("cat/5.jpg")
    seen = data.images[row].permute(1, 2, 0).numpy()
    pixels = fullsize.original(path, seen)
    Image.fromarray(pixels).save(path, "PNG")
    assert np.array_equal(fullsize.original(path, seen), pixels)


def test_full_size_is_part_of_the_run(source, tmp_path):
    out = tmp_path / "out"
    protect(source, out, size=SIZE, full_size=True, **LSP)
    assert protect(source, out, size=SIZE, full_size=True, **LSP).perturbation is None
    with pytest.raises(UsageError, match="another full_size"):
        protect(source, out, size=SIZE, **LSP)
    protect(source, tmp_path / "views", size=SIZE, **LSP)
    manifest = NoiseStore.open(tmp_path / "views").manifest
    assert "full_size" not in manifest and "size" not in manifest
    with pytest.raises(UsageError, match="another full_size"):
        protect(source, tmp_path / "views", size=SIZE, full_size=True, **LSP)


def test_wrong_arguments_name_the_flag_before_anything_is_written(source, tmp_path, dataset):
    out = tmp_path / "out"
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 8, 8, 3), np.uint8), y=np.arange(4) % 2)
    for place, arguments in (
        (source, {**LSP}),
        (tmp_path / "a.npz", {**LSP, "size": SIZE}),
        ("demo:train", {**LSP, "size": 32}),
        (source, {**LSP, "size": SIZE, "norm": "l2", "eps": 1.0}),
        (open_dataset(source / ".." / "source", size=SIZE).subset([0, 6]), {**LSP, "norm": "l2"}),
    ):
        with pytest.raises(UsageError, match="--full-size"):
            protect(place, out, full_size=True, **arguments)
    with pytest.raises(DataError, match="full size come from a folder"):
        protect(dataset, out, full_size=True, **LSP)
    assert not out.exists()


def test_an_open_folder_is_as_good_as_its_name(source, tmp_path):
    data = open_dataset(source, size=SIZE, cache=tmp_path / "cache")
    assert data.pages is not None
    protect(data, tmp_path / "open", full_size=True, **LSP)
    protect(source, tmp_path / "named", size=SIZE, full_size=True, **LSP)
    assert written(tmp_path / "open") == written(tmp_path / "named")


def test_the_plan_counts_pixels_of_the_files(source, tmp_path):
    plans = [
        protect(source, tmp_path / "out", size=SIZE, full_size=full, plan=True, **LSP).plan
        for full in (False, True)
    ]
    small, large = (plan.disk["protected pictures"] for plan in plans)
    mean = np.mean([w * h for w, h in SIZES])
    assert large / small == pytest.approx(mean / SIZE**2, rel=0.02)


def test_attack_trains_on_views_and_needs_no_run_file(source, tmp_path, monkeypatch):
    out, sets = tmp_path / "out", []
    protect(source, out, size=SIZE, full_size=True, **LSP)
    (out / "run.json").unlink()  # its owner may have kept it back; the manifest has the size, too

    def fake(train, test, config, **options):
        sets.append((train, test))
        curves = dict.fromkeys(("accuracy", "picking", "scoring"), [50.0])
        return {**curves, "loss": [1.0], "train_accuracy": [99.0]}

    monkeypatch.setattr(cells, "train_victim", fake)
    test = open_dataset(source, size=SIZE)
    test = replace(test, images=255 - test.images)
    attack(out, test, source=source, arms=["clean", "protected"], arch="cnn-w8", epochs=1)
    clean, protected = (train for train, _ in sets)
    assert {data.shape for pair in sets for data in pair} == {(3, SIZE, SIZE)}
    assert torch.equal(clean.images, open_dataset(source, size=SIZE).images)
    assert torch.equal(protected.images, open_protected(out).images)
    assert not torch.equal(protected.images, clean.images)
