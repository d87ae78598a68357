"""EMN against the paper's algorithm: what it must converge to, and what its result must not depend on."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastue.core.errors import UsageError
from fastue.data.budget import Budget
from fastue.methods import loop
from fastue.methods.base import Checkpointer, Perturbation
from fastue.methods.emn import EMNConfig, emn
from fastue.ops import apply_noise, linf_step

SMALL = {"arch": "cnn-w8", "precision": "float32", "batch": 32, "train_steps": 5, "max_sweeps": 12}


@pytest.mark.parametrize("mode", ["sample", "class"])
def test_noisy_pictures_look_learnt(tiny, mode):
    data = tiny(40)
    config = EMNConfig(
        mode=mode,
        subset=1.0,
        max_sweeps=40,
        **{k: v for k, v in SMALL.items() if k != "max_sweeps"},
    )
    result = emn(data, config)
    assert max(entry["error"] for entry in result.history[-2:]) <= 0.01
    # Mirrored, a class of this set looks like another one: no noise of a class survives that.
    assert result.converged == (mode == "sample")
    assert result.noise.shape == ((160 if mode == "sample" else 4), 3, 12, 12)
    assert 0 < result.noise.abs().max() <= 8 / 255 + 1e-7
    # signed: the public code's writer loses one half
    assert result.noise.min() < -0.01 < 0.01 < result.noise.max()


def test_sweeps_run_out_without_convergence_is_said(tiny):
    result = emn(tiny(), EMNConfig(**{**SMALL, "max_sweeps": 1}))
    assert not result.converged and len(result.history) == 1


def test_stop_needs_consecutive_good_sweeps(tiny, monkeypatch):
    """One lucky sweep below the bound is not convergence."""
    errors = iter([0.0, 0.5, 0.0, 0.0, 0.9])
    data = tiny()

    def scripted(theta, noisy, y):
        if scripted.left == 0:
            scripted.left, scripted.right = len(data), round((1 - next(errors)) * len(data))
        taken = min(scripted.right, len(y))
        scripted.left, scripted.right = scripted.left - len(y), scripted.right - taken
        return torch.zeros(noisy.shape), torch.tensor(taken)

    scripted.left = 0
    monkeypatch.setattr(loop, "input_gradient", scripted)
    result = emn(data, EMNConfig(**SMALL, steps=1))
    assert [round(entry["error"], 6) for entry in result.history] == [0.0, 0.5, 0.0, 0.0]
    assert result.converged


@pytest.mark.parametrize("mode", ["sample", "class"])
def test_killed_anywhere_and_resumed_gives_the_same_noise(tiny, tmp_path, mode):
    data, config = tiny(), EMNConfig(mode=mode, steps=2, **{**SMALL, "max_sweeps": 3})
    whole = emn(data, config)

    class Killed(Exception):
        pass

    calls = 0

    def dies(phase, done, total, info):
        nonlocal calls
        calls += 1
        if calls % 4 == 0:
            raise Killed

    # The progress call comes before the snapshot, so each death repeats one batch and has to do it the same way.
    for _ in range(200):
        try:
            resumed = emn(data, config, checkpoint=Checkpointer(tmp_path, seconds=0), progress=dies)
            break
        except Killed:
            continue
    assert calls > 12
    assert torch.equal(whole.noise, resumed.noise) and whole.history == resumed.history


def test_snapshot_times_do_not_change_the_result(tiny, tmp_path):
    data, config = tiny(), EMNConfig(steps=2, **{**SMALL, "max_sweeps": 2})
    often = emn(data, config, checkpoint=Checkpointer(tmp_path, seconds=0))
    assert torch.equal(often.noise, emn(data, config).noise)


def test_no_parameter_gradient_in_the_noise_step(tiny, monkeypatch):
    seen = []
    original = loop.input_gradient

    def watch(theta, *args):
        gradient = original(theta, *args)
        parts = list(theta.module.modules())
        wanting = [p for p in theta.module.parameters() if p.requires_grad or p.grad is not None]
        seen.append((any(part.training for part in parts), wanting))
        return gradient

    monkeypatch.setattr(loop, "input_gradient", watch)
    emn(tiny(), EMNConfig(**{**SMALL, "max_sweeps": 1}))
    assert seen and all(not training and not parameters for training, parameters in seen)


def test_loss_falls_at_every_step_on_a_smooth_model(tiny):
    data = tiny()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).requires_grad_(False)
    noise = torch.zeros(data.images.shape)
    rows = torch.arange(len(data))
    losses = []
    for _ in range(10):
        gradient, _ = loop.input_gradient(model, apply_noise(data.images, noise, rows), data.labels)
        losses.append(
            float(F.cross_entropy(model(apply_noise(data.images, noise, rows)), data.labels))
        )
        linf_step(noise, gradient, data.images, rows, step=0.5 / 255, eps=8 / 255)
    assert all(later < earlier for earlier, later in zip(losses, losses[1:], strict=False))


def test_sample_noise_does_not_depend_on_the_batch_split(tiny):
    from fastue.models import build
    from fastue.models.frozen import FrozenCopy

    data, theta = tiny(), FrozenCopy(build("cnn-w8", 4, seed=1), "float32")
    rows = torch.arange(len(data))
    whole, split = torch.zeros(data.images.shape), torch.zeros(data.images.shape)

    def step(noise, part):
        x = data.images[part]
        gradient, _ = loop.input_gradient(
            theta, apply_noise(x, noise, rows[part]), data.labels[part]
        )
        linf_step(noise, gradient, x, rows[part], step=0.8 / 255, eps=8 / 255)
        return gradient

    gradient = step(whole, rows)
    for part in rows.flip(0).split(7):
        step(split, part)
    decided = gradient.abs() > 1e-4 * gradient.abs().amax((1, 2, 3), keepdim=True)
    assert decided.float().mean() > 0.99
    assert torch.equal(whole[decided], split[decided])


def test_quantised_noise_is_rounded_to_nearest_and_within_budget():
    noise = torch.tensor([8.49, -8.49, 3.4, -3.6, 0.49, -0.51]).reshape(1, 1, 2, 3) / 255
    written = Perturbation(noise, "sample", 8.5 / 255).quantised()
    assert written.dtype == torch.int8 and written.flatten().tolist() == [8, -8, 3, -4, 0, -1]


@pytest.mark.parametrize("eps, levels", [(8 / 255, 8), (1 / 255, 1), (0.03, 7), (127 / 255, 127)])
def test_budget_levels(eps, levels):
    assert Budget(eps).levels == levels


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"eps": 0.001}, "--eps"), ({"eps": 8.0}, "--eps"), ({"mode": "cluster"}, "--mode"), ({"steps": 0}, "--steps"),
        ({"step": -1.0}, "--step"), ({"subset": 0.0}, "--subset"), ({"batch": 0}, "--batch"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(UsageError, match=named):
        EMNConfig(**arguments)


def test_paper_values_for_each_mode():
    assert (EMNConfig().steps, EMNConfig(mode="class").steps) == (20, 1)
    assert EMNConfig().step == pytest.approx(0.8 / 255)


def test_recipes():
    assert EMNConfig(recipe="fast", mode="class") == EMNConfig(
        mode="class", steps=1, step=0.8 / 255, recipe="fast"
    )
    fast = EMNConfig(recipe="fast")
    assert fast.steps == 5 and fast.step == pytest.approx(3.2 / 255)
    assert EMNConfig(recipe="fast", steps=7).steps == 7
