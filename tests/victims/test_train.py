"""Victims: they learn what can be learnt, and depend on the seed alone."""

import itertools
from dataclasses import replace

import pytest
import torch

from fastue.core.errors import DataError
from fastue.models.training import train_step
from fastue.victims.train import VictimConfig, check_pair, halves, stopped, train_victim

CONFIG = VictimConfig(arch="cnn-w8", epochs=4, batch=16, lr=0.05, augment=False)


def test_learns_clean_pictures_and_reports_every_epoch(tiny):
    seen = []
    curves = train_victim(
        tiny(), tiny(seed=1), CONFIG, seed=0, progress=lambda d, t, info: seen.append((d, t))
    )
    assert curves["accuracy"][-1] > 80 and curves["train_accuracy"][0] > 80
    assert (
        len(curves["accuracy"]) == len(curves["loss"]) == 4
        and curves["loss"][-1] < curves["loss"][0]
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_early_stopping_is_scored_on_pictures_it_did_not_see(tiny):
    picking, scoring = halves(97)
    assert sorted([*picking.tolist(), *scoring.tolist()]) == list(range(97))
    assert halves(97)[0].tolist() == picking.tolist()
    curves = {"picking": [10.0, 60.0, 60.0, 40.0], "scoring": [90.0, 55.0, 70.0, 80.0]}
    # the first of the best on one half, whatever the other says
    assert stopped(curves) == (55.0, 2)
    curves = train_victim(tiny(), tiny(seed=1), CONFIG, seed=0)
    n, first = len(tiny(seed=1)), len(tiny(seed=1)) // 2
    for whole, a, b in zip(curves["accuracy"], curves["picking"], curves["scoring"], strict=True):
        assert abs(n * whole - first * a - (n - first) * b) < 0.01 * n  # rounded to 0.001 each


def test_same_seed_same_curve_other_seed_other_curve(tiny):
    first, again, other = (train_victim(tiny(), tiny(seed=1), CONFIG, seed=s) for s in (0, 0, 1))
    assert first == again and first["loss"] != other["loss"]


def test_shortcut_noise_ruins_the_victim(tiny):
    """The pictures carry a stronger, simpler cue of the class than what they show: tests lack it."""
    train = tiny()
    train.images.permute(0, 2, 3, 1)[:, ::2, ::2, :] = (60 * train.labels).to(train.images.dtype)[
        :, None, None, None
    ]
    curves = train_victim(train, tiny(seed=1), replace(CONFIG, epochs=8), seed=0)
    assert curves["train_accuracy"][0] > 95 and curves["accuracy"][-1] < 60


def test_fewer_pictures_than_a_batch(tiny):
    curves = train_victim(
        tiny(2), tiny(2, seed=1), VictimConfig(arch="cnn-w8", epochs=1, batch=128), seed=0
    )
    assert len(curves["accuracy"]) == 1


def test_sets_that_do_not_fit_are_refused_with_both_names(tiny):
    train, test = tiny(), tiny(seed=1, source="testset")
    test.classes = ["0", "1", "2", "cat"]
    with pytest.raises(DataError, match="testset.*cat"):
        check_pair(train, test)
    test = tiny(seed=1, source="testset")
    test.images = test.images[:, :, :10]
    with pytest.raises(DataError, match="testset: pictures are 10x12.*--size"):
        check_pair(train, test)


def test_the_step_of_a_countermeasure_replaces_the_plain_one(tiny):
    """A step that draws at random: the victim is still a function of the seed, and torch's own
    generator is left where it was."""

    def noisy_step(model, optimizer, x, y, **options):
        return train_step(model, optimizer, x + 0.3 * torch.rand_like(x), y, **options)

    def curves(seed):
        torch.manual_seed(next(states))  # what ran before must not matter
        before = torch.random.get_rng_state()
        result = train_victim(tiny(), tiny(seed=1), CONFIG, seed=seed, step=noisy_step)
        assert torch.equal(torch.random.get_rng_state(), before)
        return result

    states = itertools.count()
    first, again, other = curves(0), curves(0), curves(1)
    assert first == again and first["loss"] != other["loss"]
    assert first["loss"] != train_victim(tiny(), tiny(seed=1), CONFIG, seed=0)["loss"]
