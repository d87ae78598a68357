"""Transforms in the search: they are what they are called, their gradient goes back, and a draw
belongs to a picture."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fastue.core.errors import UsageError
from fastue.countermeasures.grayscale import grayscale
from fastue.methods import survive
from fastue.methods.emn import SURVIVE, EMNConfig, emn


def smooth(h=32, w=40):
    """Something like a photograph: [1, 3, h, w] in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij")
    waves = [0.5 + 0.4 * torch.sin(5 * x + k + 3 * y * y) * torch.cos(4 * y - k) for k in range(3)]
    return torch.stack(waves)[None]


def test_names():
    assert tuple(survive.TRANSFORMS) == SURVIVE
    assert EMNConfig(survive=" blur,gray,gray").survive == "gray,blur"
    with pytest.raises(UsageError, match="--survive .*gamma is none of gray, jpeg, blur"):
        EMNConfig(survive="gray,gamma")
    assert "survive" not in EMNConfig().record(), "runs of before it go on"


def test_gray_is_the_countermeasures():
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    theirs = grayscale(x, None, 0).float()
    assert (255 * survive.gray(x / 255) - theirs).abs().max() <= 0.51
    assert torch.equal(survive.gray(x[:, :1] / 255), x[:, :1] / 255)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("quality", [10, 30, 75])
def test_jpeg_is_pillows(channels, quality):
    x = (255 * smooth()[:, :channels]).round()
    noise = torch.randint(-8, 9, x.shape, generator=torch.Generator().manual_seed(0))
    x = (x + noise).clamp(0, 255)
    pixels = x[0].permute(1, 2, 0).byte().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    theirs = np.asarray(Image.open(file), np.float32).reshape(pixels.shape)
    ours = 255 * survive.jpeg(x / 255, quality)[0].permute(1, 2, 0).numpy()
    apart, changed = np.abs(ours - theirs).mean(), np.abs(pixels - theirs).mean()
    assert apart < 0.25 * changed and apart < 1.5


def test_blur_is_a_mean_and_its_gradient_goes_back():
    x = smooth().double()
    blurred = survive.blur(x)
    assert blurred.mean().allclose(x.mean(), atol=1e-3)
    spot = torch.zeros(1, 1, 5, 5)
    spot[0, 0, 2, 2] = 1
    weights = np.exp(-0.5 * np.array([1, 0, 1]))
    weights /= weights.sum()
    assert np.allclose(survive.blur(spot)[0, 0, 1:4, 1:4], np.outer(weights, weights))
    assert torch.autograd.gradcheck(survive.blur, torch.rand(1, 2, 3, 4).double().requires_grad_())


@pytest.mark.parametrize("name", SURVIVE)
def test_gradient_reaches_every_pixel(name):
    x = smooth(16, 16)
    seen = lambda t: survive.TRANSFORMS[name](t)  # noqa: E731
    weights = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    gradient, right = survive.pulled_back(x, seen, lambda shown: (weights, torch.tensor(1)))
    assert gradient.shape == x.shape and gradient.isfinite().all() and right == 1
    assert (gradient != 0).float().mean() > 0.9
    if name == "gray":
        expected = weights.sum(1, keepdim=True) * torch.tensor([0.299, 0.587, 0.114]).view(
            1, 3, 1, 1
        )
        assert torch.allclose(gradient, expected)


def test_a_draw_belongs_to_a_picture():
    x, index = torch.rand(64, 3, 16, 16), torch.arange(100, 164)
    whole = survive.transformed(x, ["gray", "blur"], index, seed=1, use="training", number=3)
    parts = [
        survive.transformed(x[k], ["gray", "blur"], index[k], seed=1, use="training", number=3)
        for k in (slice(0, 5), slice(5, 64))
    ]
    assert torch.equal(whole, torch.cat(parts))
    same = (whole == x).flatten(1).all(1)
    gray = (whole[:, :1] == whole).flatten(1).all(1)
    assert 20 <= same.sum() <= 44 and 5 <= gray.sum() <= 27, "half as they are, a quarter gray"
    other = survive.transformed(x, ["gray", "blur"], index, seed=1, use="training", number=4)
    assert not torch.equal(whole, other)


@pytest.mark.parametrize("mode", ["class", "sample"])
def test_noise_that_survives_gray_differs_and_its_run_can_be_repeated(tiny, mode):
    config = dict(arch="cnn-w8", mode=mode, max_sweeps=2, train_steps=2, batch=16, grain=1)
    plain, seen, again = (
        emn(tiny(), EMNConfig(**config, survive=names)).noise for names in ("", "gray", "gray")
    )
    assert torch.equal(seen, again) and not torch.equal(seen, plain)
    assert seen.abs().max() <= 8 / 255
