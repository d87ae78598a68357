"""Figures over seeds, the order of settings, and the sentences made of them."""

import pytest

from fastue.protocol.summary import protected_share, settings, summarise
from fastue.protocol.verdict import holds, verdict


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
    assert table["protected"]["stopped_sd"] == pytest.approx(50**0.5)
    assert table["protected"]["stopped_mean"] == 25.0 and table["protected"]["peak_max"] == 40.0
    assert table["random-class"]["final_sd"] == 0.0


def test_settings_begin_with_the_worst_case(rows, setting, row):
    jpeg = setting("jpeg", [70.0], [80.0])
    ordered = settings([*jpeg, *rows, row("clean", 95.0, arch="vgg11")], 10)
    names = [(one.countermeasure, one.arch) for one in ordered]
    assert names == [("jpeg", "cnn"), ("none", "cnn"), ("none", "vgg11")]
    assert list(ordered[1].arms) == ["protected", "clean", "random-class"]
    assert ordered[0].arms["clean"]["final_mean"] == 80.0


def test_the_worst_case_is_a_share_of_what_the_same_victim_learns_of_clean_pictures(setting):
    """A weak victim that learns all that it can outweighs a strong one that learns little."""
    weak = setting("none", [40.0], [42.0], arch="weak")
    rows = [*setting("none", [45.0], [95.0], arch="strong"), *weak]
    assert [one.arch for one in settings(rows, 10)] == ["weak", "strong"]
    assert settings(rows, 10)[0].share == pytest.approx(30 / 32)
    assert verdict(rows, 10).startswith("Plain training reaches 40.0 of 42.0 points")


def test_recovered_is_measured_between_plain_protected_and_plain_clean(rows, setting):
    found = {one.countermeasure: one for one in settings([*rows, *setting("jpeg", [64.0])], 10)}
    assert found["none"].recovered == 0 and found["jpeg"].recovered == pytest.approx(39 / 65)
    assert settings(setting("jpeg", [64.0], [80.0]), 10)[0].recovered is None
    same = [*setting("none", [50.0], [50.0]), *setting("jpeg", [60.0])]
    assert settings(same, 10)[0].recovered is None, "there was nothing to recover"


def test_a_protection_that_is_undone_does_not_hold(rows, setting):
    """Clean training without a countermeasure is what the owner's pictures are worth."""
    gray = setting("grayscale", [60.0, 81.2], [88.0, 90.0])
    assert verdict([*rows, *gray], 10) == (
        "Grayscale restores 81.2 of 90.0 points: this protection does not hold. Worst of 2 "
        "settings and 2 seeds: cnn trained on the protected files after grayscale and stopped at "
        "its best epoch reaches 81.2 % on clean pictures (chance 10.0 %, clean training 90.0 %, "
        "clean training after grayscale 89.0 %)."
    )
    assert holds([*rows, *gray], 10) is False


@pytest.mark.parametrize("reached, expected", [(50.0, True), (50.1, False)])
def test_half_of_what_clean_pictures_teach_above_chance_is_the_limit(setting, reached, expected):
    rows = [*setting("none", [12.0], [90.0]), *setting("jpeg", [reached], [60.0])]
    assert holds(rows, 10) is expected
    assert ("does not hold" in verdict(rows, 10)) is not expected


def test_a_protection_that_holds(rows, setting):
    text = verdict([*rows, *setting("jpeg", [23.0], [52.0])], 10)
    assert text.startswith(
        "Holds against what was tried: at worst cnn reaches 30.0 of 90.0 points."
    )
    alone = verdict(rows, 10)
    assert alone.startswith("Holds against plain training: at worst") and "--suite quick" in alone
    assert holds(rows, 10)


def test_where_nothing_can_be_said(rows, row, setting):
    fooled = [*rows[:-1], row("random-class", 30.0)]
    assert "too weak to judge" in verdict(fooled, 10) and holds(fooled, 10) is None
    lone = [row("protected", 12.0)]
    assert "pass --source" in verdict(lone, 10) and holds(lone, 10) is None
    only_clean = [row("clean", 12.0)]
    assert verdict(only_clean, 10) == "No victim was trained on the protected pictures."
    untaught = setting("none", [12.0], [19.0])
    assert "learns enough of clean pictures" in verdict(untaught, 10)
    assert holds(untaught, 10) is None


def test_random_noise_excuses_no_protection_that_is_undone(setting):
    """A victim that random noise fools, too, is none too weak to show that pictures can be
    learnt."""
    rows = setting("none", [89.0], [90.0], [30.0])
    assert verdict(rows, 10).startswith("Plain training reaches 89.0 of 90.0 points")
    better = setting("none", [91.0], [90.0], [85.0])
    assert "too weak" not in verdict(better, 10)


def test_a_seed_that_stops_early_counts(rows, row):
    """A protection is as good as its worst seed at the best epoch, however good the mean at the
    end is; a row of before that figure counts with its peak."""
    lucky = row("protected", 10.0, 95.0, seed=2, stopped=88.0)
    assert "reaches 88.0 %" in verdict([*rows, lucky], 10)
    old = {k: v for k, v in lucky.items() if k != "accuracy_stopped"}
    assert "reaches 95.0 %" in verdict([*rows, old], 10)


def test_the_oracle_is_told_and_does_not_decide(rows, setting):
    with_test = setting("jcdp", [85.0], [88.0], aux="oracle")
    text = verdict([*with_test, *rows, *setting("jpeg", [35.0], [80.0])], 10)
    assert text.startswith("Holds against what was tried: at worst cnn after jpeg reaches 35.0")
    assert text.endswith("Jcdp with the test pictures themselves (ORACLE) reaches 85.0 %.")
    only = verdict(with_test, 10)
    assert "which no adversary has (ORACLE)" in only
    some = verdict(setting("avatar", [85.0], [88.0], aux=500), 10)
    assert "It had 500 clean pictures." in some and "ORACLE" not in some


def test_share_of_protected_pictures_in_an_arm():
    arms = ("clean", "protected-25", "protected", "random-class", "protected-")
    assert [protected_share(arm) for arm in arms] == [0, 25, 100, None, None]


def test_who_is_authorized_may_learn(setting):
    """It counts for no worst case, comes last, and is told by its own worst seed."""
    plain = setting("none", [15.0, 20.0], [50.0, 50.0])
    gray = setting("grayscale", [22.0, 21.0], [48.0, 48.0])
    ours = setting("authorized", [49.0, 46.0], [49.5, 49.5])
    rows = [*ours, *plain, *gray]
    assert [one.countermeasure for one in settings(rows, 10)] == ["grayscale", "none", "authorized"]
    said = verdict(rows, 10)
    assert said.startswith(
        "Who is authorized (cnn) keeps 46.0 of 50.0 points; the same network without that reaches "
        "20.0. Holds against what was tried: at worst cnn after grayscale reaches 22.0 of 50.0"
    )
    assert "Worst of 2 settings" in said and holds(rows, 10) is True
    other = setting("none", [15.0], [50.0], arch="b")
    frozen = verdict([*setting("authorized", [40.0], [41.0]), *other], 10)
    assert frozen.startswith("Who is authorized (cnn) keeps 40.0 of 41.0 points. ")
