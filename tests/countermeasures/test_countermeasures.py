"""Every countermeasure of the table, by the same rules; what each does is checked against Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastue.core.errors import DataError, UsageError
from fastue.countermeasures import SUITES, SUMMARIES, load, suite
from fastue.countermeasures.base import Countermeasure, Means, identity
from fastue.models import build
from fastue.models.training import sgd, to_input, train_step
from fastue.purifiers import apply
from fastue.purifiers.training import PurifierConfig


def halved(images, labels, seed):
    return images // 2


@pytest.fixture
def means(tiny, monkeypatch):
    """Auxiliary pictures, and purifiers that are trained in no time."""
    monkeypatch.setattr(apply, "CONFIG", PurifierConfig(steps=2, width=8, batch=8))
    return Means(aux=tiny(per_class=2, seed=9))


@pytest.mark.parametrize("name", SUMMARIES)
class TestEveryCountermeasure:
    def test_shape_labels_and_ids_are_kept(self, name, tiny, means):
        data = tiny()
        before = data.images.clone()
        train = load(name).training_set(data, seed=0, means=means)
        assert train.images.dtype == torch.uint8 and train.images.shape == data.images.shape
        assert train.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(train.labels, data.labels)
        assert (train.ids, train.classes) == (data.ids, data.classes)
        assert torch.equal(data.images, before), "it wrote into the pictures it was given"

    def test_same_seed_same_pictures(self, name, tiny, means):
        once, again = (
            load(name).training_set(tiny(), seed=3, means=means).images for _ in range(2)
        )
        assert torch.equal(once, again)

    def test_it_changes_something(self, name, tiny, means):
        countermeasure, data = load(name), tiny()
        train = countermeasure.training_set(data, seed=0, means=means)
        changed = not torch.equal(train.images, data.images)
        transforms = countermeasure.pictures is not identity or countermeasure.data is not None
        assert changed == transforms
        assert (changed or countermeasure.step is not train_step) == (name != "none")

    def test_test_pictures_change_only_where_it_says_so(self, name, tiny):
        countermeasure, data = load(name), tiny(seed=1)
        changed = not torch.equal(countermeasure.test_set(data, seed=0).images, data.images)
        assert changed == countermeasure.test

    def test_its_step_trains(self, name, tiny, means):
        data = load(name).training_set(tiny(), seed=0, means=means)
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
    assert [c.name for c in suite("jpeg,quick")] == ["jpeg", "none", "grayscale"]
    assert [c.name for c in suite(["jpeg", Countermeasure("halved", halved)])] == ["jpeg", "halved"]


@pytest.mark.parametrize("spec", ["everything", "none,everything", ["none", "everything"]])
def test_an_unknown_name_comes_with_the_list(spec):
    with pytest.raises(UsageError, match="--suite everything.*quick.*grayscale, jpeg"):
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


def test_purifying_needs_pictures_that_fit(tiny, means):
    with pytest.raises(UsageError, match="--aux"):
        load("oneshot").training_set(tiny(), 0)
    gray = tiny()
    gray.images = gray.images[:, :1]
    with pytest.raises(DataError, match="cannot purify those of"):
        load("oneshot").training_set(tiny(), 0, Means(aux=gray))


def test_purifying_takes_a_number_of_steps():
    assert load("jcdp-2").data.sampler.steps == 2 and load("jcdp-2") == load("jcdp-2")
    assert load("jcdp-20").data == load("jcdp").data
    for wrong in ("jcdp-21", "avatar-0", "jcdp-x", "oneshot-2"):
        with pytest.raises(UsageError, match=wrong):
            load(wrong)
