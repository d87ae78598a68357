"""The embedded set: real pictures, disjoint splits, the same everywhere."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from fastue.core.errors import DataError, UsageError
from fastue.data import demo
from fastue.data.sources import open_dataset

pytestmark = pytest.mark.skipif(
    demo.importlib.util.find_spec("skimage") is None,
    reason="scikit-image, whose photographs these are, is missing",
)


@pytest.fixture(scope="module")
def splits():
    return open_dataset("demo:train"), open_dataset("demo:test")


def corners(data, stem):
    return [
        tuple(map(int, name.split("-")[-2:])) for name in data.ids if name.startswith(f"{stem}/")
    ]


def test_sizes_and_classes(splits):
    for data, count in zip(splits, (300, 60), strict=True):
        assert data.shape == (3, 32, 32) and data.num_classes == 10
        assert torch.bincount(data.labels).tolist() == [count] * 10
    assert splits[0].classes == splits[1].classes


def test_scikit_image_itself_is_not_imported():
    """Only its pictures are read: the package takes seconds."""
    code = "import sys; from fastue.data.demo import demo_dataset; demo_dataset('test');"
    code += "print('skimage' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "False"


def test_the_same_crops_everywhere(splits):
    assert (
        splits[0].fingerprint()
        == "bfd35c0657de0509ff4b87d16d30c70f75800250aecc3b40f2424f65dc93e0bb"
    )
    assert (
        splits[1].fingerprint()
        == "b3f5f29dfd9ff6f9cb6f3160336cae0405a8097611f76b9a5c98b1dc7b65f056"
    )


def test_train_and_test_share_no_pixel(splits):
    for stem in splits[0].classes:
        trained_on = np.zeros((1500, 1500), dtype=bool)
        for top, left in corners(splits[0], stem):
            trained_on[top : top + 32, left : left + 32] = True
        for top, left in corners(splits[1], stem):
            assert not trained_on[top : top + 32, left : left + 32].any()


def test_brightness_contrast_and_tint_do_not_tell_the_class(splits):
    train, test = splits
    for data in splits:
        grey = data.images.float().mean(1).flatten(1)
        assert (grey.mean(1) - 128).abs().max() < 8
        assert (data.images.float().mean((2, 3)) - 128).abs().max() < 8
    # A classifier on each picture's mean colour alone stays far from what the texture gives (about
    # 80 %).
    features = [data.images.float().mean((2, 3)) - 128 for data in splits]
    centres = torch.stack([features[0][train.labels == k].mean(0) for k in range(10)])
    guessed = torch.cdist(features[1], centres).argmin(1)
    assert (guessed == test.labels).float().mean() < 0.35


def test_options(splits):
    data = demo.demo_dataset(
        "test", photographs=("brick.png", "coffee.png"), per_class=5, size=16, colour=1.0
    )
    assert len(data) == 10 and data.shape == (3, 16, 16)
    assert torch.equal(data.images[:5, 0], data.images[:5, 2])  # brick is a grey photograph
    assert not torch.equal(data.images[5:, 0], data.images[5:, 2])
    assert demo.demo_dataset("test", seed=1, per_class=5).fingerprint() != splits[1].fingerprint()


def test_wrong_use(monkeypatch):
    with pytest.raises(UsageError, match="splits train and test"):
        open_dataset("demo:val")
    assert len(open_dataset("demo:test", size=32)) == 600
    with pytest.raises(UsageError, match="--size 8"):
        open_dataset("demo:train", size=8)
    with pytest.raises(UsageError, match="were asked for"):
        demo.demo_dataset("test", per_class=10**5)
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-image"):
        open_dataset("demo:train")
