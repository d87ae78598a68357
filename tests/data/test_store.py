"""The noise store: what is committed, what is refused, what a kill leaves."""

import json
import random
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from data_helpers import Child

from fastue.core.errors import DataError, UsageError
from fastue.data.layout import MANIFEST
from fastue.data.store import NoiseStore
from fastue.data.tensorfile import file_sha256, write_tensors

HEADER = {"method": "emn", "config": {"seed": 7, "steps": 20, "betas": (0.9, 0.99)}}


def noise_for(dataset, per="sample"):
    rows = len(dataset) if per == "sample" else dataset.num_classes
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-8, 9, (rows, *dataset.shape), dtype=torch.int8, generator=generator)


def create(path, dataset, **options):
    return NoiseStore.create(
        path,
        dataset,
        **{"per": "sample", "eps": 8 / 255, "header": HEADER, "shard_rows": 4, **options},
    )


def fill(store, noise):
    for shard in store.missing_shards():
        store.write_shard(shard, noise[store.shard_slice(shard)])
    return store


def test_l2_noise_is_held_to_its_length(tmp_path, dataset):
    store = create(tmp_path, dataset, eps=1.0, norm="l2", per="class", shard_rows=None)
    assert store.header["norm"] == "l2" and store.header["levels"] == 127
    value = 1.0 / dataset.images[0].numel() ** 0.5 * 255
    within = torch.full((3, *dataset.shape), int(value), dtype=torch.int8)
    with pytest.raises(DataError, match=r"2-norm 1.\d+ is over the budget 1"):
        store.write_shard(0, within + 1)
    store.write_shard(0, within)
    store.finish()
    manifest = tmp_path / MANIFEST
    assert NoiseStore.open(tmp_path).budget.norm == "l2"
    manifest.write_text(manifest.read_text().replace('"norm": "l2"', '"norm": "l7"'))
    with pytest.raises(DataError, match="damaged"):
        NoiseStore.open(tmp_path)


def test_a_store_in_linf_says_nothing_of_norm_and_change(finished):
    """So that those of earlier versions stay as they are; they are read as linf and additive."""
    assert not {"norm", "change"} & set(finished.manifest)
    assert finished.budget.norm == "linf" and finished.change == "additive"


def test_another_norm_is_another_run(tmp_path, dataset):
    create(tmp_path, dataset, eps=0.2)
    with pytest.raises(UsageError, match="another norm"):
        create(tmp_path, dataset, eps=0.2, norm="l2")


def test_a_change_of_a_later_version_is_refused(tmp_path, dataset):
    with pytest.raises(UsageError, match="change 'blur'"):
        create(tmp_path, dataset, change="blur")
    store = fill(create(tmp_path, dataset, change="positive"), noise_for(dataset))
    store.finish()
    assert NoiseStore.open(tmp_path).change == "positive"
    manifest = tmp_path / MANIFEST
    manifest.write_text(manifest.read_text().replace('"positive"', '"blur"'))
    with pytest.raises(DataError, match="needs a newer fastue"):
        NoiseStore.open(tmp_path)


@pytest.fixture
def finished(tmp_path, dataset):
    store = fill(create(tmp_path / "out", dataset), noise_for(dataset))
    store.finish()
    return store


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("per", ["sample", "class"])
@pytest.mark.parametrize("shard_rows", [1, 2, 4, 100, None])
def test_noise_comes_back_by_row_and_by_id(tmp_path, dataset, per, shard_rows):
    noise = noise_for(dataset, per)
    fill(create(tmp_path, dataset, per=per, shard_rows=shard_rows), noise).finish()
    store = NoiseStore.open(tmp_path)
    by_row = noise if per == "sample" else noise[dataset.labels]
    index = [9, 0, 3, 3, 8]
    assert torch.equal(store.bank(), noise)
    for wanted in (
        index,
        np.array(index),
        torch.tensor(index),
        [dataset.ids[row] for row in index],
    ):
        assert torch.equal(store.rows(wanted), by_row[index])
    assert store.rows([]).shape == (0, *dataset.shape)
    for wrong in ([10], [-1], ["cow/nobody.jpg"]):
        with pytest.raises(DataError):
            store.rows(wrong)


def test_rows_are_copies(finished):
    before = finished.bank()
    finished.rows([0, 1]).zero_()
    assert torch.equal(finished.bank(), before)


def test_the_manifest_says_it_all(finished, dataset):
    manifest = json.loads((finished.directory / MANIFEST).read_text())
    assert manifest == NoiseStore.open(finished.directory).manifest
    expected = {
        "format": 1, "method": "emn", "seed": 7, "compat": "none", "levels": 8, "eps": 8 / 255, "per": "sample",
        "shape": [3, 6, 5], "rows": 10, "shard_rows": 4, "ids": dataset.ids, "labels": dataset.labels.tolist(),
        "classes": dataset.classes, "source": "fixture", "source_fingerprint": dataset.fingerprint(),
    }  # fmt: skip
    assert {key: manifest[key] for key in expected} == expected
    assert [entry["rows"] for entry in manifest["shards"]] == [4, 4, 2]
    for entry in manifest["shards"]:
        assert entry["sha256"] == file_sha256(finished.directory / entry["file"])
    assert sorted(tree(finished.directory)) == [
        MANIFEST,
        *(f"noise/shard-0000{k}.safetensors" for k in range(3)),
    ]


def test_equal_runs_give_equal_bytes_in_any_order(tmp_path, dataset):
    noise = noise_for(dataset)
    one = fill(create(tmp_path / "one", dataset), noise)
    one.finish()
    time.sleep(0.01)
    two = create(tmp_path / "two", dataset, header={**HEADER})
    for shard in (2, 0, 1, 0):
        two.write_shard(
            shard, noise[two.shard_slice(shard)].contiguous(memory_format=torch.channels_last)
        )
    two.finish()
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: n.float(), "must be int8"),
        (lambda n: n.to(torch.int16), "must be int8"),
        (lambda n: n[:3], r"not int8 \[3, 3, 6, 5\]"),
        (lambda n: n.transpose(2, 3), "must be int8"),
        (lambda n: n.clone().fill_(9), "9/255 is over the budget 8/255"),
        (lambda n: n.clone().fill_(-9), "9/255 is over"),
        (lambda n: n.clone().fill_(-128), "128/255 is over"),
    ],
)
def test_noise_that_breaks_the_rules_is_not_committed(tmp_path, dataset, change, message):
    store = create(tmp_path, dataset)
    with pytest.raises(DataError, match=message):
        store.write_shard(0, change(noise_for(dataset)[:4]))
    assert store.missing_shards() == [0, 1, 2]
    with pytest.raises(IndexError):
        store.write_shard(3, noise_for(dataset)[:4])


@pytest.mark.parametrize(
    ("eps", "levels"), [(8 / 255, 8), (0.03, 7), (1 / 255, 1), (127 / 255, 127), (16 / 255, 16)]
)
def test_budget_in_whole_levels(tmp_path, dataset, eps, levels):
    assert create(tmp_path, dataset, eps=eps).header["levels"] == levels


@pytest.mark.parametrize(
    "options",
    [
        {"eps": 0.0},
        {"eps": 8.0},
        {"eps": float("nan")},
        {"eps": 8 / 255, "levels": 9},
        {"per": "picture"},
        {"header": {}},
    ]
    + [{"header": {**HEADER, "x": float("nan")}}, {"header": {**HEADER, "x": torch.ones(1)}}],
)
def test_wrong_arguments(tmp_path, dataset, options):
    with pytest.raises(UsageError):
        create(tmp_path / "out", dataset, **options)
    assert not (tmp_path / "out").exists()


def test_an_unfinished_store(tmp_path, dataset):
    store = create(tmp_path, dataset)
    store.write_shard(1, noise_for(dataset)[4:8])
    assert not (tmp_path / MANIFEST).exists()
    for action in (lambda: store.manifest, lambda: NoiseStore.open(tmp_path)):
        with pytest.raises(DataError, match="unfinished; start it again"):
            action()
    with pytest.raises(DataError, match="2 shards are not written yet, the first is 0"):
        store.finish()
    again = create(tmp_path, dataset)
    assert again.missing_shards() == [0, 2]
    fill(again, noise_for(dataset)).finish()
    assert torch.equal(NoiseStore.open(tmp_path).bank(), noise_for(dataset))


def test_a_finished_store_is_opened_not_remade(finished, dataset):
    before = tree(finished.directory)
    again = create(finished.directory, dataset)
    assert again.finished and again.missing_shards() == [] and again.finish() == finished.manifest
    assert tree(finished.directory) == before


@pytest.mark.parametrize("state", ["unfinished", "finished"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 4 / 255}, "another eps"),
        ({"per": "class"}, "another per"),
        ({"header": {"method": "random", "config": HEADER["config"]}}, "another method"),
        (
            {"header": {"method": "emn", "config": {**HEADER["config"], "steps": 10}}},
            r"another steps \(20, now 10\)",
        ),
        ({"header": {**HEADER, "compat": "emn2021"}}, "another compat"),
        ({"shard_rows": 5}, "another shard_rows"),
    ],
)
def test_another_run_is_not_continued(tmp_path, dataset, state, options, message):
    store = create(tmp_path, dataset)
    if state == "finished":
        fill(store, noise_for(dataset)).finish()
    with pytest.raises(UsageError, match=message):
        create(tmp_path, dataset, **options)
    with pytest.raises(UsageError, match="another source_fingerprint"):
        create(tmp_path, replace(dataset, ids=["new", *dataset.ids[1:]]))


def test_other_peoples_files_are_not_touched(tmp_path, dataset):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="holds files that no fastue run here wrote"):
        create(tmp_path, dataset)
    assert list(tree(tmp_path)) == ["images/holiday.png"]
    with pytest.raises(DataError, match="not made by fastue"):
        NoiseStore.open(tmp_path)
    with pytest.raises(DataError, match="no such directory"):
        NoiseStore.open(tmp_path / "none")


def test_what_a_kill_before_the_first_file_leaves_is_cleared(tmp_path, dataset):
    (tmp_path / "noise").mkdir()
    (tmp_path / "noise" / "unfinished.json.99.fastue-tmp").write_bytes(b"{")
    store = create(tmp_path, dataset)
    (tmp_path / "noise" / "shard-00000.safetensors.99.fastue-tmp").write_bytes(b"half")
    fill(create(tmp_path, dataset), noise_for(dataset)).finish()
    assert store.shard_count == 3 and not list(tmp_path.rglob("*.fastue-tmp"))


def test_damaged_shards_are_named_and_written_again_when_unfinished(tmp_path, dataset):
    store = fill(create(tmp_path, dataset), noise_for(dataset))
    data = bytearray(store.shard_path(1).read_bytes())
    data[-3] ^= 1
    store.shard_path(1).write_bytes(bytes(data))
    store.shard_path(2).write_bytes(b"")
    assert create(tmp_path, dataset).missing_shards() == [1, 2]


def test_shards_of_another_run_do_not_count(tmp_path, dataset):
    one = fill(create(tmp_path / "one", dataset), noise_for(dataset))
    two = create(tmp_path / "two", dataset, header={"method": "other", "config": {}})
    shutil.copy(one.shard_path(0), two.shard_path(0))
    shutil.copy(one.shard_path(0), one.shard_path(1))
    assert two.missing_shards() == [0, 1, 2] and one.missing_shards() == [1]


def spoil_shard(store, kind):
    path = store.shard_path(1)
    if kind == "gone":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif kind == "bit":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    elif kind == "rewritten":
        noise = -store.bank()[store.shard_slice(1)]
        write_tensors(path, {"noise": noise}, store._shard_state(1))
    elif kind == "over budget":
        write_tensors(
            path, {"noise": torch.full((4, 3, 6, 5), 9, dtype=torch.int8)}, store._shard_state(1)
        )


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gone", "no such file"),
        ("cut", "damaged"),
        ("bit", "checksum"),
        ("rewritten", "changed"),
        ("over budget", "budget"),
    ],
)
def test_open_notices_spoilt_shards(finished, kind, message):
    spoil_shard(finished, kind)
    with pytest.raises(DataError, match=f"shard-00001.*{message}"):
        NoiseStore.open(finished.directory)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format=2),
        lambda m: m.pop("ids"),
        lambda m: m.update(labels=m["labels"][:-1]),
        lambda m: m["labels"].__setitem__(0, 3),
        lambda m: m["ids"].__setitem__(0, m["ids"][1]),
        lambda m: m.update(rows=9),
        lambda m: m.update(levels=9),
        lambda m: m.update(shape=[3, 6]),
        lambda m: m.update(shards=m["shards"][:-1]),
        lambda m: m["shards"][0].update(file="../../etc/passwd"),
        lambda m: m.update(shards=None),
        lambda m: m.update(
            pictures={"kind": "png", "hashes": "noise/pictures.safetensors", "files": ["../x"] * 10}
        ),
        lambda m: m.update(
            pictures={"kind": "png", "hashes": "/etc/passwd", "files": ["images/x"] * 10}
        ),
    ],
)
def test_manifests_that_do_not_hold_together(finished, change):
    path = finished.directory / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="manifest.json: (damaged|format)"):
        NoiseStore.open(finished.directory)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "\xff"])
def test_manifests_that_are_not_json_objects(finished, text):
    (finished.directory / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="manifest.json: damaged"):
        NoiseStore.open(finished.directory)


def test_killed_at_any_moment_and_started_again_ends_in_the_same_bytes(tmp_path, dataset):
    noise = noise_for(dataset)

    def work(say):
        store = create(tmp_path / "killed", dataset, shard_rows=1)
        say("started")
        fill(store, noise).finish()
        say("finished")

    fill(create(tmp_path / "whole", dataset, shard_rows=1), noise).finish()
    cut = 0
    for attempt in range(25):
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        for _ in range(2):
            child = Child(work)
            child.first_word()
            time.sleep(random.Random(attempt).uniform(0, 0.03))
            child.kill()
            cut += not (tmp_path / "killed" / MANIFEST).exists()
        Child(work).wait()
        assert tree(tmp_path / "killed") == tree(tmp_path / "whole")
    assert cut > 0


def test_a_store_larger_than_the_disk_stops_at_once(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(DataError, match="are needed and 10 bytes are free"):
        create(tmp_path / "out", dataset)
    assert not (tmp_path / "out").exists()
