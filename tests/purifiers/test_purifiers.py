"""Purifiers: the schedule, the same picture in any batch, and trainings that are cut off."""

import math
import time
from dataclasses import replace

import pytest
import torch

from fastue.data.dataset import epoch_order
from fastue.purifiers import training
from fastue.purifiers.sampling import SAMPLERS, Sampler, purify
from fastue.purifiers.schedule import alpha_bar, posterior, times
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


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_comes_out_the_same_in_any_batch(name, tiny):
    images, ids, net = tiny().images[:9], torch.arange(9) + 100, rough_net()
    sampler = replace(SAMPLERS[name], steps=min(SAMPLERS[name].steps, 2))
    whole = purify(net, images, ids, sampler, seed=5)
    assert not torch.equal(whole, images)
    for size in (1, 7):
        parts = [
            purify(net, x, i, sampler, seed=5)
            for x, i in zip(images.split(size), ids.split(size), strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(purify(net, images, ids, sampler, seed=6), whole)


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
    assert len(list(tmp_path.iterdir())) == 1, "the checkpoint stays behind"
    again = trained(tiny(), SMALL, cache=tmp_path, progress=cut)
    for a, b, c in zip(plain.parameters(), resumed.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_other_pictures_get_their_own_purifier(tiny, tmp_path):
    trained(tiny(), SMALL, cache=tmp_path), trained(tiny(seed=1), SMALL, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_a_short_training_denoises_pictures_it_has_not_seen(pictures):
    # Not yet seen to the end: 50 steps (44 CPU s) gave 1.5 dB on 300 pictures; 165 are a guess.
    order = epoch_order(len(pictures), 0, 0)
    aux, held = pictures.subset(order[:-200]), pictures.subset(order[-200:])
    start = time.process_time()
    net = trained(aux, PurifierConfig(steps=165))
    print(f"{time.process_time() - start:.0f} CPU seconds")
    x = held.images.float().contiguous() / 127.5 - 1
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    bar, t = alpha_bar(50), torch.full((len(x),), 50)
    noisy = bar**0.5 * x + (1 - bar) ** 0.5 * noise
    with torch.no_grad():
        clean = (noisy - (1 - bar) ** 0.5 * net(noisy, t)) / bar**0.5
    before, after = (-10 * (y.clamp(-1, 1) - x).square().mean().log10() for y in (noisy, clean))
    print(f"{before + 6.02:.1f} -> {after + 6.02:.1f} dB")
    assert after >= before + 4
