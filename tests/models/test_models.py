"""Networks by name: shapes, widths, seeds, and what is said of a name that is none."""

import pytest
import torch

from fastue.core.errors import UsageError
from fastue.models import build
from fastue.models.training import (
    accuracy,
    resolve_device,
    resolve_precision,
    sgd,
    to_input,
    train_step,
)

NAMES = ["cnn", "resnet10-w8", "resnet18-w8", "resnet50-w4", "vgg11-w8", "densenet121-w8"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 17, 29)])
def test_logits_for_every_picture_size(name, shape):
    model = build(name, 7, shape[0])
    assert model(torch.rand(2, *shape)).shape == (2, 7)


def test_published_sizes():
    """Of the CIFAR forms in the literature: 11.17 M for ResNet-18, 6.96 M for DenseNet-121."""
    count = {
        name: sum(p.numel() for p in build(name, 10).parameters())
        for name in ("resnet18", "densenet121", "vgg11")
    }
    assert count == {"resnet18": 11_173_962, "densenet121": 6_956_298, "vgg11": 9_228_362}


def test_weights_depend_on_the_seed_alone_and_leave_torchs_generator():
    state = torch.random.get_rng_state()
    first, again, other = (build("cnn", 10, seed=s).state_dict() for s in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    "name", ["resnet99", "resnet18-w0", "resnet18-w7", "jax:resnet18", "timm:no_such_model", ""]
)
def test_unknown_names_say_which_flag_it_was(name):
    with pytest.raises(UsageError, match="--arch"):
        build(name, 10)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:resnet10t"])
def test_library_models(name):
    assert build(name, 5)(torch.rand(2, 3, 32, 32)).shape == (2, 5)


def test_training_learns_and_accuracy_counts(tiny):
    from fastue.data.dataset import batches

    data, model = tiny(), build("cnn-w8", 4)
    optimizer = sgd(model, 0.05)
    before = accuracy(model, batches(data, 50), precision="float32")
    model.train()
    for _ in range(80):
        train_step(
            model, optimizer, to_input(data.images), data.labels, precision="float32", clip=5.0
        )
    after = accuracy(model, batches(data, 50), precision="float32")
    assert before < 60 and after > 90
    with torch.no_grad():
        right = (model.eval()(to_input(data.images)).argmax(1) == data.labels).float().mean()
    assert after == pytest.approx(100 * float(right))


def test_gradient_clipping_bounds_the_step(tiny):
    data, model = tiny(), build("cnn-w8", 4)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    train_step(model, optimizer, to_input(data.images), data.labels, precision="float32", clip=1e-3)
    steps = [p.detach() - q for p, q in zip(model.parameters(), before, strict=True)]
    length = sum(float(step.square().sum()) for step in steps) ** 0.5
    assert 0 < length <= 1.001e-3


def test_precision_and_device_names():
    assert resolve_precision("float32") == "float32"
    assert resolve_precision("auto") in ("float32", "bf16")
    with pytest.raises(UsageError, match="--precision"):
        resolve_precision("fp8")
    with pytest.raises(UsageError, match="--device"):
        resolve_device("gpu0")
    assert resolve_device("auto").type in ("cpu", "cuda")
