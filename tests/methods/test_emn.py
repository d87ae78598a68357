"""EMN against the paper's algorithm: what it must converge to, and what its result must not depend on."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastue.core.errors import UsageError
from fastue.data.budget import Budget
from fastue.methods import loop
from fastue.methods.base import Checkpointer, Perturbation
from fastue.methods.emn import EMNConfig, check, emn
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
    assert result.converged and max(entry["error"] for entry in result.history[-2:]) <= 0.01
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


@pytest.mark.parametrize("mode, crops", [("sample", False), ("class", False), ("sample", True)])
def test_killed_anywhere_and_resumed_gives_the_same_noise(tiny, tmp_path, mode, crops):
    settings = {**SMALL, "max_sweeps": 3, "crops": crops}
    data, config = tiny(), EMNConfig(mode=mode, steps=2, **settings)
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


@pytest.mark.parametrize("mode", ["sample", "class"])
@pytest.mark.parametrize("grain", [1, 4, 5])
def test_noise_is_even_on_blocks(tiny, mode, grain):
    noise = emn(tiny(), EMNConfig(mode=mode, grain=grain, **{**SMALL, "max_sweeps": 2})).noise
    starts = torch.arange(12) // grain * grain
    assert noise.shape[1:] == (3, 12, 12)
    assert torch.equal(noise, noise[:, :, starts][..., starts])
    neighbours = (noise[..., 1:] != noise[..., :-1]).any(0).any(0).any(0)
    borders = [x for x in range(1, 12) if x % grain == 0]
    assert (neighbours.nonzero()[:, 0] + 1).tolist() == borders


def test_crops_in_the_search_change_the_noise(tiny):
    plain, cropped = (
        emn(tiny(), EMNConfig(mode="class", crops=crops, **{**SMALL, "max_sweeps": 5})).noise
        for crops in (False, True)
    )
    assert not torch.equal(plain, cropped)


def test_each_use_and_each_batch_has_its_own_crops(tiny):
    data = tiny()
    index = torch.arange(len(data))
    run = loop.Run(data, EMNConfig(crops=True, **SMALL).on(data.device), loop.Surrogate, index)
    pictures = [
        apply_noise(data.images, run.noise, index, **run.view(use, number, index))
        for use, number in (("noise", 3), ("noise", 3), ("noise", 4), ("training", 3))
    ]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])
    assert not torch.equal(pictures[0], pictures[3])


def test_stronger_settings_end():
    steps = [EMNConfig(grain=1, mode="class")]
    while (after := steps[-1].stronger()) is not None:
        steps.append(after)
    assert [(c.grain, c.crops) for c in steps] == [(1, False), (4, False), (4, True), (8, True)]
    assert EMNConfig(compat="emn2021").stronger() is None


def test_the_public_code_has_noise_of_single_pixels():
    old, new = EMNConfig(compat="emn2021", mode="class"), EMNConfig(mode="class")
    assert (old.grain, new.grain) == (1, 4)
    # As before there was a grain: files of that time compare equal.
    assert not {"grain", "crops", "min_sweeps"} & set(old.record()) and new.record()["grain"] == 4


def test_coarse_noise_of_a_class_is_searched_for_long_enough(tiny):
    assert [EMNConfig(mode=mode).stop_sweeps for mode in ("class", "sample")] == [10, 2]
    assert EMNConfig(mode="class", grain=1).stop_sweeps == 2
    assert EMNConfig(mode="class", grain=1).stronger().stop_sweeps == 10
    assert EMNConfig(mode="class", compat="emn2021").stop_sweeps == 1
    # Whoever asks for more gets more than max_sweeps: the check of `fastue protect` does.
    config = EMNConfig(mode="class", min_sweeps=4, **{**SMALL, "max_sweeps": 2})
    assert len(emn(tiny(), config).history) == 4


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
    assert EMNConfig(recipe="paper").steps == 20 and EMNConfig(mode="class").steps == 1
    assert EMNConfig(mode="class").step == pytest.approx(0.8 / 255)


def test_recipes():
    assert EMNConfig(recipe="fast", mode="class") == EMNConfig(
        mode="class", steps=1, step=0.8 / 255, recipe="fast"
    )
    paper = EMNConfig(recipe="paper")
    assert (paper.steps, paper.step) == (20, 0.8 / 255)
    assert EMNConfig(compat="emn2021") == EMNConfig(compat="emn2021", recipe="paper")
    fast = EMNConfig()
    assert fast == EMNConfig(recipe="fast")
    assert fast.steps == 5 and fast.step == pytest.approx(3.2 / 255)
    assert EMNConfig(recipe="fast", steps=7).steps == 7


@pytest.mark.parametrize("mode", ["class", "sample"])
@pytest.mark.parametrize("limit", [float("inf"), 0])
def test_only_some_identities_get_noise(tiny, mode, limit, tmp_path):
    data = tiny()
    names = [data.classes[2], data.classes[0]]
    config = EMNConfig(
        arch="cnn-w8", mode=mode, max_sweeps=2, train_steps=2, batch=8, identities=",".join(names)
    )
    noise = emn(data, config, checkpoint=Checkpointer(tmp_path, limit=limit))
    changed = (noise.apply(data.images, data.labels) != data.images).flatten(1).any(1)
    mine = (data.labels == 0) | (data.labels == 2)
    if mode == "sample":
        assert torch.equal(changed, mine)
    else:  # a class noise may leave single pictures as they are
        assert not changed[~mine].any() and changed[mine].float().mean() > 0.9
    with pytest.raises(UsageError, match="--identities: 'nobody' is no class"):
        check(data, EMNConfig(identities="nobody"))
