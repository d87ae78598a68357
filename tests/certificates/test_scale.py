"""A network that is written otherwise has the same certificate, in a norm that the theorem takes."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri
from torch import nn

from fastue import models
from fastue.certificates import bounds
from fastue.certificates.claim import BN_POLICIES, Smoothing
from fastue.certificates.scale import filters_before_norm, parameter_scale
from fastue.certificates.smoothing import Sampler
from fastue.data.dataset import ImageDataset
from fastue.models.flat import FlatParameters, flattened
from fastue.models.training import to_input


class Block(nn.Module):
    """As in torchvision: layers are attributes, the order is in forward."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class LibraryNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(8)
        self.conv0 = nn.Conv2d(3, 8, 3, padding=1)
        self.block = Block(8)
        self.loose = nn.Conv2d(8, 8, 1)  # its output is written to before the BatchNorm
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        y = self.loose(self.block(torch.relu(self.bn0(self.conv0(x)))))
        y += 1
        return self.fc(torch.relu(self.bn(y)).mean((2, 3)))


def pairs(model: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """(filters, the BatchNorm behind them), as written in the network."""
    if isinstance(model, LibraryNet):
        block = model.block
        return [(model.conv0, model.bn0), (block.conv1, block.bn1), (block.conv2, block.bn2)]
    return [(part[0], part[1]) for part in model.modules() if is_conv_bn(part)]


def is_conv_bn(part: nn.Module) -> bool:
    return isinstance(part, nn.Sequential) and isinstance(part[0], nn.Conv2d)


def network(name: str, data: ImageDataset) -> nn.Module:
    """Trained a little; what is added to a variance is too little to be rescaled."""
    torch.manual_seed(1)
    model = LibraryNet() if name == "library" else models.build(name, 4, seed=1)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps, part.momentum = 1e-30, 0.3
    optimizer, x = torch.optim.Adam(model.parameters(), 0.01), to_input(data.images)
    model.train()
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), data.labels).backward()
        optimizer.step()
    return model.eval()


def rescaled(model: nn.Module, factor) -> nn.Module:
    """The same function: filters times factor(filters), statistics to match."""
    model = copy.deepcopy(model)
    for conv, norm in pairs(model):
        f = factor(conv.out_channels)
        conv.weight.data *= f[:, None, None, None]
        if conv.bias is not None:
            conv.bias.data *= f
        norm.running_mean *= f
        norm.running_var *= f * f
    return model


def drawn(model, data, bn, scale, sigma=0.4, draws=12) -> np.ndarray:
    sampler = Sampler(model, data, Smoothing(sigma, seed=3, bn=bn, scale=scale))
    return sampler.counts(range(draws)).numpy()


def two_to_the(low: int, high: int):
    generator = torch.Generator().manual_seed(2)
    return lambda n: 2.0 ** torch.randint(low, high, (n,), generator=generator)


@pytest.mark.parametrize("bn", BN_POLICIES)
@pytest.mark.parametrize("name", ["cnn-w8", "library"])
def test_rescaled_filters_have_the_same_draws(name, bn, tiny):
    data = tiny(20, 2, contrast=18)
    model = network(name, tiny(20, 1, contrast=18))
    plain = drawn(model, data, bn, "canonical")
    assert len(set(plain.tolist())) > 3  # else the comparison would prove little
    exact = rescaled(model, two_to_the(-3, 4))  # no rounding: not one picture may differ
    assert (drawn(exact, data, bn, "canonical") == plain).all()
    generator = torch.Generator().manual_seed(2)
    for factor in (
        lambda n: torch.full((n,), 0.2),
        lambda n: torch.rand(n, generator=generator) * 3 + 0.1,
    ):
        other = rescaled(model, factor)
        assert np.abs(drawn(other, data, bn, "canonical") - plain).max() <= 1
    raw = drawn(model, data, bn, "raw", 0.1)
    assert np.abs(drawn(exact, data, bn, "raw", 0.1) - raw).max() > 1


def test_which_filters_enter_a_batchnorm(tiny):
    """By the tensor that goes from one to the other, untouched; not by how modules are nested."""
    x = to_input(tiny(2).images)
    model = LibraryNet().train()
    block = model.block
    assert filters_before_norm(model, x) == {model.conv0, block.conv1, block.conv2}
    assert model.training and not any(part._forward_hooks for part in model.modules())
    assert int(model.bn.num_batches_tracked) == 0  # the pass changed no statistics
    resnet = models.build("resnet10-w4", 4)
    convs = {part for part in resnet.modules() if isinstance(part, nn.Conv2d)}
    assert filters_before_norm(resnet, x) == convs


def test_the_scale_of_each_group(tiny):
    x = to_input(tiny(2).images)
    model = LibraryNet()
    model.bn0.weight.data.fill_(3.0)
    model.bn0.bias.data.fill_(4.0)
    model.fc.weight.data.zero_()
    before = parameter_scale(model, x, "canonical")
    flat = FlatParameters(model)
    views, start = {}, 0
    for name, p in model.named_parameters():
        views[name] = before[start : start + p.numel()].view(p.shape)
        start += -(-p.numel() // 64) * 64
    assert start == len(before) == len(flat.base)
    rms = model.conv0.weight.detach().square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(views["conv0.weight"][:, 0, 0, 0], rms)
    assert torch.allclose(views["conv0.bias"], rms)
    assert torch.allclose(views["bn0.weight"], torch.tensor(12.5).sqrt())
    assert torch.equal(views["bn0.weight"], views["bn0.bias"])
    assert views["loose.weight"].unique().numel() == 1
    assert (views["fc.weight"] == 1).all() and (views["fc.bias"] == 1).all()  # all weights are 0
    assert (before[flattened([torch.ones_like(p) for p in model.parameters()]) == 0] == 1).all()
    # A bias that a BatchNorm takes away again does not make the noise stronger.
    model.conv0.bias.data += 1000
    assert torch.equal(parameter_scale(model, x, "canonical"), before)
    assert (parameter_scale(model, x, "raw") == 1).all()


class Threshold(nn.Module):
    """Right where the picture is darker than its one weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x):
        margin = self.weight - x.mean((1, 2, 3))
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def test_the_theorem_holds_in_the_scaled_norm_and_is_met():
    """Accuracy grows with one weight: the worst shift is eta * scale along it, no more, no less."""
    x = torch.linspace(0, 255, 501).round().byte()[:, None, None, None].expand(501, 3, 2, 2)
    data = ImageDataset(
        x, torch.zeros(501, dtype=torch.int64), [str(i) for i in range(501)], ["right", "wrong"]
    )
    sigma, eta, q, n = 0.2, 0.1, 0.5, 2000
    sampler = Sampler(Threshold(), data, Smoothing(sigma, seed=1))
    assert sampler.scale[0] == 0.5
    counts = sampler.counts(range(n)).numpy()
    (bound,) = bounds.certify(counts, len(data), q=q, eta=eta, sigma=sigma)
    fresh = range(10_000, 10_000 + n)
    worst = torch.zeros_like(sampler.scale)
    worst[0] = eta * 0.5
    reached = bounds.quantile_lower(sampler.moved(worst).counts(fresh).numpy(), q, 0.01)
    truth = 0.5 + 0.5 * (eta + sigma * ndtri(q))  # a uniform distribution of pictures
    assert abs(np.quantile(sampler.moved(worst).counts(fresh).numpy() / 501, q) - truth) < 0.01
    assert reached <= bound.correct and truth <= bound.accuracy < truth + 0.02
    # A shift of that length in the raw norm is outside of the ball, and does exceed the bound.
    outside = bounds.quantile_lower(sampler.moved(2 * worst).counts(fresh).numpy(), q, 0.01)
    assert outside > bound.correct
    assert ndtr(eta / sigma) == pytest.approx(bound.level)
