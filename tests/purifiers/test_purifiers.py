"""Purifiers: the schedule, the same picture in any batch, and trainings that are cut off."""

import math
import threading
import time
from dataclasses import replace

import pytest
import torch

from fastue.data.dataset import epoch_order
from fastue.purifiers import training
from fastue.purifiers.sampling import COMPAT, SAMPLERS, Sampler, purify, released_scale
from fastue.purifiers.schedule import alpha_bar, beta, posterior, times
from fastue.purifiers.training import PurifierConfig, trained
from fastue.purifiers.unet import UNet

SMALL = PurifierConfig(steps=6, width=8, batch=8)


@pytest.mark.parametrize("t,to", [(19, 18), (1, 0), (99, 88), (149, 3), (60, -1)])
def test_a_step_leads_from_one_marginal_to_the_other(t, to):
    c0, cx, sigma = posterior(t, to)
    assert math.isclose(c0 + cx * alpha_bar(t) ** 0.5, alpha_bar(to) ** 0.5, rel_tol=1e-12)
    assert math.isclose(cx**2 * (1 - alpha_bar(t)) + sigma**2, 1 - alpha_bar(to), abs_tol=1e-12)


def test_schedule_and_times():
    assert alpha_bar(-1) == 1 and math.isclose(alpha_bar(0), 1 - 1e-4)
    assert math.isclose(alpha_bar(999), 4.0358e-5, rel_tol=1e-3)
    assert times(20, 20) == list(range(19, -1, -1))
    assert times(61, 1) == [60] and times(100, 10) == [99, 88, 77, 66, 55, 44, 33, 22, 11, 0]
    with pytest.raises(ValueError, match="steps 5"):
        times(4, 5)


def rough_net(channels=3):
    torch.manual_seed(0)
    net = UNet(channels, 8)
    torch.nn.init.normal_(net.leave[-1].weight, std=0.1)
    return net.eval()


def looks(x, y):
    """A distance that needs no training."""
    return (x.mean((2, 3)) - y.mean((2, 3))).square().sum(1)


def in_parts(net, images, ids, sampler, size, seed=5):
    parts = [
        purify(net, x, i, sampler, seed=seed, distance=looks)
        for x, i in zip(images.split(size), ids.split(size), strict=True)
    ]
    return torch.cat(parts)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_comes_out_the_same_in_any_batch(name, tiny):
    images, ids, net = tiny().images[:65].clone(), torch.arange(65) + 100, rough_net()
    images[64] = images[3]
    sampler = replace(SAMPLERS[name], steps=1, iterations=1)
    whole = in_parts(net, images, ids, sampler, 65)
    assert not torch.equal(whole, images) and not torch.equal(whole[64], whole[3])
    for size in (1, 7, 64):
        assert torch.equal(in_parts(net, images, ids, sampler, size), whole)
    assert not torch.equal(in_parts(net, images, ids, sampler, 65, seed=6), whole)


def test_the_released_sampler_depends_on_the_batch_and_ours_does_not(tiny):
    images, ids, net = tiny().images[:3], torch.arange(3), rough_net()
    for sampler, same in ((SAMPLERS["jcdp"], True), (COMPAT["jcdp2023"], False)):
        sampler = replace(sampler, iterations=1)
        whole = in_parts(net, images, ids, sampler, 3)
        assert torch.equal(in_parts(net, images, ids, sampler, 1), whole) == same


def test_the_released_guidance_is_almost_nothing():
    """As measured on the released code at its batch size (pull of a step, t = 19 and 11)."""
    for t, pull in ((19, 1.6e-4), (11, 7.0e-5)):
        assert beta(t) * released_scale(t) * 2 / (500 * 3072) == pytest.approx(pull, rel=0.03)


def test_a_full_push_takes_away_what_looks_different_and_nothing_else(tiny):
    """At the last step, where the picture is what was predicted; looks are its mean colour here."""
    images, ids = tiny().images[:6], torch.arange(6)
    free, pushed = (
        purify(rough_net(), images, ids, Sampler(61, 1, push=push), seed=0, distance=looks)
        for push in (0.0, 1.0)
    )
    far, near = (x.float().mean((2, 3)) - images.float().mean((2, 3)) for x in (free, pushed))
    assert far.abs().max() > 2 and near.abs().max() < 0.2
    moved = (pushed.float() - free.float()).flatten(2)
    evenly = (moved - moved.median(2, keepdim=True).values).abs() <= 1
    assert evenly.float().mean() > 0.95  # but where levels end


def test_full_pull_gives_the_picture_back_and_none_does_not(tiny):
    images, ids = tiny().images[:3], torch.arange(3)
    full, none = (Sampler(20, 5, iterations=2, pull=pull) for pull in (1.0, 0.0))
    assert torch.equal(purify(rough_net(), images, ids, full, seed=0), images)
    assert not torch.equal(purify(rough_net(), images, ids, none, seed=0), images)


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 13, 10), (3, 3, 3)])
def test_pictures_of_any_size_go_through(shape):
    x = torch.randn(2, *shape)
    assert rough_net(shape[0])(x, torch.tensor([0, 140])).shape == x.shape


def test_a_training_that_was_cut_off_ends_with_the_same_weights(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "EVERY", 2)
    plain = trained(tiny(), SMALL)

    def cut(phase, done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tiny(), SMALL, cache=tmp_path, progress=cut)
    steps = []
    resumed = trained(
        tiny(), SMALL, cache=tmp_path, progress=lambda phase, done, total: steps.append(done)
    )
    assert steps == [5, 6]
    assert len(list(tmp_path.glob("*.safetensors"))) == 1, "the checkpoint stays behind"
    again = trained(tiny(), SMALL, cache=tmp_path, progress=cut)
    for a, b, c in zip(plain.parameters(), resumed.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_two_at_once_train_one_purifier(tiny, tmp_path):
    """The second waits for the first, and reads what it has trained."""
    steps, nets = [], []

    def train():
        nets.append(
            trained(tiny(), SMALL, cache=tmp_path, progress=lambda *step: steps.append(step))
        )

    threads = [threading.Thread(target=train) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(steps) == SMALL.steps
    one, other = (net.state_dict() for net in nets)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_other_pictures_get_their_own_purifier(tiny, tmp_path):
    trained(tiny(), SMALL, cache=tmp_path), trained(tiny(seed=1), SMALL, cache=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.slow
def test_a_minute_of_training_denoises_pictures_it_has_not_seen(pictures):
    order = epoch_order(len(pictures), 0, 0)
    aux, held = pictures.subset(order[:5000]), pictures.subset(order[-300:])
    start = time.process_time()
    net = trained(aux, PurifierConfig(steps=650))
    print(f"{time.process_time() - start:.0f} CPU seconds")
    x = held.images.float().contiguous() / 127.5 - 1
    for t in (10, 20, 50, 100):
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))
        bar = alpha_bar(t)
        noisy = bar**0.5 * x + (1 - bar) ** 0.5 * noise
        with torch.no_grad():
            clean = (noisy - (1 - bar) ** 0.5 * net(noisy, torch.full((len(x),), t))) / bar**0.5
        before, after = (
            6.02 - 10 * (y.clamp(-1, 1) - x).square().mean().log10() for y in (noisy, clean)
        )
        print(f"t = {t}: {before:.1f} -> {after:.1f} dB")
        assert t != 50 or after >= before + 4
