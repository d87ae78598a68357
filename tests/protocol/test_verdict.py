"""The table over seeds, and the sentence made of it."""

import pytest

from fastue.protocol.summary import settings, summarise
from fastue.protocol.verdict import verdict


@pytest.fixture
def rows(row):
    """Two seeds of clean and protected, one of random noise."""
    clean = [row("clean", 90.0, seed=s) for s in (0, 1)]
    early = ((0, 12.0, 20.0), (1, 16.0, 30.0))
    protected = [row("protected", final, 40.0, s, stopped=stopped) for s, final, stopped in early]
    return [*clean, *protected, row("random-class", 85.0)]


def test_summary_is_over_seeds(rows):
    table = {line["arm"]: line for line in summarise(rows)}
    assert table["protected"]["final_mean"] == 14.0 and table["protected"]["stopped_max"] == 30.0
    assert table["protected"]["final_sd"] == pytest.approx(8**0.5) and table["clean"]["seeds"] == 2
    assert table["protected"]["stopped_mean"] == 25.0 and table["protected"]["peak_max"] == 40.0
    assert table["random-class"]["final_sd"] == 0.0


def test_settings_begin_with_the_worst_case(rows, row):
    jpeg = [row(arm, a, countermeasure="jpeg") for arm, a in (("clean", 80.0), ("protected", 70.0))]
    only_clean = row("clean", 95.0, arch="vgg11")
    ordered = settings([*rows, *jpeg, only_clean])
    assert list(ordered) == [("jpeg", "cnn"), ("none", "cnn"), ("none", "vgg11")]
    assert list(ordered["none", "cnn"]) == ["protected", "clean", "random-class"]
    assert ordered["jpeg", "cnn"]["clean"]["final_mean"] == 80.0


def test_verdict_of_one_setting(rows, row):
    text = verdict(rows, 10)
    assert text == (
        "Worst case over 1 setting and 2 seeds: cnn trained on the protected files and stopped at "
        "its best epoch reaches 30.0 % on clean pictures (chance 10.0 %, clean training 90.0 %), "
        "60.0 points lost."
    )
    weak = verdict([*rows[:-1], row("random-class", 30.0)], 10)
    assert "random noise" in weak and "too weak to judge" in weak
    assert "pass --source" in verdict([row("protected", 12.0)], 10)
    assert verdict([row("clean", 12.0)], 10) == "No victim was trained on the protected pictures."


def test_the_verdict_is_of_the_whole_set(rows, row):
    """An owner who protects half of the pictures is told so in the table, not in the verdict."""
    partly = [row(f"protected-{share}", 89.0) for share in (25, 75)]
    assert verdict([*partly, *rows], 10) == verdict(rows, 10)
    order = ["protected", "protected-75", "protected-25", "clean", "random-class"]
    assert list(settings([*partly, *rows])["none", "cnn"]) == order
    text = verdict([row("clean", 90.0), *partly], 10)
    assert text == "No victim was trained on the protected pictures."


def test_the_worst_architecture_is_named(rows, row):
    vgg11 = [row("protected", 55.0, arch="vgg11"), row("clean", 80.0, arch="vgg11")]
    text = verdict([*rows, *vgg11], 10)
    assert "2 settings and 1 seed: vgg11 trained" in text and "25.0 points" in text


def test_a_seed_that_stops_early_counts(rows, row):
    """A protection is as good as its worst seed at the best epoch, however good the mean at the
    end is; a row of before that figure counts with its peak."""
    lucky = row("protected", 10.0, 95.0, seed=2, stopped=88.0)
    assert "reaches 88.0 %" in verdict([*rows, lucky], 10)
    old = {k: v for k, v in lucky.items() if k != "accuracy_stopped"}
    assert "reaches 95.0 %" in verdict([*rows, old], 10)


@pytest.mark.parametrize("worst_last", [False, True])
def test_controls_are_those_of_the_same_countermeasure(rows, row, worst_last):
    """The control of another countermeasure, first or last, says nothing of the worst case."""
    arms = (("clean", 80.0), ("protected", 70.0), ("random-class", 78.0))
    jpeg = [row(arm, a, countermeasure="jpeg") for arm, a in arms]
    # Random noise fools this victim, under grayscale only.
    arms = (("clean", 60.0), ("protected", 20.0), ("random-class", 15.0))
    gray = [row(arm, a, countermeasure="grayscale") for arm, a in arms]
    text = verdict([*rows, *gray, *jpeg] if worst_last else [*jpeg, *gray, *rows], 10)
    assert text == (
        "Worst case over 3 settings and 1 seed: cnn trained on the protected files after jpeg and "
        "stopped at its best epoch reaches 70.0 % on clean pictures (chance 10.0 %, clean training "
        "after jpeg 80.0 %), 10.0 points lost."
    )
