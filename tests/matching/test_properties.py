"""What must hold whatever the network: identities, rows, degenerate rows, digits, errors, cost."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fastue
from fastue.core.errors import UsageError
from fastue.matching import engine, pairs

from . import loop
from .test_agreement import CE, pictures, trained


def smooth(dtype=torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Softplus(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3),
        nn.GroupNorm(2, 8), nn.Softplus(), nn.Flatten(), nn.Linear(8 * 36, 10),
    ).to(dtype)  # fmt: skip


def matched(model, x, x2, y, loss=CE, **settings):
    point = x2.detach().clone().requires_grad_()
    value = fastue.gradient_match(model, loss, x, point, y, **settings)
    value.sum().backward()
    return value.detach(), point.grad


def test_no_perturbation_is_no_distance():
    model, (x, _, y) = trained("resnet10-w4"), pictures()
    for dtype in (torch.float64, torch.float32):
        for form in ("ghost", "materialised"):
            value, slope = matched(
                copy.deepcopy(model).to(dtype), x.to(dtype), x.to(dtype), y, form=form
            )
            assert not value.any() and not slope.any()


def test_symmetry_range_and_scale():
    model, (x, x2, y) = trained("resnet10-w4"), pictures(delta=0.5)
    value, slope = matched(model, x, x2, y)
    assert ((value > 0) & (value < 2)).all()
    torch.testing.assert_close(matched(model, x2, x, y)[0], value, rtol=1e-13, atol=1e-15)
    scaled = matched(model, x, x2, y, lambda z, t: 7.3 * CE(z, t))
    torch.testing.assert_close(scaled[0], value, rtol=1e-12, atol=0)
    assert (scaled[1] - slope).abs().max() < 2e-12 * slope.abs().max()


@pytest.mark.parametrize("form", ["ghost", "materialised"])
def test_the_cotangent(form):
    """<v, h> = 0 and |v| |h| = sqrt(1 - c^2), with v as the pairs use it."""
    model, (x, x2, y) = smooth(), pictures(count=2, delta=0.5)
    model.requires_grad_(True)
    target = fastue.GradientTarget(model, CE, x, y, form=form)
    value = target(x2)
    for i in range(2):
        row = slice(i, i + 1)
        g, h = (
            torch.cat([t.flatten() for t in loop.gradients(model, CE, p[row], y[row]).values()])
            for p in (x, x2)
        )
        d = h - g
        triple = torch.stack([g @ g, g @ d, d @ d]).detach()[None].requires_grad_()
        one = triple.new_ones(1)
        distance = engine._distance(triple, one > 0, "cosine", 0.0, one, one)
        torch.testing.assert_close(distance[0].detach(), value[i], rtol=1e-11, atol=1e-14)
        bar = torch.autograd.grad(distance.sum(), triple)[0][0]
        v = bar[1] * g + 2 * bar[2] * d
        assert abs(v @ h) < 1e-12
        cosine = 1 - value[i]
        assert abs(v.norm() * h.norm() - (1 - cosine**2).sqrt()) < 1e-12


def test_rows_do_not_know_of_each_other():
    model, (x, x2, y) = trained("resnet10-w4").float(), pictures(count=5, dtype=torch.float32)
    value, slope = matched(model, x, x2, y)
    order = torch.tensor([3, 0, 4, 1, 2])
    moved, turned = matched(model, x[order], x2[order], y[order])
    assert torch.equal(moved, value[order]) and torch.equal(turned, slope[order])
    other, other2 = x.clone(), x2.clone()
    other[1:], other2[1:] = 0.25, 0.75
    kept, straight = matched(model, other, other2, y)
    assert kept[0] == value[0] and torch.equal(straight[0], slope[0])
    assert kept[1] != value[1]


def test_one_sample_is_a_batch():
    model, (x, x2, y) = trained("resnet10-w4"), pictures(count=1)
    for settings in ({}, {"distance": "l2"}, {"norm_weight": 0.5}, {"layers": True}):
        value, slope = matched(model, x, x2, y, **settings)
        whole, wanted = matched(model, x, x2, y, per_sample=False, **settings)
        assert whole.shape == ()
        torch.testing.assert_close(value[0], whole, rtol=1e-10, atol=1e-15)
        assert (slope - wanted).abs().max() < 1e-9 * wanted.abs().max()


def test_the_batch_is_the_mean_of_the_losses():
    model, (x, x2, y) = trained("cnn-w4"), pictures()
    results = [
        matched(model, x, x2, y, loss, per_sample=False) for loss in (CE, nn.CrossEntropyLoss())
    ]
    assert torch.equal(results[0][0], results[1][0])
    point = x2.clone().requires_grad_()
    g, h = (
        torch.cat([t.flatten() for t in loop.gradients(model, CE, p, y).values()])
        for p in (x, point)
    )
    (wanted,) = torch.autograd.grad(1 - F.cosine_similarity(g.detach(), h, dim=0), point)
    assert (results[0][1] - wanted).abs().max() < 1e-9 * wanted.abs().max()


def test_a_batch_may_have_moving_statistics():
    """Then its gradient is still one, though no sample has its own."""
    model, (x, x2, y) = trained("resnet10-w4").train(), pictures()
    assert matched(model, x, x2, y, per_sample=False)[1].any()
    with pytest.raises(UsageError, match="model.eval"):
        matched(model, x, x2, y)


# --- the derivative


def slopes(function, x2, directions=6, step=1e-5):
    """Largest difference of <gradient, u> and its central difference, of the largest gradient."""
    generator = torch.Generator().manual_seed(5)
    value, slope = function(x2)
    worst = 0.0
    for _ in range(directions):
        u = torch.randn(x2.shape, generator=generator, dtype=x2.dtype)
        found = (function(x2 + step * u)[0] - function(x2 - step * u)[0]).sum() / (2 * step)
        worst = max(worst, abs(found - (slope * u).sum()).item())
    return worst / max(slope.abs().max().item(), 1e-30)


WRONG = {
    "zero": lambda q, m: (0 * q, 0 * m),
    "q dropped": lambda q, m: (0 * q, m),
    "m dropped": lambda q, m: (q, 0 * m),
    "sign of q": lambda q, m: (-q, m),
    "m once": lambda q, m: (q, m / 2),
}


@pytest.mark.parametrize("form", ["ghost", "materialised"])
@pytest.mark.parametrize("wrong", [None, *WRONG])
def test_gradients_by_differences(wrong, form, monkeypatch):
    """Divided by the largest one: near 1 the distance is so small that zeros would pass."""
    model, (x, x2, y) = smooth(), pictures(count=2, delta=0.5)
    if wrong:
        for kind in (pairs.Matrices, pairs.Norm):
            right = kind.cotangents
            monkeypatch.setattr(
                kind,
                "cotangents",
                lambda self, q, m, right=right: right(self, *WRONG[wrong](q, m)),
            )
    worst = slopes(lambda point: matched(model, x, point, y, form=form), x2)
    assert (worst < 1e-4) == (wrong is None), worst


def test_differentiable_once_and_only_in_the_perturbed_input():
    model, (x, x2, y) = smooth(), pictures()
    x, x2 = x.requires_grad_(), x2.requires_grad_()
    value = fastue.gradient_match(model, CE, x, x2, y)
    value.sum().backward()
    assert x.grad is None and x2.grad.any()
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    value = fastue.gradient_match(model, CE, x, x2, y).sum()
    (slope,) = torch.autograd.grad(value, x2, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        slope.sum().backward()
    with torch.no_grad():
        assert not fastue.gradient_match(model, CE, x, x2, y).requires_grad


def test_the_model_is_left_as_it_was():
    model, (x, x2, y) = trained("resnet10-w4"), pictures()
    model.stages[0].requires_grad_(False)
    wanted = [p.requires_grad for p in model.parameters()]
    matched(model, x, x2, y)
    with pytest.raises(ZeroDivisionError):
        matched(model, x, x2, y, lambda z, t: 1 / 0)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert not any("forward" in vars(m) or m._forward_hooks for m in model.modules())


# --- digits


@pytest.mark.parametrize("form", ["ghost", "materialised"])
@pytest.mark.parametrize("wanted", [1e-2, 1e-4, 1e-6, 1e-8, 1e-10])
def test_digits_near_one(form, wanted):
    """float32 keeps three digits of 1 - cos where the plain formula has none."""
    model, (x, x2, y) = smooth(), pictures(count=3, delta=1.0)
    delta = (x2 - x) * (wanted / 3e-3) ** 0.5
    x = x.float().double()
    x2 = (x + delta).float().double()  # the same numbers for both precisions
    exact, slope = matched(model, x, x2, y, form=form)
    assert (exact > wanted / 30).all() and (exact < wanted * 30).all(), exact
    value, gradient = matched(copy.deepcopy(model).float(), x.float(), x2.float(), y, form=form)
    # What is lost at 1e-10 is lost by the passes: both forms lose the same.
    assert ((value - exact).abs() < (3e-3 if wanted < 1e-9 else 1e-3) * exact).all()
    assert (gradient - slope).abs().max() < 1e-2 * slope.abs().max()


@pytest.mark.parametrize("factor", [1e-20, 1e-10, 1e10, 1e15])
def test_no_size_of_gradient_is_too_small_or_large(factor):
    model, (x, x2, y) = smooth(torch.float32), pictures(dtype=torch.float32, delta=0.5)
    value, slope = matched(model, x, x2, y)
    for form in ("ghost", "materialised"):
        scaled, gradient = matched(model, x, x2, y, lambda z, t: factor * CE(z, t), form=form)
        torch.testing.assert_close(scaled, value, rtol=1e-4, atol=0)
        assert (gradient - slope).abs().max() < 1e-4 * slope.abs().max()


def test_a_gradient_that_all_but_vanishes_keeps_its_direction():
    """What error-minimising noise does: n + 2q + m would have no digits of |h|^2 left."""
    model, (x, x2, y) = smooth(), pictures(delta=0.5)
    sizes = iter([1.0, 1e-6, 1.0, 1e-6])

    def loss(z, t):
        return next(sizes) * CE(z, t)

    exact = matched(model, x, x2, y)
    value, slope = matched(
        copy.deepcopy(model).float(), x.float(), x2.float(), y, loss
    )  # clean, then perturbed
    torch.testing.assert_close(value, exact[0], rtol=1e-4, atol=0)
    assert (slope - exact[1]).abs().max() < 1e-3 * exact[1].abs().max()
    value, _ = matched(model, x, x2, y, loss, norm_weight=1.0)
    assert ((value - exact[0]).sqrt() - 13.8).abs().max() < 1  # |log 1e-6|


@pytest.mark.parametrize("side", ["clean", "perturbed", "both"])
@pytest.mark.parametrize("per_sample", [True, False])
def test_a_zero_gradient_is_at_right_angles_to_all(side, per_sample):
    """Distance 1, gradient 0, and the other rows as they were."""
    model, (x, x2, y) = smooth(), pictures(delta=0.5)
    calls = []

    def loss(z, t):
        calls.append(0)
        dead = side == "both" or (side == "clean") == (len(calls) == 1)
        return CE(z, t) * torch.tensor([1.0, 0.0 if dead else 1.0, 1.0])

    if not per_sample:
        x, x2, y = x[1:2], x2[1:2], y[1:2]
        one = loss
        loss = lambda z, t: one(z.expand(3, -1), t.expand(3))[1:2]  # noqa: E731
    value, slope = matched(model, x, x2, y, loss, per_sample=per_sample)
    if not per_sample:
        assert value == 1 and not slope.any()
        return
    plain, straight = matched(model, x, x2, y)
    assert value[1] == 1 and not slope[1].any()
    rest = torch.tensor([0, 2])
    assert torch.equal(value[rest], plain[rest]) and torch.equal(slope[rest], straight[rest])


def test_a_saturated_picture_is_no_nan():
    """float32 logits of 200 apart: the errors are exactly zero."""
    model, (x, x2, y) = smooth(torch.float32), pictures(dtype=torch.float32, delta=0.5)
    with torch.no_grad():
        model[-1].bias[y[0]] += 500
    value, slope = matched(model, x, x2, y)
    assert value[0] == 1 and torch.isfinite(value).all()
    assert not slope[0].any() and slope[1:].any() and torch.isfinite(slope).all()


# --- what raises


class Twice(nn.Module):
    def __init__(self, how: str):
        super().__init__()
        self.how = how
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        if how == "tied":
            self.two.weight = self.one.weight
        if how == "only by function":
            self.three = nn.Linear(4, 4)
        if how == "own parameter":
            self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = self.two(self.one(x))
        if self.how == "called twice":
            x = self.one(x)
        elif self.how == "by function":
            x = F.linear(x, self.one.weight)
        elif self.how == "only by function":
            x = F.linear(x, self.three.weight)
        elif self.how == "own parameter":
            x = x * self.scale
        elif self.how == "no rows":
            x = x.flatten()
            return self.head(x.view(1, -1, 4)).squeeze(0)
        return self.head(x)


class Around(nn.Module):
    def __init__(self, middle: nn.Module):
        super().__init__()
        self.first, self.middle, self.head = nn.Linear(4, 4), middle, nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.middle(self.first(x)))


class Strange(nn.Linear):
    """A subclass may do anything with its weight."""


def dropped() -> nn.Module:
    return Around(nn.Dropout(0.5)).train()


CONTRACTS = {
    "BatchNorm in training": (lambda: Around(nn.BatchNorm1d(4)), {}, "middle.*model.eval"),
    "BatchNorm without statistics": (
        lambda: Around(nn.BatchNorm1d(4, track_running_stats=False)).eval(), {}, "statistics",
    ),
    "dropout": (dropped, {}, "Dropout.*active"),
    "dropout of a batch": (dropped, {"per_sample": False}, "Dropout.*active"),
    "tied": (lambda: Twice("tied"), {}, "one.weight and two.weight are one parameter"),
    "called twice": (lambda: Twice("called twice"), {}, "one is called more than once"),
    "used by a function": (lambda: Twice("by function"), {}, "one.weight is used 2 times"),
    "used by functions only": (
        lambda: Twice("only by function"), {}, "three.weight is used 1 times.*called never",
    ),
    "own parameter": (lambda: Twice("own parameter"), {}, "scale"),
    "rows lost": (lambda: Twice("no rows"), {}, "head has no row for each sample"),
    "a kind of its own": (lambda: Around(Strange(4, 4)), {}, r"middle \(Strange\)"),
    "bilinear": (lambda: Around(nn.PReLU()), {}, r"middle \(PReLU\)"),
    "a mean": (lambda: Around(nn.ReLU()), {"loss": nn.CrossEntropyLoss()}, "reduction"),
    "a mean with a budget": (
        lambda: Around(nn.ReLU()),
        {"loss": nn.CrossEntropyLoss(), "per_sample": False, "max_bytes": 1}, "reduction",
    ),
    "nothing to match": (lambda: Around(nn.ReLU()).requires_grad_(False), {}, "no parameter"),
    "another distance": (lambda: Around(nn.ReLU()), {"distance": "l1"}, "distance='l1'"),
    "another form": (lambda: Around(nn.ReLU()), {"form": "gost"}, "form='gost'"),
    "norms twice": (
        lambda: Around(nn.ReLU()), {"distance": "l2", "norm_weight": 1.0}, "norm_weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRACTS)
def test_contracts(name):
    make, settings, words = CONTRACTS[name]
    model, settings = make(), dict(settings)
    loss = settings.pop("loss", CE)
    x = torch.randn(3, 4)
    with pytest.raises(UsageError, match=words):
        fastue.gradient_match(model, loss, x, x + 0.1, torch.arange(3), **settings)


def test_shapes_and_stale_weights():
    model, (x, x2, y) = smooth(), pictures()
    target = fastue.GradientTarget(model, CE, x, y)
    assert torch.equal(target(x2), fastue.gradient_match(model, CE, x, x2, y))
    with pytest.raises(UsageError, match="x_perturbed: shape"):
        target(x2[:2])
    with torch.no_grad():
        model[0].weight += 1
    with pytest.raises(UsageError, match="weights have changed"):
        target(x2)


# --- cost


class Watch(TorchDispatchMode):
    """Calls and the sizes of what they give."""

    def __init__(self):
        super().__init__()
        self.calls, self.sizes = 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls += 1
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor):
                self.sizes.add(one.numel())
        return result


def test_a_ghost_makes_no_gradient():
    """18 x 11 x 9 and 23 x 162 numbers a sample would be the two weights' gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(11, 18, 3), nn.Softplus(), nn.Conv2d(18, 23, 3), nn.Flatten(), nn.Linear(92, 7)
    )
    x = torch.randn(5, 11, 6, 6)
    sizes = {}
    for form in ("ghost", "materialised"):
        with Watch() as watch:
            matched(model, x, x + 0.1, torch.arange(5), form=form)
        sizes[form] = {n * k for n in (1, 5) for k in (18 * 99, 23 * 162)} & watch.sizes
    # the weights themselves are passed around as views, once: only [B, p, d] tells
    assert not {5 * 18 * 99, 5 * 23 * 162} & sizes["ghost"]
    assert {5 * 18 * 99, 5 * 23 * 162} <= sizes["materialised"]


def test_calls_do_not_grow_with_the_batch():
    """But for materialised convolutions on a CPU, which are a call a sample."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 7)
    ).eval()
    counts = []
    for count in (2, 7):
        x = torch.randn(count, 3, 6, 6)
        with Watch() as watch:
            matched(model, x, x + 0.1, torch.arange(count), form="ghost")
        counts.append(watch.calls)
    assert counts[0] == counts[1]


def test_the_rule():
    """Materialised where T (p + d) > p d, and `plan` says so."""
    model = trained("cnn-w4").float()
    target = fastue.GradientTarget(model, CE, *pictures(dtype=torch.float32)[::2])
    target(pictures(dtype=torch.float32)[1])
    forms = set()
    for row in target.plan:
        if row.form != "vector":
            ghost = row.positions * (row.outs + row.depth) <= row.outs * row.depth
            assert row.form == ("ghost" if ghost else "materialised"), row
            forms.add(row.form)
    assert forms == {"ghost", "materialised"}
