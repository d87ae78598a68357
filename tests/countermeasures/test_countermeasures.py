"""Every countermeasure of the table, by the same rules; what each does is checked against Pillow."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import nn

from fastue.core.errors import DataError, UsageError
from fastue.countermeasures import SUITES, SUMMARIES, family_of, load, suite
from fastue.countermeasures.base import Countermeasure, Means, identity
from fastue.countermeasures.orthogonal_projection import linear_model, projected
from fastue.data.budget import Budget
from fastue.data.controls import random_noise
from fastue.data.writers import protected_pictures
from fastue.models import build
from fastue.models.training import sgd, to_input, train_step
from fastue.purifiers import dvae
from fastue.purifiers.training import CONFIGS, PurifierConfig
from fastue.victims.train import VictimConfig, stopped


def halved(images, labels, seed):
    return images // 2


@pytest.fixture
def means(tiny, monkeypatch):
    """Auxiliary pictures, and purifiers that are trained in no time."""
    monkeypatch.setattr(dvae, "CONFIG", dvae.DvaeConfig(epochs=1, width=8, code=8))
    monkeypatch.setitem(CONFIGS, "small", PurifierConfig(steps=2, width=8, batch=8))
    return Means(aux=tiny(seed=5, source="aux"))


@pytest.mark.parametrize("name", SUMMARIES)
class TestEveryCountermeasure:
    def test_shape_labels_and_ids_are_kept(self, name, tiny, means):
        data = tiny()
        before = data.images.clone()
        train = load(name).training_set(data, 0, means)
        assert train.images.dtype == torch.uint8 and train.shape == data.shape
        assert train.images.is_contiguous(memory_format=torch.channels_last)
        assert train.classes == data.classes
        if load(name).data is None:  # which may give more or fewer
            assert torch.equal(train.labels, data.labels) and train.ids == data.ids
        assert torch.equal(data.images, before), "it wrote into the pictures it was given"

    def test_same_seed_same_pictures(self, name, tiny, means):
        once, again = (load(name).training_set(tiny(), 3, means).images for _ in range(2))
        assert torch.equal(once, again)

    def test_it_changes_something(self, name, tiny, means):
        countermeasure, data = load(name), tiny()
        changed = not torch.equal(countermeasure.training_set(data, 0, means).images, data.images)
        of_pictures = countermeasure.pictures is not identity or countermeasure.data is not None
        assert changed == of_pictures
        of_training = countermeasure.step is not train_step or countermeasure.train is not None
        assert (changed or of_training) == (name != "none")

    def test_test_pictures_change_only_where_it_says_so(self, name, tiny):
        countermeasure, data = load(name), tiny(seed=1)
        changed = not torch.equal(countermeasure.test_set(data, seed=0).images, data.images)
        assert changed == countermeasure.test

    def test_its_step_trains(self, name, tiny, means):
        data = load(name).training_set(tiny(), 0, means)
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


def test_jpeg_of_a_quality_is_pillows(tiny):
    data = tiny()
    for quality in (1, 30, 95):
        result = load(f"jpeg-{quality}").training_set(data, seed=0).images
        for picture, found in zip(data.images[::24], result[::24], strict=True):
            file = io.BytesIO()
            options = {"quality": quality, "subsampling": 2}  # 2: 4:2:0
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "JPEG", **options)
            assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(Image.open(file)))


@pytest.mark.parametrize("bits", range(1, 8))
def test_bit_depth_is_pillows(tiny, bits):
    data = tiny()
    result = load(f"bit-depth-{bits}").training_set(data, seed=0).images
    for picture, found in zip(data.images, result, strict=True):
        pillow = ImageOps.posterize(Image.fromarray(picture.permute(1, 2, 0).numpy()), bits)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(pillow))
    assert torch.equal(load("bit-depth").pictures(data.images, None, 0), data.images & 0xC0)


def test_blur_has_the_weights_of_a_gaussian():
    """One bright pixel becomes the kernel: exp(-r^2 / 2 sigma^2) over three, outer product."""
    for name, sigma in (("blur", 1.0), ("blur-0.5", 0.5)):
        dot = torch.zeros(1, 1, 7, 7, dtype=torch.uint8)
        dot[0, 0, 3, 3] = 255
        line = np.exp(-(np.array([-1.0, 0, 1]) ** 2) / (2 * sigma**2))
        line /= line.sum()
        found = load(name).pictures(dot, None, 0)[0, 0].numpy()
        assert np.array_equal(found[2:5, 2:5], np.rint(255 * np.outer(line, line)))
        assert not found[:2].any() and not found[5:].any() and not found[:, :2].any()


def test_blur_mirrors_edges_and_keeps_even_areas():
    even = torch.full((2, 3, 5, 6), 201, dtype=torch.uint8)
    assert torch.equal(load("blur-10").pictures(even, None, 0), even)
    stripe = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    stripe[..., 1] = 100  # seen twice from column 0: itself and its mirror image
    side = np.exp(-0.5) / (1 + 2 * np.exp(-0.5))
    columns = np.rint([200 * side, 100 * (1 - 2 * side), 100 * side, 0])
    assert np.array_equal(load("blur").pictures(stripe, None, 0)[0, 0].numpy(), [columns] * 4)


def test_the_blur_of_the_literature_is_none(tiny):
    data = tiny()
    assert torch.equal(load("blur-0.1").training_set(data, seed=0).images, data.images)


@pytest.mark.parametrize(
    ("name", "small"), [("resize", (6, 6)), ("resize-0.25", (3, 3)), ("resize-0.9", (11, 11))]
)
def test_resize_is_pillows_round_trip(tiny, name, small):
    """To two levels of 130: Pillow rounds between rows and columns too, and halves upwards."""
    data = tiny()
    result = load(name).training_set(data, seed=0).images
    for picture, found in zip(data.images, result, strict=True):
        pillow = Image.fromarray(picture.permute(1, 2, 0).numpy())
        for size in (small, (12, 12)):
            pillow = pillow.resize(size, Image.Resampling.BILINEAR)
        difference = found.permute(1, 2, 0).numpy().astype(int) - np.asarray(pillow).astype(int)
        assert abs(difference).max() <= 2


def quiet(phase, done, total):
    pass


def test_projection_takes_out_what_the_linear_model_sees(tiny):
    """Beyond rounding nothing of its weights is left, and all that is at right angles to them."""
    data = replace(tiny(), images=tiny().images // 2 + 64)  # so grey that nothing is cut
    weight, right = linear_model(data, 3, quiet)
    after, figures = projected(data, 3, quiet)
    before, x = (d.images.double().flatten(1) for d in (data, after))
    weight = weight.double()
    # Each of 432 pixels is off by at most half a level, a direction by half of its weights' sum.
    bound = 0.51 * weight.abs().sum(0)
    assert figures == {"separability": round(right, 3), "clamped": 0.0}
    assert ((x @ weight).abs() <= bound).all()
    assert (before @ weight).abs().max() > 10 * bound.max()
    rest = (x - before) - (x - before) @ weight @ torch.linalg.pinv(weight)
    assert rest.abs().max() < 1


def test_separability_is_that_of_class_wise_noise(tiny):
    """Pictures without any class of their own, where noise of 8/255 is all there is to read."""
    data = tiny(per_class=300, contrast=0)  # more pictures than pixels: none is learnt by heart
    noise = random_noise(data.shape, 4, Budget(8 / 255), 0, "class")
    noisy = replace(data, images=protected_pictures(data.images, noise, data.labels))
    assert linear_model(noisy, 0, quiet)[1] > 90 and linear_model(data, 0, quiet)[1] < 75


def test_projection_trains_the_victim_of_the_attack(tiny, means):
    told = []
    means = replace(means, progress=lambda *state: told.append(state))
    config = VictimConfig(arch="cnn-w8", epochs=1, batch=16)
    options = {"seed": 0, "step": train_step, "progress": lambda done, total, info: None}
    curves = load("orthogonal-projection").train(
        tiny(), tiny(seed=1), config, means=means, **options
    )
    assert len(curves["accuracy"]) == 1 and 25 <= curves["separability"] <= 100
    assert told[-1] == ("linear model", 20, 20)


def test_dilution_adds_clean_pictures(tiny, means):
    data, aux = tiny(), means.aux
    known = {bytes(x.numpy().tobytes()) for x in aux.images}
    few, many = (load(name).training_set(data, 0, means) for name in ("dilution", "dilution-25"))
    for train, count in ((few, 10), (many, 24)):
        assert len(train) == 96 + count and torch.equal(train.images[:96], data.images)
        assert train.ids[:96] == data.ids and train.root is None
        added = train.subset(range(96, len(train)))
        assert {bytes(x.numpy().tobytes()) for x in added.images} <= known
        rows = [aux.ids.index(name.removeprefix("aux:")) for name in added.ids]
        assert torch.equal(added.images, aux.images[rows])
        assert torch.equal(added.labels, aux.labels[rows])
    assert (
        few.ids == many.ids[:106] and few.ids != load("dilution").training_set(data, 1, means).ids
    )
    assert len(load("dilution-100").training_set(data, 0, means)) == 192
    with pytest.raises(DataError, match="--aux aux: has 96 pictures, and 101 % of 96 are 97"):
        load("dilution-101").training_set(data, 0, means)


@pytest.mark.parametrize(
    ("family", "low", "middle", "high", "beyond"),
    [
        ("jpeg", "1", "30", "95", ("0", "96", "30.5", "good")),
        ("bit-depth", "1", "4", "7", ("0", "8", "2.5", "few")),
        ("blur", "0.1", "2.5", "10", ("0", "0.05", "11", "nan", "much")),
        ("resize", "0.1", "0.75", "0.9", ("0", "1", "2", "nan", "much")),
        ("dilution", "1", "25", "1000", ("0", "1001", "0.5")),
    ],
)
def test_strengths(family, low, middle, high, beyond):
    for strength in (low, middle, high):
        assert load(f"{family}-{strength}").name == f"{family}-{strength}"
        assert len(suite(f"{family}-{strength},{family}-{strength}")) == 1
    for strength in beyond:
        with pytest.raises(UsageError, match=f"--suite {family}-{strength}: {strength} is no"):
            load(f"{family}-{strength}")


def test_the_usual_strength_has_no_other_name():
    for usual in ("jpeg-10", "bit-depth-2", "blur-1.0", "resize-0.5", "dilution-10"):
        assert [c.name for c in suite(f"{usual.rpartition('-')[0]},{usual}")] == [
            usual.rpartition("-")[0]
        ]
    with pytest.raises(UsageError, match="grayscale has no strength to choose"):
        load("grayscale-2")


def test_suites_are_names_of_the_table():
    for name, members in SUITES.items():
        assert [c.name for c in suite(name)] == list(members)
    assert [c.name for c in suite(" jpeg, none,jpeg")] == ["jpeg", "none"]
    assert [c.name for c in suite("jpeg,quick")][:3] == ["jpeg", "none", "grayscale"]
    assert {family_of(name) for name in SUITES["full"]} == set(SUMMARIES)
    assert [c.name for c in suite(["jpeg", Countermeasure("halved", halved)])] == ["jpeg", "halved"]


@pytest.mark.parametrize("spec", ["everything", "none,everything", ["none", "everything"]])
def test_an_unknown_name_comes_with_the_list(spec):
    with pytest.raises(UsageError, match="--suite everything.*quick.*grayscale, jpeg, bit-depth"):
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
