"""UGE: what each term does to the noise, what is authorized, and what a kill costs."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastue import matching, models
from fastue.core.clock import Clock
from fastue.core.errors import UsageError
from fastue.methods import uge as module
from fastue.methods.base import Checkpointer
from fastue.methods.uge import UGEConfig, check, uge
from fastue.models import authorized, features, saved
from fastue.models.generator import Generator

SMALL = {"arch": "cnn-w8", "batch": 32, "epochs": 3, "sweeps": 4, "train_steps": 5, "grain": 3,
         "snapshots": 2}  # fmt: skip


def last(result, term):
    return result.history[-1][term]


@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("term", ["fd", "emn"])
def test_noise_descends_its_term(tiny, term, free):
    result = uge(tiny(), UGEConfig(weights=f"{term}=1", free=free, **{**SMALL, "sweeps": 8}))
    first = result.history[0][term]
    assert last(result, term) < first - 0.05 * abs(first)
    assert 1 / 255 < result.noise.abs().max() <= 8 / 255 + 1e-7
    data = tiny()
    written = result.apply(data.images, data.labels).int()
    assert 1 <= (written - data.images.int()).abs().max() <= 8, "as written, within the budget"


def test_undistillation_stays_within_its_margin(tiny):
    result = uge(tiny(), UGEConfig(weights="ud=1", free=True, **SMALL))
    assert -module.MARGIN <= last(result, "ud") < result.history[0]["ud"] < 0


def test_matching_undoes_what_it_was_drawn_with(tiny):
    """Alone, the term leads back to pictures whose gradients are those of the clean ones."""
    both = [uge(tiny(), UGEConfig(weights=w, free=True, seed=1, **{**SMALL, "sweeps": 8}))
            for w in ("gm=1", "fd=1")]  # fmt: skip
    assert last(both[0], "gm") < 0.8 * both[0].history[0]["gm"]

    data, noises = tiny(), [result.noise for result in both]
    model = both[0].surrogate.eval()
    x = data.images.float() / 255
    each = lambda logits, y: F.cross_entropy(logits, y, reduction="none")  # noqa: E731
    distances = [
        matching.gradient_match(model, each, x, (x + noise).clamp(0, 1), data.labels).mean()
        for noise in noises
    ]
    assert distances[0] < distances[1]


@pytest.mark.parametrize(
    "settings",
    [
        {"level": "batch"}, {"layerwise": True}, {"late": True}, {"norm_term": 0.5}, {"clamp": True},
        {"distance": "plain", "weights": "fd=1"}, {"mode": "class", "weights": "gm=1,emn=1"},
        {"hackers": "cnn-w4,vgg11-w4", "weights": "emn=1"}, {"frozen": 2},
    ],
)  # fmt: skip
def test_every_setting_makes_another_noise(tiny, settings):
    usual = {"weights": settings.get("weights", "gm=1")}
    made = [uge(tiny(), UGEConfig(**{**SMALL, "sweeps": 2, **usual, **s})) for s in ({}, settings)]
    assert made[0].noise.shape != made[1].noise.shape or not torch.equal(
        made[0].noise, made[1].noise
    )
    assert all(torch.isfinite(result.noise).all() for result in made)


@pytest.mark.parametrize("settings", [{"free": True}, {}, {"mode": "class", "sweeps": 6}])
def test_killed_anywhere_and_resumed_gives_the_same_noise(tiny, tmp_path, settings):
    data = tiny()
    config = UGEConfig(weights="gm=1,fd=1,ud=1,emn=1", **{**SMALL, "sweeps": 2, **settings})
    whole = uge(data, config)

    class Killed(Exception):
        pass

    calls, died = 0, 0

    def dies(phase, done, total, info):
        nonlocal calls
        calls += phase.startswith("sweep")
        if calls > 2 * died + 1:
            raise Killed

    # The call comes before the snapshot: each death repeats a batch.
    for _ in range(50):
        try:
            resumed = uge(data, config, checkpoint=Checkpointer(tmp_path, seconds=0), progress=dies)
            break
        except Killed:
            died += 1
    assert died >= 2
    assert torch.equal(whole.noise, resumed.noise) and whole.history == resumed.history


def test_authorized_networks_of_files(tiny, tmp_path):
    data, paths = tiny(), []
    for seed, arch in enumerate(("cnn-w8", "vgg11-w4")):
        paths.append(tmp_path / f"{seed}.safetensors")
        model = authorized.authorized(arch, 4, 3, seed + 5)
        saved.save(paths[-1], model, arch=arch, classes=data.classes, channels=3)
    both = UGEConfig(authorized=",".join(map(str, paths)), weights="gm=1", **SMALL)
    result = uge(data, both)
    weights = models.build("cnn-w8", 4, 3, seed=5).state_dict()
    own = result.surrogate.state_dict()
    assert own.keys() == weights.keys() and all(torch.equal(own[k], weights[k]) for k in own)
    assert result.arch == "cnn-w8"
    one = uge(data, UGEConfig(authorized=str(paths[0]), weights="gm=1", **SMALL))
    assert not torch.equal(one.noise, result.noise)
    saved.save(paths[0], model, arch=arch, classes=list("abcd"), channels=3)
    with pytest.raises(UsageError, match="other classes"):
        check(data, both)
    saved.save(paths[0], model, arch=arch, classes=data.classes, channels=3, config={"frozen": 1})
    with pytest.raises(UsageError, match="needs --frozen 1"):
        check(data, both)


def test_a_frozen_front_stays_what_it_is(tmp_path):
    model = authorized.authorized("cnn-w8", 4, 3, 0, frozen=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model.train()
    F.cross_entropy(model(torch.rand(8, 3, 12, 12)), torch.arange(8) % 4).backward()
    optimizer.step()
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert moved and not any(n.startswith(("features.0.", "features.1.")) for n in moved)

    config = {"frozen": 2}
    saved.save(tmp_path / "a.safetensors", model, arch="cnn-w8", classes=list("0123"), channels=3,
               config=config)  # fmt: skip
    again, _ = authorized.load(tmp_path / "a.safetensors")
    assert [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in model.parameters()
    ]
    with pytest.raises(UsageError, match="--frozen 5"):
        authorized.authorized("cnn-w8", 4, 3, 0, frozen=5)


def test_clamp_has_no_gradient_where_it_acts_and_tanh_has():
    """x' stays within the budget and [0,1] in both."""
    x = torch.rand(2, 3, 12, 12)
    for plain in (True, False):
        model = Generator(3, 8 / 255, plain=plain)
        nn.init.constant_(model.last.bias, 5.0)  # far out of the budget
        shown = model.shown(x)
        assert (shown - x).abs().max() <= 8 / 255 + 1e-6 and 0 <= shown.min() <= shown.max() <= 1
        inside = x[..., 2:-2, 2:-2] < 0.9  # where [0,1] does not cut
        shown[..., 2:-2, 2:-2][inside].sum().backward()
        still = all(p.grad is None or not p.grad.any() for p in model.last.parameters())
        assert still == plain


def test_features_are_what_the_last_layer_sees():
    model = models.build("cnn-w8", 4, 3).eval()
    x = torch.rand(2, 3, 12, 12)
    assert torch.allclose(model.head(features.penultimate(model)(x)), model(x))
    with pytest.raises(UsageError, match="no linear layer|has none"):
        features.penultimate(nn.Conv2d(3, 3, 1))
    with pytest.raises(UsageError, match="--features clip"):
        features.pretrained("clip")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"weights": "gm"}, "--weights gm: gm: write gm=1"), ({"weights": "gm=-1"}, "0 or more"),
        ({"weights": "gm=0"}, "all weights are 0"), ({"weights": "gm=1,gm=2"}, "write gm=1"),
        ({"frozen": -1}, "--frozen -1"), ({"level": "pixel"}, "use sample or batch"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(settings, words):
    with pytest.raises(UsageError, match=words):
        UGEConfig(**settings)


def test_weights_are_one_text():
    assert UGEConfig(weights="emn=2,gm=0.50").weights == "gm=0.5,emn=2"
    assert UGEConfig(mode="class").free  # a generator's noise is a picture's


def test_a_profile_tells_how_each_layer_is_compared(tiny):
    clock = Clock(running=True)
    uge(tiny(), UGEConfig(weights="gm=1,fd=1", **{**SMALL, "sweeps": 1}), clock=clock)
    assert {"clean", "gm", "fd", "gradient", "noise"} <= clock.seconds.keys()
    text = clock.text()
    assert "features.0.0: materialised, 144 positions, 8 x 27" in text
    assert "head: ghost, 1 positions, 4 x 32" in text
