"""gradient_match is the loop: every layer, every form, both precisions."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastue
from fastue.matching import pairs
from fastue.models import build

from . import loop

CE = nn.CrossEntropyLoss(reduction="none")
FORMS = (None, "ghost", "materialised")


def both(model, x, x2, y, loss=CE, kind="cosine", layers=False, **settings):
    """(value, gradient) of the engine and of the loop, for a weighted sum of the rows."""
    results = []
    weights = torch.arange(1, len(x) + 1, dtype=torch.float64)
    for side in (fastue.gradient_match, loop.distances):
        point = x2.detach().clone().requires_grad_()
        more = settings if side is fastue.gradient_match else {}
        name = "distance" if side is fastue.gradient_match else "kind"
        value = side(model, loss, x, point, y, **{name: kind}, layers=layers, **more)
        (gradient,) = torch.autograd.grad((value * weights).sum(), point)
        results.append((value.detach(), gradient))
    return results


def check(model, x, x2, y, value=1e-13, gradient=1e-11, **settings):
    (ours, slope), (theirs, wanted) = both(model, x, x2, y, **settings)
    assert ours.dtype == torch.float64 and ours.shape == (len(x),)
    torch.testing.assert_close(ours, theirs.double(), rtol=value, atol=value)
    size = wanted.abs().max()
    assert size > 0
    assert (slope - wanted).abs().max() <= gradient * size


def trained(name: str, seed: int = 0) -> nn.Module:
    """A network of float64 whose BatchNorms are not as they were made."""
    model = build(name, 10, 3, seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 2.0),
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.3, 0.3),
            ):  # fmt: skip
                tensor.uniform_(low, high, generator=generator)
    return model


def pictures(count=3, size=16, delta=0.1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(count, 3, size, size, generator=generator, dtype=torch.float64)
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64) * 2 - 1
    return x.to(dtype), (x + delta * noise).to(dtype), torch.arange(count) % 10


@pytest.mark.parametrize("name", ["cnn-w4", "resnet10-w4", "vgg11-w4"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "layers"), [("cosine", False), ("cosine", True), ("l2", False), ("l2", True)]
)
def test_networks(name, form, kind, layers):
    size = 32 if name.startswith("vgg") else 16
    check(trained(name), *pictures(size=size), form=form, kind=kind, layers=layers)


def test_float32_is_close_to_float64():
    model = trained("resnet10-w4")
    x, x2, y = pictures(delta=8 / 255)
    _, (wanted, slope) = both(model, x, x2, y)
    (value, gradient), _ = both(copy.deepcopy(model).float(), x.float(), x2.float(), y)
    assert (value - wanted).abs().max() < 1e-6
    assert (gradient - slope).abs().max() < 1e-4 * slope.abs().max()


ZOO = [
    dict(kernel_size=kernel, stride=stride, padding=padding, dilation=dilation, bias=bias)
    for kernel, stride, padding, dilation, bias in itertools.product(
        (1, 3, (3, 2), (1, 3)), (1, 2, (1, 2)), (0, 1, (2, 1)), (1, 2), (True, False)
    )
]  # fmt: skip
assert len(ZOO) == 144


class Wrapped(nn.Module):
    """A layer between a first layer and a classifier: it has a gradient of its input to make."""

    def __init__(self, first: nn.Module, layer: nn.Module, shape: tuple):
        super().__init__()
        self.first, self.layer = first, layer
        with torch.no_grad():
            size = self.features(torch.zeros(2, *shape, dtype=torch.float64)).shape[1]
        self.head = nn.Linear(size, 4, dtype=torch.float64)

    def features(self, x):
        return self.layer(F.softplus(self.first(x))).flatten(1)

    def forward(self, x):
        return self.head(F.softplus(self.features(x)))


def wrapped(layer: nn.Module, first: nn.Module, shape: tuple) -> Wrapped:
    torch.manual_seed(0)
    first, layer = first.double().eval(), layer.double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():  # norms begin with ones and zeros
            parameter.uniform_(-0.5, 0.5)
    return Wrapped(first, layer, shape).double().eval()


def perturbed(shape: tuple, count: int = 2):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    x2 = x + 0.1 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return x, x2, torch.arange(count) % 4


@pytest.mark.parametrize("form", ["ghost", "materialised"])
def test_144_convolutions(form):
    x, x2, y = perturbed((2, 7, 6))
    for settings in ZOO:
        model = wrapped(nn.Conv2d(3, 4, **settings), nn.Conv2d(2, 3, 1), x.shape[1:])
        check(model, x, x2, y, form=form)


def test_unfolded_as_on_a_gpu(monkeypatch):
    """There materialised gradients are made of unfolded inputs, not one sample at a time."""
    prepared = pairs.Convolution.prepared

    def unfolding(self, *tensors):
        found = prepared(self, *tensors)
        self.direct = False
        return found

    monkeypatch.setattr(pairs.Convolution, "prepared", unfolding)
    monkeypatch.setattr(pairs.Convolution, "_backward", None)  # nothing takes the other way
    x, x2, y = perturbed((2, 7, 6))
    for settings in [*ZOO[::7], dict(kernel_size=3, groups=1, padding=2)]:
        model = wrapped(nn.Conv2d(3, 4, **settings), nn.Conv2d(2, 3, 1), x.shape[1:])
        check(model, x, x2, y, form="materialised")
    x, x2, y = perturbed((4, 7, 6))
    for settings in GROUPED:
        model = wrapped(nn.Conv2d(4, **settings), nn.Conv2d(4, 4, 1), x.shape[1:])
        check(model, x, x2, y, form="materialised")
    check(trained("cnn-w4"), *pictures(), form="materialised")


GROUPED = [
    dict(out_channels=8, kernel_size=3, groups=2, padding=1),
    dict(out_channels=4, kernel_size=3, groups=4, stride=2),  # depthwise
    dict(out_channels=8, kernel_size=(2, 3), groups=4, bias=False, dilation=2),
    dict(out_channels=4, kernel_size=1, groups=2),
    dict(out_channels=4, kernel_size=3, padding="same"),
    dict(out_channels=4, kernel_size=2, padding="same", dilation=3),  # more on one side
    dict(out_channels=4, kernel_size=3, padding="valid"),
    dict(out_channels=4, kernel_size=3, padding=(1, 2), padding_mode="circular"),
    dict(out_channels=4, kernel_size=3, padding=1, padding_mode="reflect", stride=2),
    dict(out_channels=4, kernel_size=3, padding="same", padding_mode="replicate"),
]


@pytest.mark.parametrize("form", ["ghost", "materialised"])
@pytest.mark.parametrize("settings", GROUPED, ids=str)
def test_groups_and_padding(settings, form):
    for kind, first, shape in (
        (nn.Conv2d, nn.Conv2d(2, 4, 1), (2, 7, 6)), (nn.Conv1d, nn.Conv1d(2, 4, 1), (2, 9)),
    ):  # fmt: skip
        chosen = {
            key: value[-1] if isinstance(value, tuple) and kind is nn.Conv1d else value
            for key, value in settings.items()
        }
        x, x2, y = perturbed(shape)
        check(wrapped(kind(4, **chosen), first, shape), x, x2, y, form=form)


OTHERS = {
    "linear": (nn.Linear(5, 6), nn.Linear(5, 5), (5,)),
    "linear, no bias": (nn.Linear(5, 6, bias=False), nn.Linear(5, 5), (5,)),
    "linear over time": (nn.Linear(5, 6), nn.Linear(5, 5), (4, 5)),
    "linear over two axes": (nn.Linear(5, 6), nn.Linear(5, 5), (2, 3, 5)),
    "layer norm": (nn.LayerNorm(5), nn.Linear(5, 5), (4, 5)),
    "layer norm of two axes": (nn.LayerNorm((4, 5)), nn.Linear(5, 5), (2, 4, 5)),
    "layer norm of a row": (nn.LayerNorm(5, bias=False), nn.Linear(5, 5), (5,)),
    "rms norm": (nn.RMSNorm(5), nn.Linear(5, 5), (4, 5)),
    "group norm": (nn.GroupNorm(2, 4), nn.Conv2d(2, 4, 3), (2, 5, 6)),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), nn.Conv2d(2, 4, 3), (2, 5, 6)),
    "batch norm 1d": (nn.BatchNorm1d(5), nn.Linear(5, 5), (5,)),
    "batch norm over time": (nn.BatchNorm1d(4), nn.Conv1d(2, 4, 3), (2, 8)),
    "batch norm 2d": (nn.BatchNorm2d(4), nn.Conv2d(2, 4, 3), (2, 5, 6)),
}  # fmt: skip


@pytest.mark.parametrize("form", [None, "ghost", "materialised"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_layers(name, form):
    layer, first, shape = OTHERS[name]
    layer, first = copy.deepcopy(layer), copy.deepcopy(first)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    x, x2, y = perturbed(shape)
    check(wrapped(layer, first, shape), x, x2, y, form=form)


class Words(nn.Module):
    """Tokens and numbers: the tokens stay, the numbers move. `moved` tokens come with the second
    input."""

    def __init__(self, padding_idx=None, steps=6):
        super().__init__()
        self.words = nn.Embedding(7, 3, padding_idx=padding_idx)
        self.mix = nn.Linear(6, 4)
        self.head = nn.Linear(4, 4)
        self.steps = steps

    def forward(self, x):
        tokens = x[:, :, 3].long()
        both = torch.cat([x[:, :, :3], self.words(tokens)], 2)
        return self.head(F.softplus(self.mix(both)).mean(1))


@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize("other_tokens", [False, True])
def test_embedding(padding_idx, other_tokens):
    torch.manual_seed(0)
    model = Words(padding_idx).double()
    x = torch.randn(3, 6, 4, dtype=torch.float64)
    x[:, :, 3] = torch.randint(7, (3, 6))
    x2 = x + 0.1 * torch.randn_like(x)
    x2[:, :, 3] = torch.randint(7, (3, 6)) if other_tokens else x[:, :, 3]
    check(model, x, x2, torch.arange(3))


def test_frozen_parameters_take_no_part():
    model = trained("cnn-w4")
    layers = [m for m in model.modules() if loop.own(m)]
    layers[0].requires_grad_(False)
    layers[1].weight.requires_grad_(False)
    check(model, *pictures())
    assert [p.requires_grad for p in layers[1].parameters()] == [False, True]


def test_the_norms_term():
    model, (x, x2, y) = trained("cnn-w4"), pictures()
    plain, _ = both(model, x, x2, y)[0]
    value, slope = both(model, x, x2, y, norm_weight=0.3)[0]
    point = x2.clone().requires_grad_()
    total = 0
    for i in range(len(x)):
        row = slice(i, i + 1)
        g, h = (
            sum((v**2).sum() for v in loop.gradients(model, CE, p[row], y[row]).values())
            for p in (x, point)
        )
        term = 0.3 * ((h / g.detach()).log() / 2) ** 2
        torch.testing.assert_close(value[i] - plain[i], term.detach(), rtol=1e-9, atol=1e-13)
        total = total + (i + 1) * term
    wanted = torch.autograd.grad(total, point)[0] + both(model, x, x2, y)[0][1]
    assert (slope - wanted).abs().max() < 1e-10 * wanted.abs().max()


@pytest.mark.parametrize("per_sample", [True, False])
def test_a_budget_changes_nothing(per_sample):
    model, (x, x2, y) = trained("cnn-w4"), pictures(count=7)
    results = []
    for max_bytes in (None, 1, 3_000_000):
        point = x2.clone().requires_grad_()
        value = fastue.gradient_match(
            model, CE, x, point, y, per_sample=per_sample, max_bytes=max_bytes
        )
        value.sum().backward()
        results.append((value.detach(), point.grad))
    for value, gradient in results[1:]:
        torch.testing.assert_close(value, results[0][0], rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-9, atol=1e-13)
