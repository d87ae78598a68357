"""LSP: what its noise is made of, what it does not depend on, and that a linear model reads it."""

import numpy as np
import pytest
import torch

from fastue.core.errors import UsageError
from fastue.data.budget import lengths, within_length
from fastue.methods.lsp import METHOD, LSPConfig, lsp


def config(**settings):
    return LSPConfig(**{"patch": 4, **settings})


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("mode", ["sample", "class"])
def test_noise_uses_up_its_budget(tiny, mode, norm):
    data = tiny()
    result = lsp(data, config(mode=mode, norm=norm))
    written = result.quantised()
    assert written.shape == ((96 if mode == "sample" else 4), 3, 12, 12)
    assert (result.per, result.norm, result.surrogate) == (mode, norm, None)
    if norm == "linf":
        assert written.abs().amax((1, 2, 3)).tolist() == [8] * len(written)
    else:
        published = 6 / 255 * 3072**0.5
        assert lengths(written).min() > 0.99 * published * 255
        assert within_length(float(lengths(written).max()), published)


def test_blocks_are_constant_and_the_last_is_cut_off(tiny):
    noise = lsp(tiny(), config(patch=5)).noise
    blocks = [noise[:, :, a : a + 5, b : b + 5].flatten(2) for a in (0, 5, 10) for b in (0, 5, 10)]
    assert all(torch.equal(block.amin(2), block.amax(2)) for block in blocks)
    assert len({float(block[0, 0, 0]) for block in blocks}) > 2


def test_classes_have_different_corners_and_pictures_differ_around_them(tiny):
    data = tiny()
    corners = lsp(data, config(mode="class")).noise
    assert len({corner.numpy().tobytes() for corner in corners}) == 4
    assert torch.equal(corners.abs(), torch.full_like(corners, 8 / 255))
    noise = lsp(data, config()).noise
    assert len({picture.numpy().tobytes() for picture in noise}) == len(data)
    # A point is nearer to its corner than to any other in nearly all pictures: sign agreement.
    agreement = torch.einsum("nchw,kchw->nk", noise, corners)
    assert (agreement.argmax(1) == data.labels).float().mean() > 0.99


def test_a_linear_model_reads_the_class_from_the_noise_alone(tiny):
    """Fitted on half of the pictures, right on the other half: the property the method is named for."""
    data = tiny()
    noise = lsp(data, config()).noise.flatten(1).double().numpy()
    targets = np.eye(4)[data.labels.numpy()]
    weights = np.linalg.pinv(noise[::2]) @ targets[::2]
    right = (noise[1::2] @ weights).argmax(1) == data.labels.numpy()[1::2]
    assert right.mean() > 0.95


def test_a_picture_s_noise_depends_on_seed_row_and_class_only(tiny):
    data = tiny()
    whole = lsp(data, config()).noise
    assert torch.equal(whole, lsp(data, config()).noise)
    assert torch.equal(whole[:10], lsp(data.subset(range(10)), config()).noise)
    assert not torch.equal(whole, lsp(data, config(seed=1)).noise)


def test_more_pictures_than_one_generator_serves(tiny):
    data = tiny(300)  # 1,200 pictures
    noise = lsp(data, config()).noise
    assert len({picture.numpy().tobytes() for picture in noise}) == len(data)
    assert torch.equal(noise[:1100], lsp(data.subset(range(1100)), config()).noise)


def test_defaults():
    assert LSPConfig().eps == pytest.approx(8 / 255) and LSPConfig().patch == 8
    assert LSPConfig(norm="l2").eps == pytest.approx(1.3041, abs=1e-4)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"norm": "l1"}, "--norm l1"), ({"patch": 0}, "--patch 0"), ({"patch": "x"}, "--patch x"),
        ({"eps": "8"}, "did you mean 8/255"), ({"norm": "l2", "eps": "0.001"}, "at least 1/255"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(settings, words):
    with pytest.raises(UsageError, match=words):
        LSPConfig(**settings)


def test_blocks_that_cannot_hold_the_classes_are_refused(tiny):
    data = tiny()
    grey = type(data)(data.images[:, :1], data.labels, data.ids, data.classes)
    METHOD.check(grey, config(patch=6))
    with pytest.raises(UsageError, match="1 blocks do not tell 4 classes apart"):
        METHOD.check(grey, config(patch=12))
    with pytest.raises(UsageError, match="the pictures are 12x12"):
        METHOD.check(data, config(patch=13))
