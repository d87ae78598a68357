"""A plan looks at a few pictures only, and says what then happens."""

import random
import time

import pytest
from PIL import Image

from fastue.commands.protect import protect
from fastue.data import folder
from fastue.data.sources import open_dataset, survey

SMALL = {"arch": "cnn-w4", "precision": "float32", "batch": 32, "steps": 2, "device": "cpu"}


def planned(source, out, **settings):
    return protect(source, out, plan=True, check=False, **{**SMALL, **settings}).plan


def test_a_survey_decodes_its_sample_only(tiny_folder, monkeypatch):
    source, seen, decode = tiny_folder(), [], folder.decode

    def counted(path, size=None):
        seen.append(path.name)
        return decode(path, size)

    monkeypatch.setattr(folder, "decode", counted)
    few = survey(source, count=20)
    assert len(few.data) == 20 and len(seen) == 21  # the first one is looked at for the size
    monkeypatch.setattr(folder, "decode", decode)
    every = open_dataset(source)
    assert few.labels.tolist() == every.labels.tolist() and few.data.classes == every.classes
    rows = [every.ids.index(name) for name in few.data.ids]
    assert rows == sorted(rows) and len(set(few.data.labels.tolist())) == 4
    assert (few.data.images == every.images[rows]).all()
    assert survey(source, count=20).data.ids == few.data.ids
    assert survey(every, count=20).data.ids == few.data.ids


def test_the_scan_of_a_folder_is_counted_once(tiny_folder, monkeypatch):
    source, scan = tiny_folder(), folder._scan

    def slow(*arguments):
        time.sleep(1)
        return scan(*arguments)

    monkeypatch.setattr(folder, "_scan", slow)
    assert 1 < survey(source, count=4).seconds < 10  # 24 times as many pictures


def test_a_survey_leaves_out_what_cannot_be_read(tiny_folder):
    source = tiny_folder()
    for path in (source / "0").iterdir():
        path.write_bytes(b"no picture")
    few = survey(source, count=50)
    assert len(few) == 96 and 0 < len(few.data) < 50 and 0 not in few.data.labels
    assert len(few.data.classes) == 4 and "left out" in few.data.notes[0]


@pytest.mark.parametrize("method", ["emn", "pue", "lsp"])
def test_numbers_grow_with_the_pictures(tiny_folder, tmp_path, method):
    settings = {"patch": 4, "device": "cpu"} if method == "lsp" else {**SMALL, "max_sweeps": 4}
    one, four = (
        protect(
            tiny_folder(f"of {count}", per_class=count),
            tmp_path / "P",
            method,
            plan=True,
            check=False,
            **settings,
        ).plan
        for count in (150, 600)
    )
    assert (one.pictures, four.pictures) == (600, 2400)
    for name in ("protected pictures", "noise", "noise while it runs"):
        assert 3.9 < four.disk[name] / one.disk[name] < 4.1
    assert four.memory["noise"] == 4 * one.memory["noise"]
    for plan in (one, four):
        rates, n = plan.rates, plan.pictures
        assert plan.seconds["decode"] == pytest.approx(n / rates["decoded"])
        assert plan.seconds["write"] > n / rates["written"]
        if method == "lsp":
            assert plan.seconds["noise"] == pytest.approx(n / rates["noise"])
        else:
            steps = 20 if method == "pue" else 10
            sweep = steps * 32 / rates["training"] + n / rates["noise sweep"]
            assert plan.sweeps == (4, 4)
            assert plan.seconds["noise"] == pytest.approx(4 * sweep)


def test_it_says_what_is_kept_in_files(tiny_folder, tmp_path):
    source, out = tiny_folder(per_class=40), tmp_path / "P"
    small = planned(source, out, max_sweeps=2)
    assert small.in_files == {"pictures": False, "noise": False} and "in files" not in small.text()
    assert small.memory["pictures"] == 160 * 3 * 12 * 12 and small.sweeps == (2, 2)
    assert small.memory["process"] > small.memory["pictures"]
    cached = planned(source, out, cache=tmp_path / "cache")
    assert cached.in_files["pictures"] and "pictures (the rest in files)" in cached.text()
    assert cached.disk["decoded pictures"] == 160 * 3 * 12 * 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_sizes_on_disk_are_those_of_the_run(tiny_folder, tmp_path):
    source, out = tiny_folder(), tmp_path / "P"
    plan = planned(source, out, max_sweeps=2)
    protect(source, out, check=False, max_sweeps=2, **SMALL)

    def total(*folders):
        return sum(path.stat().st_size for name in folders for path in (out / name).rglob("*.*"))

    pictures = sum(path.stat().st_size for path in (out / "images").rglob("*.png"))
    assert 0.5 < plan.disk["protected pictures"] / pictures < 2
    assert 0.5 < plan.disk["noise"] / total("noise") < 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sample", "class"])
def test_the_time_is_that_of_the_run(tmp_path, mode):
    draw, source = random.Random(0), tmp_path / "source"
    for label in range(4):
        (source / str(label)).mkdir(parents=True)
        for number in range(1000):
            picture = Image.frombytes("RGB", (8, 8), draw.randbytes(192)).resize((32, 32))
            picture.save(source / str(label) / f"{number}.jpg")
    settings = {"device": "cpu", "max_sweeps": 3, "mode": mode}
    protect(source, tmp_path / "warm", plan=True, **settings)
    plan = protect(source, tmp_path / "P", plan=True, check=False, **settings).plan
    start = time.perf_counter()
    protect(source, tmp_path / "P", check=False, **settings)
    spent = time.perf_counter() - start
    assert plan.spread == pytest.approx((plan.total, plan.total))
    assert 0.5 < plan.total / spent < 2, f"{plan.text()}\nit took {spent:.1f} s"
