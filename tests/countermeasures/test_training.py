"""The countermeasures that change training: what each step does to pictures, labels and weights."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fastue.core.errors import UsageError
from fastue.countermeasures import dfr, load, recovery
from fastue.countermeasures.adversarial import attacked
from fastue.countermeasures.base import Means
from fastue.countermeasures.cutmix import cutmix
from fastue.countermeasures.cutout import cutout
from fastue.countermeasures.mixup import blended, mixup
from fastue.countermeasures.simclr import _hue, nt_xent, view
from fastue.countermeasures.trivialaugment import each
from fastue.countermeasures.ueraser import augmented, plasma, worst
from fastue.models import build
from fastue.models.training import sgd, to_input, train_step
from fastue.victims import probe
from fastue.victims.train import VictimConfig, fit

CONFIG = VictimConfig("cnn-w8", epochs=3, batch=16, lr=0.05, augment=False)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_cutout_is_one_rectangle_of_zeros_a_picture():
    x = torch.rand(64, 3, 16, 12) + 0.1
    out = cutout(x)
    hole = (out == 0).all(1)
    assert torch.equal(out, x * ~hole[:, None])
    rows, columns = hole.any(2), hole.any(1)
    assert torch.equal(hole, rows[:, :, None] & columns[:, None, :])
    for part, half in ((rows, 8), (columns, 6)):
        assert ((part.int().diff(dim=1) != 0).sum(1) <= 2).all(), "in one piece"
        assert part.sum(1).max() == half and part.sum(1).min() == half // 2
    assert len(torch.unique(hole, dim=0)) > 32, "each picture has its own"


def test_mixup_blends_pictures_and_labels_in_the_same_share():
    classes = 6
    y = torch.arange(classes)
    x = F.one_hot(y).float().view(classes, classes, 1, 1)  # a picture that says its label
    out, parts = mixup(x, y)
    target = sum(F.one_hot(labels, classes) * share[:, None] for labels, share in parts)
    assert torch.allclose(out.flatten(1), target) and torch.allclose(target.sum(1), torch.ones(6))
    assert 0 < parts[0][1][0] < 1


def test_the_blended_loss_is_cross_entropy_to_the_soft_label():
    logits, first, second = torch.randn(5, 4), torch.randint(4, (5,)), torch.randint(4, (5,))
    share = torch.rand(5)
    soft = F.one_hot(first, 4) * share[:, None] + F.one_hot(second, 4) * (1 - share)[:, None]
    loss = blended([(first, share), (second, 1 - share)])(logits, first)
    assert torch.allclose(loss, F.cross_entropy(logits, soft))


def test_cutmix_labels_are_the_areas():
    """A picture of one colour, its label: what is left of it and what was pasted can be counted."""
    b = 64
    y = torch.arange(b)
    x = y.float().view(b, 1, 1, 1).expand(b, 3, 16, 16)
    out, parts = cutmix(x, y)
    assert torch.allclose(sum(share for _, share in parts), torch.ones(b))
    own = (out[:, 0] == y[:, None, None]).float().mean((1, 2))
    # Twice, in half of the pictures each: a quarter stays whole. A later box may cover an earlier
    # one more than its share of the area, so the shares are exact for one box.
    once = (sum((share > 0).int() for _, share in parts)) <= 2
    assert torch.allclose(own[once], parts[0][1][once]) and 0.1 < (own == 1).float().mean() < 0.45


def test_each_picture_has_its_own_draw_and_keeps_its_grid():
    x = to_input(torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8))
    assert torch.equal(each(lambda picture: picture, x), x)
    marks = iter(range(8))
    out = each(lambda picture: torch.full_like(picture, next(marks)), x)
    assert torch.equal(out[:, 0, 0, 0], torch.arange(8) / 255)


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment"])
def test_same_picture_is_augmented_in_many_ways(name):
    seen = []
    model = build("cnn-w8", 4)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = to_input(torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)).expand(32, -1, -1, -1)
    load(name).step(
        model, sgd(model, 0.1), x, torch.zeros(32).long(), precision="float32", clip=5.0
    )
    assert seen[0].shape == x.shape and len(torch.unique(seen[0], dim=0)) > 16


def test_plasma_is_smooth_noise_from_0_to_1():
    noise = plasma(torch.zeros(16, 3, 32, 32))
    assert noise.shape == (16, 1, 32, 32)
    assert noise.amin((1, 2, 3)).eq(0).all() and noise.amax((1, 2, 3)).eq(1).all()
    near, far = noise.diff(dim=3).std(), (noise[..., 16:] - noise[..., :-16]).std()
    assert near < 0.4 * far and not torch.equal(noise[0], noise[1])


def test_ueraser_takes_the_largest_loss_of_each_picture():
    y = torch.tensor([0, 1])
    logits = torch.tensor([[9.0, 0], [0, 9], [0, 9], [0, 9], [9, 0], [9, 0]])  # three draws of two
    assert torch.allclose(worst(logits, y), F.cross_entropy(torch.tensor([[0.0, 9], [9, 0]]), y))
    never = torch.tensor([[9.0, 0], [0, 9], [9, 0], [9, 0]])  # the first is right in both draws
    assert torch.allclose(worst(never, y), F.cross_entropy(torch.tensor([[9.0, 0], [9, 0]]), y))
    assert worst(logits[:2], y) == F.cross_entropy(logits[:2], y)


def test_ueraser_draws_five_then_one(tiny):
    """Which training batches the network sees: five times their size in the first 30 % of the
    epochs; -lite never, -max always."""

    def sizes(name, epochs=4):
        countermeasure, seen = load(name), []

        def spy(model, optimizer, x, y, **options):
            hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
            try:
                return countermeasure.step(model, optimizer, x, y, **options)
            finally:
                hook.remove()

        config = VictimConfig("cnn-w8", epochs=epochs, batch=96, augment=False)
        options = {"seed": 0, "step": spy, "progress": lambda *now: None}
        if countermeasure.train is None:
            for _ in range(epochs):
                model = build("cnn-w8", 4)
                x, y = to_input(tiny().images), tiny().labels
                spy(model, sgd(model, 0.1), x, y, precision="float32", clip=5.0)
        else:
            countermeasure.train(tiny(), tiny(seed=1), config, means=Means(), **options)
        return [n // 96 for n in seen]

    assert sizes("ueraser") == [5, 5, 1, 1]
    assert sizes("ueraser-lite") == [1] * 4 and sizes("ueraser-max") == [5] * 4


def test_ueraser_pictures_stay_pictures():
    x = torch.rand(32, 3, 12, 12)
    out = augmented(x)
    assert out.shape == x.shape and out.min() >= 0 and out.max() <= 1
    assert (out - x).abs().mean((1, 2, 3)).gt(0.05).float().mean() > 0.5


@pytest.mark.parametrize("l2, radius", [(False, 8 / 255), (False, 4 / 255), (True, 1.0)])
def test_pgd_stays_in_the_ball_and_raises_the_loss(tiny, l2, radius):
    data = tiny()
    model = fit(data, tiny(seed=1), CONFIG, seed=0)[0].eval()
    state = copy.deepcopy(model.state_dict())
    x, y = to_input(data.images), data.labels
    moved = attacked(model, x, y, radius=radius, l2=l2, precision="float32")
    size = (moved - x).flatten(1).norm(dim=1) if l2 else (moved - x).abs().amax((1, 2, 3))
    assert size.max() <= radius * (1 + 1e-4) and size.min() > 0.5 * radius
    assert moved.min() >= 0 and moved.max() <= 1
    noise = torch.randn_like(x) if l2 else torch.randn_like(x).sign()
    noise = noise / noise.flatten(1).norm(dim=1)[:, None, None, None] if l2 else noise
    with torch.no_grad():
        clean, random = (F.cross_entropy(model(z), y) for z in (x, x + radius * noise))
        assert F.cross_entropy(model(moved), y) > max(clean, random) + 0.05
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_adversarial_training_updates_in_train_mode():
    model = build("cnn-w8", 4).eval()
    modes = []
    model.register_forward_pre_hook(lambda m, _: modes.append(m.training))
    x, y = torch.rand(8, 3, 8, 8), torch.arange(8) % 4
    load("adversarial").step(model, sgd(model, 0.1), x, y, precision="float32", clip=5.0)
    assert modes == [False] * 10 + [True]


def test_variants_have_their_own_names_and_others_are_refused():
    for name in ("adversarial-4", "adversarial-l2", "ueraser-lite", "ueraser-max"):
        assert load(name).name == name and load(name) == load(name)
    for name, known in (("adversarial-5", "4 and l2"), ("ueraser-mega", "lite and max")):
        with pytest.raises(UsageError, match=f"--suite {name}.*{known}"):
            load(name)


def test_dfr_leaves_the_trunk_alone(tiny, monkeypatch):
    """And its answers are those of the same network with the new last layer."""
    kept = {}

    def fitted(*arguments, **options):
        kept["model"], curves = fit(*arguments, **options)
        kept["before"] = copy.deepcopy(kept["model"].state_dict())
        return kept["model"], curves

    def refitted(*arguments):
        kept["layer"], curves = probe.refit(*arguments)
        return kept["layer"], curves

    monkeypatch.setattr(dfr, "fit", fitted)
    monkeypatch.setattr(dfr, "refit", refitted)
    train = tiny()
    train.labels = train.labels.roll(24)  # what it learns is wrong, what it sees is right
    means = Means(tiny(seed=2))
    options = {"seed": 0, "step": train_step, "progress": lambda *now: None}
    curves = dfr.train(train, tiny(seed=1), CONFIG, means=means, **options)
    model = kept["model"]
    assert all(torch.equal(v, kept["before"][name]) for name, v in model.state_dict().items())
    test = tiny(seed=1)
    model.head = kept["layer"]
    with torch.no_grad():
        right = model.eval()(to_input(test.images)).argmax(1) == test.labels
    assert curves["accuracy"][-1] == pytest.approx(100 * right.float().mean().item(), abs=0.01)
    assert curves["accuracy"][-1] > 80 and len(curves["loss"]) == probe.STEPS


def test_a_probe_finds_what_is_linear_and_no_head_is_refused():
    x = torch.randn(200, 5)
    y = (x @ torch.randn(5, 3)).argmax(1)
    _, curves = probe.refit(x[:150], y[:150], x[150:], y[150:], 3)
    assert curves["accuracy"][-1] > 90 and curves["loss"][-1] < 0.1 < curves["loss"][0]
    assert curves["loss"][0] == pytest.approx(math.log(3), abs=1e-4)  # starts from nothing
    with pytest.raises(UsageError, match="no linear layer"):
        probe.head(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1)))


def test_recovery_stays_within_each_eta_and_ends_with_the_best(tiny, monkeypatch):
    distances, accuracies = {}, {}
    recover = recovery.recover

    def measured(model, aux, eta, config, **options):
        moved = recover(model, aux, eta, config, **options)
        shift = [a - b for a, b in zip(moved.parameters(), model.parameters(), strict=True)]
        distances[eta] = torch.cat([part.detach().flatten() for part in shift]).norm().item()
        with torch.no_grad():
            right = moved(to_input(tiny(seed=1).images)).argmax(1) == tiny(seed=1).labels
        accuracies[eta] = round(100 * right.float().mean().item(), 3)
        return moved

    monkeypatch.setattr(recovery, "recover", measured)
    monkeypatch.setattr(recovery, "ETAS", (2.0, 0.4, 0.02))  # the best first
    train = tiny()
    train.labels = train.labels.roll(24)
    options = {"seed": 0, "step": train_step, "progress": lambda *now: None}
    curves = recovery.train(
        train, tiny(seed=1), replace(CONFIG, epochs=20), means=Means(tiny(seed=2)), **options
    )
    assert list(distances) == list(recovery.ETAS)
    assert all(0 < distance <= eta * (1 + 1e-5) for eta, distance in distances.items())
    assert sorted(curves["accuracy"]) == pytest.approx(sorted(accuracies.values()), abs=0.01)
    assert curves["picking"] == sorted(curves["picking"])
    assert curves["accuracy"][-1] == pytest.approx(accuracies[curves["eta"]], abs=0.01)


def test_nt_xent_known_values():
    z = torch.eye(4)
    pairs = torch.cat([z, z])  # the partner at similarity 1, six others at 0; temperature 0.5
    assert nt_xent(pairs) == pytest.approx(math.log(math.exp(2) + 6) - 2, rel=1e-5)
    assert nt_xent(3 * pairs) == pytest.approx(nt_xent(pairs).item(), rel=1e-5)  # directions only
    assert nt_xent(torch.ones(8, 3)) == pytest.approx(math.log(7), rel=1e-5)
    assert nt_xent(torch.cat([z, z.roll(1, 0)])) > nt_xent(pairs)


def test_views_show_the_picture_otherwise():
    flat = torch.full((16, 3, 8, 8), 0.5)
    assert torch.allclose(view(flat).std((2, 3)), torch.zeros(16, 3), atol=1e-5)
    x = torch.rand(1, 3, 8, 8).expand(32, 3, 8, 8)
    out = view(x)
    assert out.min() >= 0 and out.max() <= 1 and len(torch.unique(out, dim=0)) == 32
    assert view(x[:, :1]).shape == (32, 1, 8, 8)
    gray = (out[:, :1] - out).abs().amax((1, 2, 3)) < 1e-6
    assert 0 < gray.sum() < 20
    third = torch.full((1, 1, 1, 1), 2 * math.pi / 3)
    assert torch.allclose(_hue(x[:1], third), x[:1].roll(1, 1), atol=1e-6) or torch.allclose(
        _hue(x[:1], third), x[:1].roll(-1, 1), atol=1e-6
    )


def test_simclr_learns_without_labels(tiny):
    """The labels change nothing before the probe: wrong ones give a victim that is wrong in the
    same way."""
    options = {"seed": 0, "step": load("simclr").step, "means": Means()}
    options["progress"] = lambda *now: None
    right = load("simclr").train(tiny(), tiny(seed=1), CONFIG, **options)
    wrong = tiny()
    wrong.labels = (wrong.labels + 1) % 4
    test = tiny(seed=1)
    test.labels = (test.labels + 1) % 4
    other = load("simclr").train(wrong, test, CONFIG, **options)
    assert (
        other["accuracy"] == pytest.approx(right["accuracy"], abs=8) and max(right["accuracy"]) > 40
    )
