"""Every countermeasure of the table, by the same rules; what each does is checked against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastue.core.errors import DataError, UsageError
from fastue.countermeasures import SUITES, SUMMARIES, family_of, load, suite
from fastue.countermeasures.base import Countermeasure, Means, identity
from fastue.models import build
from fastue.models.training import sgd, to_input, train_step
from fastue.victims.train import VictimConfig, stopped


def halved(images, labels, seed):
    return images // 2


@pytest.mark.parametrize("name", SUMMARIES)
class TestEveryCountermeasure:
    def test_shape_labels_and_ids_are_kept(self, name, tiny):
        data = tiny()
        before = data.images.clone()
        train = load(name).training_set(data, seed=0)
        assert train.images.dtype == torch.uint8 and train.images.shape == data.images.shape
        assert train.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(train.labels, data.labels)
        assert (train.ids, train.classes) == (data.ids, data.classes)
        assert torch.equal(data.images, before), "it wrote into the pictures it was given"

    def test_same_seed_same_pictures(self, name, tiny):
        once, again = (load(name).training_set(tiny(), seed=3).images for _ in range(2))
        assert torch.equal(once, again)

    def test_it_changes_something(self, name, tiny):
        countermeasure, data = load(name), tiny()
        changed = not torch.equal(countermeasure.training_set(data, seed=0).images, data.images)
        assert changed == (countermeasure.pictures is not identity)
        other = countermeasure.step is not train_step or countermeasure.train is not None
        assert (changed or other) == (name != "none")

    def test_test_pictures_change_only_where_it_says_so(self, name, tiny):
        countermeasure, data = load(name), tiny(seed=1)
        changed = not torch.equal(countermeasure.test_set(data, seed=0).images, data.images)
        assert changed == countermeasure.test

    def test_its_step_trains(self, name, tiny):
        data = load(name).training_set(tiny(), seed=0)
        model = build("cnn-w8", data.num_classes)
        before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        x, y = to_input(data.images), data.labels
        loss = load(name).step(model, sgd(model, 0.1), x, y, precision="float32", clip=5.0)
        assert loss.ndim == 0 and loss.isfinite() and not loss.requires_grad
        assert not torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)

    def test_name_and_module_agree(self, name):
        assert load(name).name == name and SUMMARIES[name]

    def test_one_channel_and_no_picture(self, name, tiny):
        images, labels = tiny().images, tiny().labels
        for part, its_labels in ((images[:, :1], labels), (images[:0], labels[:0])):
            assert load(name).pictures(part, its_labels, 0).shape == part.shape


@pytest.mark.parametrize("name", [name for name in SUMMARIES if load(name).train])
def test_its_training_gives_the_curves_of_a_victim(name, tiny):
    countermeasure, done = load(name), []

    def train(seed=0):
        return countermeasure.train(
            tiny(),
            tiny(seed=1),
            VictimConfig("cnn-w8", epochs=2, batch=16, lr=0.05, augment=False),
            seed=seed,
            step=countermeasure.step,
            means=Means(tiny(seed=2) if countermeasure.aux else None),
            progress=lambda *now: done.append(now[0] / now[1]),
        )

    curves = train()
    lengths = {len(curves[part]) for part in ("accuracy", "picking", "scoring")}
    assert len(lengths) == 1 and lengths.pop() > 0
    assert curves["loss"] and curves["train_accuracy"] and 0 <= stopped(curves)[0] <= 100
    assert done == sorted(done) and done[-1] == 1
    assert train() == curves and train(seed=1) != curves


def test_grayscale_is_pillows(tiny):
    data = tiny()
    gray = load("grayscale").training_set(data, seed=0).images
    for picture, result in zip(data.images, gray, strict=True):
        luma = np.asarray(Image.fromarray(picture.permute(1, 2, 0).numpy()).convert("L"))
        assert all(np.array_equal(channel.numpy(), luma) for channel in result)


def test_jpeg_keeps_the_picture_and_loses_fine_noise(tiny):
    data = tiny()
    smooth = torch.full_like(data.images, 120)
    sign = torch.randint(0, 2, smooth.shape, generator=torch.Generator().manual_seed(0)) * 16 - 8
    noisy = (smooth.int() + sign).to(torch.uint8)
    left = load("jpeg").pictures(noisy, None, 0).float() - 120
    assert left.std() < 0.4 * 8 and left.mean().abs() < 3


def test_suites_are_names_of_the_table():
    for name, members in SUITES.items():
        assert [c.name for c in suite(name)] == list(members)
    assert [c.name for c in suite(" jpeg, none,jpeg")] == ["jpeg", "none"]
    assert [c.name for c in suite("jpeg,quick")][:3] == ["jpeg", "none", "grayscale"]
    assert {family_of(name) for name in SUITES["full"]} == set(SUMMARIES)
    assert [c.name for c in suite(["jpeg", Countermeasure("halved", halved)])] == ["jpeg", "halved"]


@pytest.mark.parametrize("spec", ["everything", "none,everything", ["none", "everything"]])
def test_an_unknown_name_comes_with_the_list(spec):
    with pytest.raises(UsageError, match="--suite everything.*quick.*grayscale, .*jpeg"):
        suite(spec)


def test_a_name_stands_for_one_countermeasure():
    with pytest.raises(UsageError, match="two countermeasures are called jpeg"):
        suite([Countermeasure("jpeg", halved)])
    with pytest.raises(UsageError, match="two countermeasures are called halved"):
        suite([Countermeasure("halved", halved), Countermeasure("halved", halved, version=2)])
    with pytest.raises(UsageError, match="empty"):
        suite(",")


def test_pictures_of_another_kind_are_refused_by_name(tiny):
    with pytest.raises(DataError, match="countermeasure floats.*torch.float32"):
        Countermeasure("floats", lambda x, y, seed: x / 255).training_set(tiny(), 0)
    with pytest.raises(DataError, match=r"countermeasure cut.*\[96, 3, 12, 11\]"):
        Countermeasure("cut", lambda x, y, seed: x[..., 1:]).training_set(tiny(), 0)


def test_labels_of_test_pictures_are_not_told(tiny):
    seen = []
    spy = Countermeasure("spy", lambda x, y, seed: seen.append(y) or x, test=True)
    spy.training_set(tiny(), 0), spy.test_set(tiny(), 0)
    assert torch.equal(seen[0], tiny().labels) and seen[1] is None
