"""How visible a change is: PSNR and SSIM against others' figures, LPIPS only where it is at hand."""

import importlib.machinery
import math
import sys
import types

import numpy as np
import pytest
import torch

from fastue.data import visibility


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (5, 3, 32, 40), generator=generator)
    noise = torch.randint(-8, 9, clean.shape, generator=generator)
    return clean.to(torch.uint8), (clean + noise).clamp(0, 255).to(torch.uint8)


def test_psnr_and_ssim_are_those_of_scikit_image(pictures):
    metrics = pytest.importorskip("skimage.metrics")
    clean, protected = (part.permute(0, 2, 3, 1).numpy() for part in pictures)
    psnr = metrics.peak_signal_noise_ratio(clean, protected)
    ssim = np.mean(
        [
            metrics.structural_similarity(x, y, channel_axis=2)
            for x, y in zip(clean, protected, strict=True)
        ]
    )
    assert visibility.psnr(*pictures) == pytest.approx(psnr, rel=1e-9)
    assert visibility.ssim(*pictures) == pytest.approx(ssim, rel=1e-9)
    assert visibility.measure(*pictures)["ssim"] == pytest.approx(ssim, abs=5e-5)


def test_nothing_is_changed(pictures):
    clean = pictures[0]
    assert math.isinf(visibility.psnr(clean, clean)) and visibility.ssim(clean, clean) == 1
    assert visibility.measure(clean, clean) == {"psnr_db": None, "ssim": 1.0, "lpips": None}
    small = clean[:, :1, :6, :6]
    assert visibility.ssim(small, small) is None
    assert visibility.text(visibility.measure(small, small)) == "visibility: not measured"


def test_lpips_is_measured_only_where_its_weights_are(pictures, monkeypatch, tmp_path):
    """With a package that stands for it: the real one is not among our dependencies."""

    class LPIPS:
        def __init__(self, net, verbose):
            assert (tmp_path / "checkpoints" / visibility._LPIPS_WEIGHTS).exists()

        def __call__(self, x, y, normalize):
            assert normalize and x.shape == (5, 3, 32, 40) and 0 <= x.min() <= y.max() <= 1
            return (x - y).abs().mean((1, 2, 3), keepdim=True)

    for name in ("lpips", "torchvision"):
        package = types.ModuleType(name)
        package.__spec__ = importlib.machinery.ModuleSpec(name, None)
        package.LPIPS = LPIPS
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert visibility.lpips(*pictures) is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / visibility._LPIPS_WEIGHTS).touch()
    gray = [part[:, :1] for part in pictures]
    assert 0.01 < visibility.lpips(*gray) < 0.03
    values = visibility.measure(*pictures)
    assert 0.01 < values["lpips"] < 0.03 and "LPIPS 0.0" in visibility.text(values)
    assert visibility.lpips(*(part[:, :, :16] for part in pictures)) is None


def test_the_sample_is_keyed_and_bounded():
    assert torch.equal(visibility.sample(1000, 3), visibility.sample(1000, 3))
    assert not torch.equal(visibility.sample(1000, 3), visibility.sample(1000, 4))
    assert len(visibility.sample(1000, 3)) == 64 and visibility.sample(5, 3).tolist() == [*range(5)]
