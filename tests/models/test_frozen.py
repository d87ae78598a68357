"""The frozen copy is the eval-mode network: same logits, same signs of the input gradient."""

import pytest
import torch
from torch.nn import functional as F

from fastue.models import build
from fastue.models.frozen import FrozenCopy


def trained(name):
    """A network whose BatchNorm statistics and affine weights have moved from where they began."""
    model = build(name, 10, seed=1)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.3, 2.0),
                (module.weight.data, -1.5, 1.5),
                (module.bias.data, -0.5, 0.5),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model


def input_gradient(network, x, y):
    x = x.clone().requires_grad_()
    logits = network(x)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
    return logits, gradient


@pytest.mark.parametrize(
    "name", ["cnn-w8", "resnet10-w8", "resnet50-w4", "vgg11-w8", "densenet121-w8"]
)
def test_float32_copy_equals_the_eval_network(name):
    model = trained(name)
    frozen = FrozenCopy(model, "float32")
    # Seeded: random weights give some pictures no gradient at all, at times too many.
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(8, 3, 16, 16, generator=generator), torch.arange(8)
    model.eval().double()
    exact, gradient = input_gradient(model, x.double(), y)
    model.float()
    eager = model(x)
    logits, own = input_gradient(frozen, x, y)
    loss = 2 * (eager - exact).abs().max() + 1e-5 * exact.abs().max()
    assert (logits - exact).abs().max() <= loss
    decided = gradient.abs() > 1e-4 * gradient.abs().amax((1, 2, 3), keepdim=True)
    assert decided.float().mean() > 0.05
    assert torch.equal(own.sign()[decided].double(), gradient.sign()[decided])


def test_every_batchnorm_behind_a_convolution_is_folded():
    module = FrozenCopy(build("resnet18-w8", 10), "float32").module
    assert not [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("precision, dtype", [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_no_parameter_wants_a_gradient_and_the_dtype_is_one(precision, dtype):
    frozen = FrozenCopy(build("cnn-w8", 10), precision)
    for name, p in frozen.module.named_parameters():
        # The bias of a folded convolution is added to a float32 sum.
        bias_of_fold = name.startswith("features.") and name.endswith(".bias")
        assert not p.requires_grad, name
        assert p.dtype == (torch.float32 if bias_of_fold else dtype), name
    assert frozen(torch.rand(2, 3, 8, 8, dtype=dtype)).dtype == torch.float32


def test_refresh_follows_training_and_nothing_else_does():
    model = trained("resnet10-w8")
    frozen, x = FrozenCopy(model, "float32"), torch.rand(4, 3, 16, 16)
    before = frozen(x)
    model.train()
    F.cross_entropy(model(x), torch.arange(4)).backward()
    torch.optim.SGD(model.parameters(), 0.5).step()
    assert torch.equal(frozen(x), before)
    model.eval()
    assert not torch.allclose(model(x), before, atol=1e-2)
    logits = model(x).detach()
    assert torch.allclose(frozen.refresh()(x), logits, atol=1e-3 * float(logits.abs().max()))


@pytest.mark.slow  # the compiler takes a minute
def test_compiled_equals_eager():
    model = trained("cnn-w4")
    x, y = torch.rand(4, 3, 8, 8), torch.arange(4)
    eager, gradient = input_gradient(FrozenCopy(model, "float32"), x, y)
    compiled, other = input_gradient(FrozenCopy(model, "float32", compile=True), x, y)
    assert torch.allclose(eager, compiled, atol=1e-4, rtol=1e-4)
    decided = gradient.abs() > 1e-4 * gradient.abs().amax((1, 2, 3), keepdim=True)
    assert torch.equal(gradient.sign()[decided], other.sign()[decided])
