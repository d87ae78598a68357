"""The attack stays in the ball, beats the simpler ones, and is a function of the sampler."""

import pytest
import torch

from fastue.certificates import attack, bounds
from fastue.certificates.claim import BN_POLICIES, Smoothing
from fastue.certificates.smoothing import Sampler
from fastue.models.flat import flattened
from fastue.ops import WEIGHTS_ATTACK
from fastue.victims.recovery import RecoveryConfig, recover, shift_between

SIGMA, ETA, N = 0.2, 0.24, 150
FRESH = range(2**31, 2**31 + 150)


@pytest.fixture(scope="module")
def attacked(trained):
    """(sampler, counts of its draws, direction that the attack finds)"""
    sampler = Sampler(*trained, Smoothing(SIGMA, bn="reestimated"))
    counts = dict(enumerate(sampler.counts(range(N)).tolist()))
    return sampler, counts, found(sampler, counts)


def found(sampler, counts, steps=8):
    return attack._found(sampler, ETA, counts, steps, 4, 32, lambda: None)


def mean(sampler, shift) -> float:
    moved = sampler.moved(shift)
    return float(moved.counts(FRESH, purpose=WEIGHTS_ATTACK).double().mean())


def test_it_never_leaves_the_ball(attacked):
    sampler, _, direction = attacked
    assert direction.norm().double() == pytest.approx(1, abs=1e-6)
    for eta in (1e-3, ETA, 10.0):
        v = attack.shift(sampler, direction, eta).double() / sampler.scale.double()
        assert 0.999 * eta < v.norm() <= eta


def test_it_beats_random_directions_and_projected_sgd(attacked):
    """By noisy copies, which is what the certificate is of; SGD fits the network without noise."""
    sampler, _, direction = attacked
    pressed = mean(sampler, attack.shift(sampler, direction, ETA))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        other = torch.randn(len(direction), generator=generator)
        other = attack._unit(other * (sampler.scale != 1))  # not in the padding
        assert mean(sampler, attack.shift(sampler, other, ETA)) < pressed
    network = sampler.network()
    config = RecoveryConfig(epochs=3, batch=50, augment=False)
    moved = recover(network, sampler.data, ETA, config, scale=sampler.scale)
    shift = shift_between(network, moved)
    assert (shift / sampler.scale).norm() <= ETA * (1 + 1e-5)
    assert mean(sampler, shift) < pressed
    assert mean(sampler, torch.zeros_like(direction)) + 0.01 * len(sampler.data) < pressed


def test_rows_are_lower_bounds_below_the_certificate(attacked):
    sampler, counts, _ = attacked
    arguments = {"alpha": 0.01, "counted": counts, "steps": 4, "selection": 16, "fresh": 100}
    steps = []
    rows = attack.press(
        sampler, [0.12, 0.0], [0.5, 0.7], **arguments, progress=lambda *where: steps.append(where)
    )
    assert steps == [(done, 10) for done in range(1, 11)]
    assert [(row["eta"], row["q"]) for row in rows] == [
        (eta, q) for eta in (0.0, 0.12) for q in (0.5, 0.7)
    ]
    by = {(row["eta"], row["q"]): row["reached"] for row in rows}
    certificates = bounds.certify(
        list(counts.values()), len(sampler.data), q=(0.5, 0.7), eta=(0.0, 0.12), sigma=SIGMA
    )
    assert all(by[c.eta, c.q] <= c.correct for c in certificates if not c.abstains)
    assert by[0.0, 0.5] <= by[0.12, 0.5] and by[0.12, 0.5] <= by[0.12, 0.7]
    again = attack.press(sampler, [0.12, 0.0], [0.5, 0.7], **arguments)
    assert again == rows
    few = attack.press(sampler, [0.0], [0.5], **arguments | {"fresh": 3})
    assert few[0]["reached"] is None


@pytest.mark.parametrize("bn", BN_POLICIES)
def test_the_gradient_is_that_of_the_certified_classifier(trained, bn, monkeypatch):
    """By differences of the stand-in; re-estimated statistics follow the weights."""
    sampler = Sampler(*trained, Smoothing(0.02, bn=bn))
    monkeypatch.setattr(attack, "_WIDTH", 3.0)  # smooth enough for differences
    size = torch.tensor(2.0)
    values = []

    def nearly_right(logits, y):
        own = logits.gather(1, y[:, None])
        margin = own - logits.scatter(1, y[:, None], -torch.inf).logsumexp(1, keepdim=True)
        values.append(torch.sigmoid(margin / size).double().sum())
        return values[-1]

    monkeypatch.setattr(attack, "_nearly_right", nearly_right)

    def at(u):
        values.clear()
        gradient = attack._Gradient(sampler, 2)
        return gradient(u), float(sum(values).detach())

    here = torch.zeros_like(sampler.weights.base)
    slope, _ = at(here)
    direction, step = attack._unit(slope), 0.01
    difference = (at(step * direction)[1] - at(-step * direction)[1]) / (2 * step)
    assert difference == pytest.approx(float(slope.norm()), rel=0.03)
    if bn == "reestimated":  # a filter's size does not matter there, so nothing points along it
        sizes = flattened([p.detach() for p in sampler.network().features[0].parameters()][:1])
        along = sizes / sampler.scale[: len(sizes)]
        cosine = slope[: len(sizes)] @ along / slope[: len(sizes)].norm() / along.norm()
        assert abs(cosine) < 0.3
