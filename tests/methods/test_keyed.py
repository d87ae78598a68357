"""Keyed noise: its key takes out what the method put in, and stays what it is."""

import pytest
import torch
from torch import nn

import fastue
from fastue.core.errors import DataError, UsageError
from fastue.data.sources import open_dataset
from fastue.data.store import NoiseStore
from fastue.data.tensorfile import write_tensors
from fastue.data.verify import open_protected
from fastue.methods.keyed import KeyedConfig, keyed, mean_picture, patterns
from fastue.models import projection
from fastue.models.projection import KeyProjection
from fastue.ops._grain import spread

SMALL = {"arch": "cnn-w4", "precision": "float32", "batch": 32, "train_steps": 2, "max_sweeps": 6,
         "subset": 1.0, "grain": 3}  # fmt: skip


def key_of(data, result):
    shown = spread(patterns(data, result), result.grain, *data.shape[1:])
    return KeyProjection(shown, mean_picture(data))


@pytest.mark.parametrize("mode", ["class", "sample"])
def test_the_key_takes_out_what_the_method_put_in(tiny, mode):
    data = tiny()  # its pixels are far enough from 0 and 255 that nothing is cut off
    result = keyed(data, KeyedConfig(mode=mode, **SMALL))
    written = result.apply(data.images, data.labels)
    change = (written.int() - data.images.int()).abs()
    assert 4 <= change.max() <= 8 and result.per == mode
    key = key_of(data, result)
    cleared, clean = key(written), key(data.images)
    assert (cleared - clean).abs().max() < 1e-6
    # What the key costs a picture is small beside it, and not nothing.
    loss = (clean - data.images / 255).norm() / (data.images / 255 - key.mean).norm()
    assert 0.01 < loss < 0.5


def test_a_key_of_another_run_leaves_noise_behind(tiny):
    data = tiny()
    result = keyed(data, KeyedConfig(**SMALL))
    other = key_of(data, keyed(data, KeyedConfig(**SMALL, seed=1)))
    written = result.apply(data.images, data.labels)
    assert (other(written) - other(data.images)).abs().max() > 1 / 255


def test_sample_wise_noise_is_the_class_s_pattern_with_a_sign(tiny):
    data = tiny()
    whole = keyed(data, KeyedConfig(**SMALL)).quantised()[data.labels].int()
    signed = keyed(data, KeyedConfig(mode="sample", **SMALL))
    noise = signed.quantised().int()
    same = (noise == whole).flatten(1).all(1)
    assert torch.equal(noise, torch.where(same, 1, -1)[:, None, None, None] * whole)
    for k in range(4):
        assert 0 < same[data.labels == k].sum() < 24
    assert torch.equal(signed.noise, keyed(data, KeyedConfig(mode="sample", **SMALL)).noise)


def test_the_layer_is_a_projection_that_nothing_trains():
    draw = torch.Generator().manual_seed(0)
    spanned = torch.randint(-8, 9, (5, 3, 6, 7), generator=draw).to(torch.int8)
    spanned[3], spanned[4] = 2 * spanned[0] - spanned[1], 0  # three directions in five patterns
    mean = torch.rand(3, 6, 7, generator=draw)
    key = KeyProjection(spanned, mean)
    assert key.base.shape == (3, 126) and not list(key.parameters())
    assert torch.allclose(key.base @ key.base.T, torch.eye(3), atol=1e-6)
    x = torch.rand(9, 3, 6, 7, generator=draw)
    once = key(x)
    assert (key(once) - once).abs().max() < 1e-6 and (once - x).abs().max() > 0.01
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(key(x), once)
    assert (key(mean[None]) - mean).abs().max() < 1e-6
    moved = x + torch.einsum("nk,kchw->nchw", torch.randn(9, 5, generator=draw), spanned.float())
    assert (key(moved) - once).abs().max() < 1e-4
    x.requires_grad_()
    key(x).square().sum().backward()
    assert (x.grad.flatten(1) @ key.base.T).abs().max() < 1e-5  # nothing flows along the noise
    with pytest.raises(DataError, match="do not fit a key.*in front of cropping"):
        key(x[..., :5])


def test_kinds_of_pictures_and_layouts():
    key = KeyProjection(torch.eye(4).view(4, 1, 2, 2)[:1], torch.full((1, 2, 2), 0.5))
    x = torch.tensor([[[[0, 10], [20, 255]]]], dtype=torch.uint8)
    assert torch.allclose(key(x), torch.tensor([[[[127.5, 10], [20, 255]]]]) / 255)
    assert torch.equal(key(x), key(x.float() / 255)) and key(x.half() / 255).dtype == torch.half
    assert torch.equal(key.pictures(x), torch.tensor([[[[128, 10], [20, 255]]]], dtype=torch.uint8))
    last = x.expand(2, 1, 2, 2).contiguous(memory_format=torch.channels_last)
    assert key(last).is_contiguous(memory_format=torch.channels_last)


def test_the_file_of_a_run_opens_its_pictures(tiny_folder, tmp_path):
    data, out = open_dataset(tiny_folder()), tmp_path / "out"
    fastue.protect(data, out, "keyed", check=False, device="cpu", **SMALL)
    key = fastue.KeyProjection.load(out / "key.safetensors")
    manifest = NoiseStore.open(out).manifest
    for name in ("method", "classes", "source_fingerprint"):
        assert key.about[name] == manifest[name]
    assert not list((out / "images").rglob("key*"))
    written = open_protected(out).images
    assert (key(written) - key(data.images)).abs().max() < 1e-6
    # In front of a network, which learns behind it, the layer stays what it was.
    network = nn.Sequential(key, nn.Flatten(), nn.Linear(432, 4))
    before = key.base.clone()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.1)
    network(written).sum().backward()
    optimizer.step()
    assert torch.equal(key.base, before) and len(list(network.parameters())) == 2


def test_a_run_that_was_killed_before_its_end_ends_in_the_same_key(tiny, tmp_path, monkeypatch):
    files = []
    for name in ("whole", "killed"):
        out = tmp_path / name
        if name == "killed":
            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr(projection, "write_tensors", _killed)
                fastue.protect(tiny(), out, "keyed", check=False, device="cpu", **SMALL)
            assert not (out / "key.safetensors").exists()
        fastue.protect(tiny(), out, "keyed", check=False, device="cpu", **SMALL)
        files.append((out / "key.safetensors").read_bytes())
    assert files[0] == files[1]


def _killed(*arguments):
    raise KeyboardInterrupt


def test_classes_that_are_not_protected_have_no_part_in_the_key(tiny):
    data = tiny()
    result = keyed(data, KeyedConfig(identities="1,2", **SMALL))
    assert len(key_of(data, result).base) == 2


def test_what_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--compat emn2021"):
        KeyedConfig(compat="emn2021")
    with pytest.raises(DataError, match="no such file"):
        KeyProjection.load(tmp_path / "none")
    write_tensors(tmp_path / "other.safetensors", {}, {"kind": "surrogate"})
    with pytest.raises(DataError, match="no key"):
        KeyProjection.load(tmp_path / "other.safetensors")
