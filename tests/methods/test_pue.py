"""PUE: EMN's loop with noise on the surrogate's weights."""

import pytest
import torch

from fastue.core.errors import UsageError
from fastue.methods.base import Checkpointer
from fastue.methods.emn import EMNConfig, emn
from fastue.methods.pue import PUEConfig, SmoothedSurrogate, pue
from fastue.models import build
from fastue.ops import use_backend

SMALL = dict(
    arch="cnn-w8", precision="float32", batch=32, train_steps=5, max_sweeps=14, sigma=0.05,
    levels=3, train_draws=2, noise_draws=2, subset=1.0,
)  # fmt: skip


@pytest.mark.parametrize("mode", ["sample", "class"])
def test_noise_is_found_under_weight_noise(tiny, mode):
    result = pue(tiny(40), PUEConfig(mode=mode, **{**SMALL, "max_sweeps": 40}))
    assert result.converged
    assert 0 < result.noise.abs().max() <= 8 / 255 + 1e-7
    switch = next(i for i, entry in enumerate(result.history) if entry["error"] < 0.5)
    assert (
        max(entry["error"] for entry in result.history[-2:]) <= 0.01
        and len(result.history) >= switch + 3
    )


def test_before_the_switch_it_is_emn_with_one_step(tiny):
    """smooth_below = 0 never smooths: EMN with the same numbers, bit for bit."""
    data = tiny()
    never = PUEConfig(mode="class", smooth_below=0.0, **{**SMALL, "max_sweeps": 3})
    shared = {k: v for k, v in SMALL.items() if k in EMNConfig.__dataclass_fields__} | {
        "max_sweeps": 3
    }
    plain = emn(data, EMNConfig(mode="class", steps=1, stop_error=0.0, **shared))
    smoothed = pue(data, never)
    assert torch.equal(plain.noise, smoothed.noise) and not smoothed.converged
    always = pue(data, PUEConfig(mode="class", smooth_below=1.1, **{**SMALL, "max_sweeps": 3}))
    assert not torch.equal(always.noise, plain.noise)


@pytest.mark.parametrize("mode", ["sample", "class"])
def test_killed_anywhere_and_resumed_gives_the_same(tiny, tmp_path, mode):
    data, config = tiny(), PUEConfig(mode=mode, smooth_below=0.9, **{**SMALL, "max_sweeps": 4})
    whole = pue(data, config)

    class Killed(Exception):
        pass

    for number in range(3, 32, 7):
        calls = 0

        def stop(*_, number=number):
            nonlocal calls
            calls += 1
            if calls == number:
                raise Killed

        folder = tmp_path / str(number)
        with pytest.raises(Killed):
            pue(data, config, checkpoint=Checkpointer(folder, 0.0), progress=stop)
        resumed = pue(data, config, checkpoint=Checkpointer(folder, 0.0))
        assert torch.equal(resumed.noise, whole.noise) and resumed.history == whole.history
        for a, b in zip(resumed.surrogate.parameters(), whole.surrogate.parameters(), strict=True):
            assert torch.equal(a, b)


def test_gradients_are_sums_over_noisy_copies(tiny):
    """Against a loop that perturbs a copy of the network itself, for both moves."""
    data = tiny(4)
    x, y = data.images.float() / 255, data.labels
    config = PUEConfig(mode="sample", **SMALL)
    theta = SmoothedSurrogate(build("cnn-w8", 4), config)
    theta.smooth, theta.moves = True, 3
    theta.model.eval()
    base = theta.weights.base.clone()
    gradients = [theta.gradient(x, y, move, 5)[0] for move in range(3)]
    for move, sigma in enumerate((0.0, 0.025, 0.05)):
        by_hand = torch.zeros_like(x)
        for draw in range(1 if sigma == 0 else 2):
            theta.weights.perturb(sigma, seed=0, purpose=4, draw=(5 * 3 + move) * 2 + draw)
            p = x.clone().requires_grad_()
            loss = torch.nn.functional.cross_entropy(theta.model(p), y, reduction="sum")
            by_hand += torch.autograd.grad(loss, p)[0]
        theta.weights.restore()
        assert torch.allclose(gradients[move], by_hand, rtol=1e-3, atol=1e-5 * by_hand.abs().max())
    assert torch.equal(theta.weights.base, base) and torch.equal(theta.weights.live, base)
    assert not torch.allclose(gradients[1], gradients[2])
    theta.model.train()
    theta.learn(x, y, 0)  # one optimiser step a level, from the unperturbed weights
    assert torch.equal(theta.weights.base, theta.weights.live) and not torch.equal(
        theta.weights.base, base
    )
    assert (theta.weights.base - base).norm() < 1


def test_same_noise_on_every_backend(tiny, monkeypatch, need_backend):
    """The weight noise of cpp and of the reference may differ in the last bits; cpp and triton agree."""
    # the convolutions' rounding is not the topic
    monkeypatch.setattr("fastue.models.conv._kernel", lambda *call: None)
    data, config = (
        tiny(6),
        PUEConfig(mode="class", smooth_below=0.9, **{**SMALL, "arch": "cnn-w2", "max_sweeps": 2}),
    )
    results = []
    for backend in ("cpp", "triton"):
        need_backend("weight_noise", backend)
        with use_backend(backend):
            results.append(pue(data, config))
    assert (
        torch.equal(results[0].noise, results[1].noise) and results[0].history == results[1].history
    )


def test_bad_settings():
    for wrong in (dict(sigma=0), dict(levels=1), dict(train_draws=0), dict(noise_draws=0)):
        with pytest.raises(UsageError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
            PUEConfig(**wrong)
