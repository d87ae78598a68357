"""How different two pictures look: features of a small network of one's own, or LPIPS."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from fastue.core.errors import UsageError
from fastue.data.atomic import canonical_json, make_folder
from fastue.data.augment import crop_flip
from fastue.data.dataset import ImageDataset, batches, epoch_order
from fastue.data.tensorfile import read_tensors, write_tensors
from fastue.models import build
from fastue.models.training import sgd, to_input, train_step

# (x, y float32 [B,C,H,W] in [-1,1] units) -> float32 [B], differentiable, each pair on its own
Distance = Callable[[Tensor, Tensor], Tensor]
ARCH, EPOCHS, BATCH, RATE = "cnn-w16", 5, 64, 0.05
ALEXNET = "alexnet-owt-7be5be79.pth"  # as torchvision names it


class Features:
    """LPIPS without its learnt weights: the features of each layer at unit length over channels,
    squared differences averaged over places, summed over layers.
    """

    def __init__(self, layers: nn.Sequential):
        self.layers = layers.eval().requires_grad_(False)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = (x + 1) / 2, (y + 1) / 2
        total = x.new_zeros(len(x))
        for layer in self.layers:
            x, y = layer(x), layer(y)
            total = total + (_unit(x) - _unit(y)).square().sum(1).mean((1, 2))
        return total


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt()


def uphill(distance: Distance, x: Tensor, y: Tensor) -> Tensor:
    """The gradient by x of minus the distance, float32 like x; that of a picture is its own."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(distance(x, y).sum(), x)[0]


def trained_features(aux: ImageDataset, *, cache: Path | None = None, seed: int = 0) -> Features:
    """Those of a small classifier of `aux`, on its device, read from the folder `cache` where it is
    there. Seconds, so a training that was cut off is begun again."""
    key = {"aux": aux.fingerprint(), "arch": ARCH, "epochs": EPOCHS, "batch": BATCH, "rate": RATE}
    name = hashlib.sha256(canonical_json({**key, "seed": seed}).encode()).hexdigest()[:16]
    path = None if cache is None else make_folder(cache) / f"{name}.features.safetensors"
    model = build(ARCH, aux.num_classes, aux.shape[0], seed=seed)
    model = model.to(aux.device, memory_format=torch.channels_last)
    if path is not None and path.exists():
        model.load_state_dict(read_tensors(path)[0])
        return Features(model.features)
    _classify(model, aux, seed)
    if path is not None:
        write_tensors(path, model.state_dict(), key)
    return Features(model.features)


def _classify(model: nn.Module, aux: ImageDataset, seed: int) -> None:
    n, batch = len(aux), min(BATCH, len(aux))
    steps = n // batch
    optimizer = sgd(model, RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * steps)
    model.train()
    for epoch in range(EPOCHS):
        for x, y, index in batches(aux, batch, epoch_order(n, seed, epoch)[: steps * batch]):
            x = crop_flip(x, index, seed=seed, epoch=epoch, rows=n)
            train_step(model, optimizer, to_input(x), y, precision="float32", clip=5.0)
            schedule.step()


def lpips(device: torch.device) -> Distance:
    """LPIPS with AlexNet: the package `lpips`, and AlexNet's weights where torch.hub keeps them.

    Nothing is downloaded: raises UsageError where one of the two is missing.
    """
    try:
        from lpips import LPIPS
    except ImportError as error:
        raise UsageError("--perceptual lpips: pip install lpips") from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / ALEXNET
    if not weights.exists():
        raise UsageError(f"--perceptual lpips: {weights}: no such file; put torchvision's there")
    model = LPIPS(net="alex", verbose=False).to(device).eval().requires_grad_(False)
    return lambda x, y: model(x, y).flatten()
