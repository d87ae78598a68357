"""FFCV itself: it reads what we write, we read what it writes, and its loader keeps our promises."""

import importlib.util
import io
import itertools
import os
import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastue import ops
from fastue.commands.protect import protect
from fastue.core import env
from fastue.core.errors import DataError, UsageError
from fastue.data.dataset import ImageDataset, batches, epoch_order
from fastue.data.ffcv import FFCVLoader, beton_blocks, open_beton, write_beton
from fastue.data.writers import protected_pictures

if importlib.util.find_spec("ffcv") is None and "ffcv" not in env.required_backends():
    pytest.skip("ffcv is not installed: make test-ffcv", allow_module_level=True)

ROOT = Path(__file__).parents[2]
ORDERS = ("sequential", "random", "quasi_random")
N = 203  # not a multiple of any batch below


def pictures(n: int, height: int, width: int) -> ImageDataset:
    generator = torch.Generator().manual_seed(0)
    return ImageDataset(
        images=torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator),
        labels=torch.arange(n) % 3,
        ids=[f"k/{row}.png" for row in range(n)],
        classes=["ant", "bee", "cow"],
    )


@pytest.fixture(scope="module")
def clean():
    return pictures(N, 20, 16)


@pytest.fixture(scope="module")
def large():
    """Thirty pictures of 0.9 MB: nine fill a page."""
    return pictures(30, 500, 600)


@pytest.fixture(scope="module")
def noise():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-8, 9, (N, 3, 20, 16), dtype=torch.int8, generator=generator)


@pytest.fixture(scope="module")
def path(clean, tmp_path_factory):
    path = tmp_path_factory.mktemp("beton") / "clean.beton"
    write_beton(path, clean)
    return path


class Rows:
    """An indexed data set, as FFCV's writer takes it."""

    def __init__(self, *columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns[0])

    def __getitem__(self, row):
        return tuple(column[row] for column in self.columns)


def write_by_ffcv(path, fields, *columns):
    import ffcv

    writer = ffcv.DatasetWriter(str(path), fields, num_workers=1)
    writer.from_indexed_dataset(Rows(*columns))


def test_our_bytes_are_those_of_ffcvs_own_writer(tmp_path, large):
    from ffcv.fields import IntField, RGBImageField

    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField(), "index": IntField()}
    pixels = large.images.permute(0, 2, 3, 1).numpy()
    write_by_ffcv(tmp_path / "theirs.beton", fields, pixels, large.labels.tolist(), range(30))
    write_beton(tmp_path / "ours.beton", large)
    assert (tmp_path / "theirs.beton").read_bytes() == (tmp_path / "ours.beton").read_bytes()


@pytest.mark.parametrize("batch", [16, 500])
@pytest.mark.parametrize("order", ORDERS)
def test_every_picture_once_an_epoch_with_its_own_noise(path, clean, noise, order, batch):
    """Batches are kept to the end: FFCV's own would have changed by then."""
    loader = FFCVLoader(path, batch, order, seed=3)
    assert (loader.ids, loader.classes) == (clean.ids, clean.classes)
    written = protected_pictures(clean.images, noise, torch.arange(N))
    orders = []
    for loader.epoch in (1, 2):
        found = list(loader)
        assert [len(b.y) for b in found] == [len(b.y) for b in batches(clean, batch)]
        assert len(found) == len(loader)
        for b in found:
            assert b.x.is_contiguous(memory_format=torch.channels_last)
            assert b.y.dtype == b.index.dtype == torch.int64
            assert torch.equal(b.x, clean.images[b.index])
            assert torch.equal(b.y, clean.labels[b.index])
            shown = ops.apply_noise(b.x, noise, b.index, scale=1 / 255)
            assert torch.equal((shown * 255).round().byte(), written[b.index])
        orders.append(torch.cat([b.index for b in found]).tolist())
    assert all(sorted(rows) == list(range(N)) for rows in orders)
    again = FFCVLoader(path, batch, order, seed=3)
    again.epoch = 2
    assert torch.cat([b.index for b in again]).tolist() == orders[1]
    if order == "sequential":
        assert orders[0] == orders[1] == list(range(N))
    else:
        assert orders[0] != orders[1]
        loader.seed = 4
        assert torch.cat([b.index for b in loader]).tolist() not in orders


def test_random_is_the_order_in_memory(path, clean):
    loader = FFCVLoader(path, 64, "random", seed=5)
    loader.epoch = 7
    for ours, theirs in zip(
        loader, batches(clean, 64, epoch_order(N, seed=5, epoch=7)), strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_quasi_random_takes_one_page_after_the_other(tmp_path, large, monkeypatch):
    """Where no more than one is mixed."""
    monkeypatch.setattr("fastue.data.ffcv._MIXED", 1)
    write_beton(tmp_path / "large.beton", large)
    rows = []
    for b in FFCVLoader(tmp_path / "large.beton", 7, "quasi_random"):
        assert torch.equal(b.x, large.images[b.index])
        rows += b.index.tolist()
    pages = [row // 9 for row in rows]
    runs = [page for page, _ in itertools.groupby(pages)]
    assert sorted(rows) == list(range(30)) and sorted(runs) == [0, 1, 2, 3]
    assert pages != sorted(pages) and rows[:9] != sorted(rows[:9])


def test_memory_that_nobody_holds_is_used_again(tmp_path, large, monkeypatch):
    write_beton(tmp_path / "large.beton", large)
    loader = FFCVLoader(tmp_path / "large.beton", 1)
    made, empty = [], np.empty
    monkeypatch.setattr(np, "empty", lambda *a, **k: made.append(a[0]) or empty(*a, **k))
    for loader.epoch in range(2):
        for _ in loader:
            pass
    assert 1 <= made.count(3 * 500 * 600) <= 8


def test_gray_pictures_stay_gray(tmp_path, clean):
    gray = replace(clean, images=clean.images[:, :1])
    write_beton(tmp_path / "gray.beton", gray)
    for b in FFCVLoader(tmp_path / "gray.beton", 100):
        assert torch.equal(b.x, gray.images[b.index])


@pytest.mark.parametrize("order", ORDERS)
def test_an_early_stop_leaves_no_thread(path, order):
    loader = FFCVLoader(path, 8, order)
    before = set(threading.enumerate())
    for taken in (1, 2, 9):
        for number, _ in enumerate(loader, 1):
            if number == taken:
                break
        assert set(threading.enumerate()) == before
    assert sum(len(b.y) for b in loader) == N and set(threading.enumerate()) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_in_ffcvs_thread_is_raised(path, monkeypatch):
    from ffcv.loader.epoch_iterator import EpochIterator

    loader = FFCVLoader(path, 64)
    before = set(threading.enumerate())
    monkeypatch.setattr(EpochIterator, "run_pipeline", lambda *args: 1 / 0)
    with pytest.raises(DataError, match="FFCV stopped"):
        list(loader)
    assert set(threading.enumerate()) == before


def python(code: str, *arguments, **options) -> subprocess.CompletedProcess:
    """A process of its own: what importing ffcv does is done once, and noise comes at the end."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_torchs_threads_stay_and_nothing_is_said_at_the_end(path):
    code = """if True:
        import gc, sys, threading, torch
        from fastue.data.ffcv import FFCVLoader
        torch.set_num_threads(3)
        seen = set()
        for order in ("quasi_random", "sequential", "quasi_random", "random"):
            loader = FFCVLoader(sys.argv[1], 16, order, workers=2)
            for batch in loader:
                seen.add(torch.get_num_threads())
                worker = threading.Thread(target=lambda: seen.add(torch.get_num_threads()))
                worker.start(), worker.join()
            for batch in loader:
                break
        del loader
        gc.collect()
        print(seen, threading.active_count())
    """
    run = python(code, path)
    assert (run.stdout, run.stderr, run.returncode) == ("{3} 1\n", "", 0)


def test_the_page_runs_as_written(tmp_path):
    """Its last program knows nothing of fastue and trains on the protected .beton alone."""
    data = pictures(96, 32, 32)
    for picture, name, label in zip(data.images, data.ids, data.labels.tolist(), strict=True):
        file = tmp_path / "pictures" / "train" / data.classes[label] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(file)
    protect(tmp_path / "pictures" / "train", tmp_path / "protected", "lsp", check=False)
    text = (ROOT / "docs" / "FFCV.md").read_text(encoding="utf-8")
    ours, plain = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    where = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": paths}}
    run = python(ours, **where)
    assert run.returncode == 0, run.stderr
    (tmp_path / "protected.beton.json").unlink()
    run = python(f"{plain}\nimport sys; assert 'fastue' not in sys.modules", **where)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    assert [line[4] for line in lines] == ["96"] * 20
    assert int(lines[0][2]) < 60 and int(lines[-1][2]) > 90


class TestForeign:
    """Files that FFCV wrote, under names of their own."""

    @pytest.fixture
    def smooth(self):
        """Twelve 40x30 pictures that JPEG keeps well."""
        column, row = np.meshgrid(np.arange(30), np.arange(40))
        return [
            np.stack((5 * row + k, 6 * column + k, 3 * (row + column)), 2).astype(np.uint8)
            for k in range(12)
        ]

    def fields(self, mode="raw", **more):
        from ffcv.fields import IntField, RGBImageField

        return {"picture": RGBImageField(write_mode=mode, **more), "target": IntField()}

    def test_names_and_more_fields(self, tmp_path, smooth):
        from ffcv.fields import BytesField, FloatField, JSONField, NDArrayField

        fields = {
            "b": BytesField(),
            "f": FloatField(),
            **self.fields(),
            "j": JSONField(),
            "a": NDArrayField(np.dtype("float32"), (3,)),
        }
        columns = (
            [np.arange(5, dtype=np.uint8)] * 12,
            [0.5] * 12,
            smooth,
            [k % 4 for k in range(12)],
            [{"k": 1}] * 12,
            [np.ones(3, np.float32)] * 12,
        )
        write_by_ffcv(tmp_path / "set.beton", fields, *columns)
        data = open_beton(tmp_path / "set.beton")
        assert np.array_equal(data.images.permute(0, 2, 3, 1).numpy(), np.stack(smooth))
        assert data.labels.tolist() == columns[3] and data.classes == list("0123")
        loader = FFCVLoader(tmp_path / "set.beton", 5, "random")
        assert (loader.ids, loader.classes) == (data.ids, data.classes)
        for b in loader:
            assert torch.equal(b.x, data.images[b.index])
            assert torch.equal(b.y, data.labels[b.index])

    def test_jpeg(self, tmp_path, smooth):
        from ffcv.fields.rgb_image import encode_jpeg

        fields = self.fields("jpg", jpeg_quality=95)
        write_by_ffcv(tmp_path / "set.beton", fields, smooth, range(12))
        ours = np.concatenate([pixels for pixels, _, _ in beton_blocks(tmp_path / "set.beton", 5)])
        for pixels, picture in zip(ours, smooth, strict=True):
            encoded = io.BytesIO(encode_jpeg(picture, 95).tobytes())
            assert np.array_equal(pixels, np.asarray(Image.open(encoded)))
        for b in FFCVLoader(tmp_path / "set.beton", 5):
            theirs = b.x.permute(0, 2, 3, 1).numpy().astype(int)
            assert np.abs(theirs - ours[b.index]).mean() < 2  # a fast, less exact decoder

    def test_jpeg_that_is_damaged(self, tmp_path, smooth):
        write_by_ffcv(tmp_path / "set.beton", self.fields("jpg"), smooth, range(12))
        body = (tmp_path / "set.beton").read_bytes()
        (tmp_path / "set.beton").write_bytes(body.replace(b"\xff\xd8\xff", b"\xff\xd8\x00"))
        with pytest.raises(DataError, match="damaged JPEG in row 0"):
            open_beton(tmp_path / "set.beton")

    def test_several_sizes(self, tmp_path, smooth):
        smooth[3] = smooth[3][:20]
        write_by_ffcv(tmp_path / "set.beton", self.fields(), smooth, range(12))
        for read in (open_beton, lambda path: FFCVLoader(path, 4)):
            with pytest.raises(
                DataError, match=r"2 different sizes \(30x40: 11; 30x20: 1\).*--size"
            ):
                read(tmp_path / "set.beton")
        data = open_beton(tmp_path / "set.beton", size=16)
        assert data.shape == (3, 16, 16) and data.notes == ["12 pictures resized to 16x16"]

    def test_fields_that_do_not_say_what_they_are(self, tmp_path, smooth):
        from ffcv.fields import FloatField, IntField, RGBImageField

        path, numbers = tmp_path / "set.beton", range(12)
        picture, number = {"p": RGBImageField()}, IntField()
        for fields, columns, message in [
            (picture | {"q": RGBImageField(), "y": number}, (smooth, smooth), "has 'p', 'q'"),
            ({"x": number}, (), "one picture field is needed; it has none"),
            (picture | {"y": number, "z": number}, (smooth, numbers), "label .* it has 'y', 'z'"),
            (picture | {"y": FloatField()}, (smooth,), "label .* it has none"),
        ]:
            write_by_ffcv(path, fields, *columns, numbers)
            with pytest.raises(DataError, match=message):
                open_beton(path)
        both = picture | {"y": number, "label": number}
        write_by_ffcv(path, both, smooth, [0] * 12, numbers)
        assert open_beton(path).labels.tolist() == list(numbers)

    def test_a_region_that_is_not_the_pictures_size(self, tmp_path, smooth):
        """FFCV would copy what the file says, past the end of its own memory."""
        path = tmp_path / "set.beton"
        write_by_ffcv(path, self.fields(), smooth, range(12))
        body = path.read_bytes()
        path.write_bytes(body[:-8] + (4000).to_bytes(8, "little"))
        for read in (open_beton, lambda path: FFCVLoader(path, 4)):
            with pytest.raises(DataError, match="damaged: 1 pictures, the first in row 11"):
                read(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0,), "batch"), ((4, "shuffled"), "sequential, random, quasi_random")],
)
def test_arguments(path, arguments, message):
    with pytest.raises(UsageError, match=message):
        FFCVLoader(path, *arguments)
