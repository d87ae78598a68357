"""Which victims are trained, on what, and which are found again."""

import fcntl
import json
from dataclasses import replace

import pytest
import torch

from fastue import countermeasures
from fastue.core.errors import DataError, UsageError
from fastue.countermeasures.base import Countermeasure
from fastue.data.budget import Budget
from fastue.models.training import train_step
from fastue.protocol import cells
from fastue.protocol.arms import ARMS
from fastue.protocol.cells import Material, evaluate
from fastue.victims.train import VictimConfig

LINF = Budget(8 / 255)
CONFIG = VictimConfig(epochs=2, batch=16)

# Names of row files as commit 3d645ad wrote them, for the setting of `first_setting`.
OLD_KEYS = {
    "clean": "907662dacee4aa83",
    "protected": "3a298ccf9f1dae29",
    "random-sample": "0f9ce8d309054f94",
    "random-class": "d16d7679134e89ca",
}


CURVES = {
    "loss": [1.0], "accuracy": [7.0], "picking": [7.0], "scoring": [7.0], "train_accuracy": [9.0],
    "separability": 99.5,
}  # fmt: skip


def halved(images, labels, seed):
    return images // 2


def other_step(*arguments, **options):
    return train_step(*arguments, **options)


@pytest.fixture
def victims(monkeypatch):
    """Nothing is trained; what would have been is in the list."""
    calls = []

    def fake(train, test, config, *, seed, step, progress):
        calls.append(
            {"train": train, "test": test, "arch": config.arch, "seed": seed, "step": step}
        )
        progress(config.epochs, config.epochs, {})
        halves = {"picking": [22.0, 12.0], "scoring": [18.0, 8.0]}
        accuracy = {"accuracy": [20.0, 10.0 + seed], "train_accuracy": [99.0]}
        return {"loss": [1.0, 0.5], **accuracy, **halves}

    monkeypatch.setattr(cells, "train_victim", fake)
    return calls


@pytest.fixture
def material(tiny):
    """A function (protection's seed, budget) -> Material."""

    def build(seed=9, budget=LINF):
        originals = tiny(source="o")
        return Material(tiny(seed=seed, source="p"), originals, tiny(seed=1), budget)

    return build


@pytest.fixture
def run(tmp_path):
    """A function (material, …) -> rows of an attack."""

    def attack(material, suite="none", archs=("cnn",), seeds=(0,), config=CONFIG, **options):
        suite = countermeasures.suite(suite)
        return list(
            evaluate(
                material,
                suite=suite,
                archs=list(archs),
                seeds=list(seeds),
                config=config,
                out=tmp_path,
                **options,
            )
        )

    return attack


def test_every_cell_is_a_row_and_is_trained_once(victims, material, run, tmp_path):
    both = {"archs": ["cnn", "vgg11"]}
    rows = run(material(), seeds=[0, 1], **both)
    assert len(rows) == len(victims) == 16
    names = {"countermeasure", "arch", "seed", "arm", "accuracy_final", "accuracy_peak"}
    assert names <= set(rows[0])
    assert json.loads((tmp_path / "results.json").read_text()) == rows
    assert {r["arm"] for r in rows} == set(ARMS) and rows[-1]["accuracy_final"] == 11.0
    assert rows[-1]["accuracy_peak"] == 20.0
    assert rows[-1]["accuracy_stopped"] == 18.0 and rows[-1]["epoch_stopped"] == 1
    again = run(material(), seeds=[0, 1, 2], **both)
    assert len(again) == 24 and len(victims) == 24
    # Another protection of the same source: its controls are the same victims, only the protected
    # arm is new.
    other = run(material(seed=8), seeds=[0, 1, 2], **both)
    assert len(other) == 24 and len(victims) == 30


def test_rows_of_earlier_versions_are_found(victims, material, run, tmp_path):
    """Their names are functions of pictures and settings; `none` and linf add nothing to them."""
    (tmp_path / "rows").mkdir()
    for arm, key in OLD_KEYS.items():
        (tmp_path / "rows" / f"{key}.json").write_text(json.dumps({"arm": arm, "old": True}))
    assert [(r["arm"], r["old"]) for r in run(material())] == [(arm, True) for arm in OLD_KEYS]
    assert not victims


def test_a_changed_setting_is_not_mixed_with_old_rows(victims, material, run):
    run(material())
    run(material(), config=VictimConfig(epochs=3, batch=16))
    assert len(victims) == 8
    run(material(budget=Budget(4 / 255)))
    assert len(victims) == 10, "the budget changes the random arms, and those only"
    run(material(budget=Budget(0.5, "l2")))
    assert len(victims) == 12
    run(material(budget=Budget(0.6, "l2")))
    assert len(victims) == 14


def test_a_partly_protected_set_is_a_function_of_both_sets(victims, material, run, tiny):
    arms = ("protected-50",)
    run(material(), arms=arms)
    run(material(), arms=arms)
    assert len(victims) == 1
    run(material(seed=8), arms=arms)
    assert len(victims) == 2, "another protection"
    run(replace(material(), originals=tiny(seed=3)), arms=arms)
    assert len(victims) == 3, "other originals"
    run(material(budget=Budget(4 / 255)), arms=arms)
    assert len(victims) == 3, "the budget of the same files is no setting"
    with pytest.raises(UsageError, match="--arms protected-30: use some of .*protected-25"):
        run(material(), arms=("protected", "protected-30"))
    with pytest.raises(UsageError, match="pass --source"):
        run(replace(material(), originals=None), arms=arms)


def test_a_countermeasure_reaches_every_arm(victims, material, run):
    pictures = material()
    rows = run(pictures, suite=["none", Countermeasure("halved", halved)])
    assert [r["countermeasure"] for r in rows] == ["none"] * 4 + ["halved"] * 4
    plain, treated = victims[:4], victims[4:]
    for before, after in zip(plain, treated, strict=True):
        assert torch.equal(after["train"].images, before["train"].images // 2)
        assert torch.equal(after["train"].labels, before["train"].labels)
        assert torch.equal(after["test"].images, pictures.test.images)
        assert after["step"] is train_step


def test_a_countermeasure_may_treat_test_pictures_and_replace_the_step(victims, material, run):
    pictures = material()
    run(pictures, suite=[Countermeasure("both", halved, test=True, step=other_step)])
    for call in victims:
        assert torch.equal(call["test"].images, pictures.test.images // 2)
        assert call["step"] is other_step


def test_a_changed_countermeasure_is_trained_anew(victims, material, run):
    run(material(), suite=["none", Countermeasure("halved", halved)])
    assert len(victims) == 8
    run(material(), suite=[Countermeasure("halved", halved), "none"])
    assert len(victims) == 8
    run(material(), suite=["none", Countermeasure("halved", halved, version=2)])
    assert len(victims) == 12


def test_progress_names_the_cell(victims, material, run):
    names = []
    run(material(), suite="none,jpeg", progress=lambda name, *rest: names.append(name))
    assert names[0].startswith("[1/8] clean cnn seed 0, ") and names[-1].startswith(
        "[8/8] random-class after jpeg cnn seed 0, "
    )


def test_what_cannot_be_compared_is_refused_before_work(victims, material, run, tiny, tmp_path):
    with pytest.raises(UsageError, match="--arms noisy"):
        run(material(), arms=("noisy",))
    alone = Material(tiny(), None, tiny(seed=1), LINF)
    with pytest.raises(UsageError, match="--source"):
        run(alone)
    small = tiny(seed=1)
    small.images = small.images[..., :10]
    with pytest.raises(DataError, match="12x10"):
        run(Material(tiny(), tiny(), small, LINF))
    assert not list(tmp_path.iterdir())
    assert len(run(alone, arms=("protected",))) == 1


def test_a_cell_that_fails_does_not_lose_the_others(victims, material, run, monkeypatch):
    def unlucky(train, test, config, **options):
        if options["seed"] == 1 and train.source == "p":
            raise DataError("no luck")
        return fine(train, test, config, **options)

    fine, failures = cells.train_victim, []
    monkeypatch.setattr(cells, "train_victim", unlucky)
    rows = run(material(), seeds=[0, 1], failed=lambda cell, error: failures.append((cell, error)))
    assert len(rows) == 2 * len(ARMS) - 1
    assert [(str(cell), str(error)) for cell, error in failures] == [
        ("protected cnn seed 1", "no luck")
    ]
    with pytest.raises(DataError, match="no luck"):
        run(material(), seeds=[1])


def test_a_cell_that_another_process_is_at_comes_last_and_is_not_trained_twice(
    victims, material, run, monkeypatch, tmp_path
):
    """The other process: holds the first cell's claim, and has its row when it lets go."""
    mine, theirs = material(), []
    (row,) = run(mine, arms=("clean",))
    (path,) = (tmp_path / "rows").glob("*.json")
    path.unlink()
    lock = path.with_suffix(".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def finish(*arguments, **options):
        if not theirs:  # while the second cell is trained here
            theirs.append(path.write_text(json.dumps(row)))
            lock.close()
        return fine(*arguments, **options)

    fine = cells.train_victim
    monkeypatch.setattr(cells, "train_victim", finish)
    rows = run(mine, arms=("clean", "protected"))
    assert [r["arm"] for r in rows] == ["protected", "clean"] and rows[1] == row
    assert len(victims) == 2  # the one before, and the protected one


def test_sets_with_pictures_in_common_are_refused(victims, material, run, tiny):
    fitting = material()
    for shared in ({"aux": fitting.originals}, {"aux": fitting.test}, {"test": fitting.originals}):
        with pytest.raises(DataError, match="are among"):
            run(replace(fitting, **shared))
    assert run(replace(fitting, aux=fitting.test, oracle=True))
    needy = Countermeasure("needy", data=lambda data, seed, means: means.aux, aux=True)
    with pytest.raises(UsageError, match="--suite needy: .*pass --aux"):
        run(fitting, suite=[needy])
    assert len(victims) == len(ARMS)


def test_means_of_the_adversary(victims, material, run, tmp_path, tiny):
    aux = tiny(seed=5, source="x")
    needy = Countermeasure("needy", data=lambda data, seed, means: means.aux, aux=True)
    with_aux = replace(material(), aux=aux)
    (row,) = run(with_aux, suite=[needy], arms=("protected",))
    assert victims[-1]["train"] is aux and row["aux"] == len(aux)
    (again,) = run(replace(material(), aux=tiny(seed=6)), suite=[needy], arms=("protected",))
    assert len(victims) == 2, "other auxiliary pictures are another cell"
    oracle = replace(material(), aux=material().test, oracle=True)
    assert run(oracle, suite=[needy], arms=("protected",))[0]["aux"] == "oracle"
    trained = Countermeasure("own", train=lambda train, test, config, **options: CURVES)
    (row,) = run(material(), suite=[trained], arms=("protected",))
    assert row["accuracy_final"] == 7.0 and row["separability"] == 99.5


def test_identities_are_told_apart():
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    right = [[1, 0, 1, 1, 0, 0], [0, 0, 1, 0, 1, 0]]
    curves = {**CURVES, "right": [bytes(epoch) for epoch in right]}
    found = cells.of_identities(curves, labels, (1,))
    assert found["accuracy"] == [100.0, 50.0] and found["loss"] == CURVES["loss"]
    assert (found["others_final"], found["others_peak"]) == (25.0, 25.0)
    assert len(found["picking"]) == len(found["scoring"]) == 2
    with pytest.raises(DataError, match="does not say which pictures"):
        cells.of_identities(CURVES, labels, (1,))
