"""What the victims of each arm are trained on."""

import hashlib

import numpy as np
import pytest
import torch

from fastue.data.budget import Budget
from fastue.data.controls import random_noise
from fastue.protocol.arms import ARMS, CONTROLS, PARTLY, arm_pictures

SHAPE = (3, 12, 12)


@pytest.mark.parametrize("per, rows", [("sample", 96), ("class", 4)])
def test_random_noise_fills_the_budget_and_is_keyed(per, rows):
    noise = random_noise(SHAPE, rows, Budget(8 / 255), 0, per)
    assert noise.shape == (rows, *SHAPE) and noise.dtype == torch.int8
    assert noise.min() == -8 and noise.max() == 8 and abs(float(noise.float().mean())) < 0.5
    assert torch.equal(noise, random_noise(SHAPE, rows, Budget(8 / 255), 0, per))
    assert not torch.equal(noise, random_noise(SHAPE, rows, Budget(8 / 255), 1, per))


@pytest.mark.parametrize(
    "per, rows, digest", [("sample", 96, "e0864c3520249887"), ("class", 4, "f2ce89f20dd16553")]
)
def test_random_noise_has_the_bytes_it_always_had(per, rows, digest):
    """Of commit 3d645ad: rows of random arms are kept under the budget, not under the noise."""
    noise = random_noise(SHAPE, rows, Budget(8 / 255), 0, per)
    assert hashlib.sha256(noise.numpy().tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("eps", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("per, rows", [("sample", 96), ("class", 4)])
def test_random_l2_noise_lies_just_inside_the_ball(per, rows, eps):
    budget = Budget(eps, "l2")
    noise = random_noise(SHAPE, rows, budget, 0, per)
    assert noise.shape == (rows, *SHAPE) and noise.dtype == torch.int8
    lengths = np.linalg.norm(noise.numpy().reshape(rows, -1).astype(np.float64), axis=1)
    assert lengths.max() <= 255 * eps
    assert lengths.min() > 0.95 * 255 * eps
    assert torch.equal(noise, random_noise(SHAPE, rows, budget, 0, per))
    assert not torch.equal(noise, random_noise(SHAPE, rows, budget, 1, per))


def test_arms_hold_what_they_say(tiny):
    originals, protected = tiny(), tiny(seed=9)
    budget = Budget(8 / 255)
    arms = {arm: arm_pictures(arm, 0, protected, originals, budget).images.int() for arm in ARMS}
    assert torch.equal(arms["clean"], originals.images.int())
    assert torch.equal(arms["protected"], protected.images.int())
    change = arms["random-class"] - arms["clean"]
    assert change.abs().max() <= 8
    for k in range(4):
        of_class = change[originals.labels == k]
        assert (of_class == of_class[0]).float().mean() > 0.99
    change = arms["random-sample"] - arms["clean"]
    assert change.abs().max() <= 8 and not torch.equal(change[0], change[1])


def test_controls_respect_the_norm_of_the_budget(tiny):
    budget = Budget(0.5, "l2")
    clean = tiny()
    for arm in ("random-sample", "random-class"):
        change = arm_pictures(arm, 0, clean, clean, budget).images.float() - clean.images.float()
        lengths = change.flatten(1).norm(dim=1)
        assert lengths.min() > 100 and lengths.max() <= 127.5


def test_partly_protected_sets_are_nested_and_drawn_by_seed(tiny):
    originals, protected = tiny(), tiny(seed=9)
    before = originals.images.clone()

    def rows(arm, seed):
        data = arm_pictures(arm, seed, protected, originals, Budget(8 / 255))
        assert (data.ids, data.classes) == (originals.ids, originals.classes)
        assert torch.equal(data.labels, originals.labels)
        is_protected = (data.images == protected.images).flatten(1).all(1)
        is_clean = (data.images == originals.images).flatten(1).all(1)
        assert torch.equal(is_protected, ~is_clean)
        return set(is_protected.nonzero().flatten().tolist())

    quarter, half, most = (rows(arm, 0) for arm in PARTLY)
    assert [len(found) for found in (quarter, half, most)] == [24, 48, 72]
    assert quarter < half < most
    assert rows("protected-25", 1) != quarter == rows("protected-25", 0)
    assert torch.equal(originals.images, before), "it wrote into the originals"


def test_the_usual_arms_are_four():
    assert len(ARMS) == 4 and not set(PARTLY) & set(ARMS) and set(CONTROLS) < set(ARMS)
