"""Surrogates and victims by name: `resnet18`, `resnet10-w16`, `timm:resnet26` …


The w is the number of channels of the first stage. A model takes pictures [B, C, H, W] in [0, 1]
pixel units (no input normalisation, as in the EMN code) and gives logits.
"""

import re
import zlib

import torch
from torch import nn

from fastue.core.errors import UsageError
from fastue.models.cnn import CNN
from fastue.models.densenet import DenseNet121
from fastue.models.resnet import resnet10, resnet18, resnet50
from fastue.models.vgg import VGG11

FAMILIES = {
    "cnn": CNN,
    "resnet10": resnet10,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "vgg11": VGG11,
    "densenet121": DenseNet121,
}
DEFAULT_WIDTH = {"cnn": 32}


def build(name: str, num_classes: int, in_channels: int = 3, *, seed: int = 0) -> nn.Module:
    """A freshly initialised float32 network; the same (name, shape, seed) gives the same weights.

    Raises UsageError for an unknown name, a width that is no positive multiple of 2, or a missing
    library.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{name}/{num_classes}/{in_channels}/{seed}".encode()))
        library, _, library_name = name.partition(":")
        if library_name:
            return _from_library(library, library_name, num_classes, in_channels)
        match = re.fullmatch(r"([a-z]+\d*)(?:-w(\d+))?", name)
        if not match or match[1] not in FAMILIES:
            raise UsageError(
                f"--arch {name}: unknown network. Use one of {', '.join(FAMILIES)}, each also with "
                "a width such as resnet18-w16, or timm:NAME / torchvision:NAME when that library "
                "is installed"
            )
        width = int(match[2] or DEFAULT_WIDTH.get(match[1], 64))
        if width < 2 or width % 2:
            raise UsageError(
                f"--arch {name}: the width after -w must be an even number of at least 2"
            )
        return FAMILIES[match[1]](num_classes, in_channels, width)


def _from_library(library: str, name: str, num_classes: int, in_channels: int) -> nn.Module:
    from fastue.core.vision import import_timm, import_torchvision

    if library == "timm":
        timm = import_timm()
        if name not in timm.list_models():
            raise UsageError(
                f"--arch timm:{name}: timm {timm.__version__} has no model of this name"
            )
        return timm.create_model(name, num_classes=num_classes, in_chans=in_channels)
    if library == "torchvision":
        models = import_torchvision().models
        if name not in models.list_models(module=models):
            raise UsageError(
                f"--arch torchvision:{name}: torchvision has no classification model of this name"
            )
        if in_channels != 3:
            raise UsageError(
                f"--arch torchvision:{name}: takes 3-channel pictures, these have {in_channels}"
            )
        return models.get_model(name, weights=None, num_classes=num_classes)
    raise UsageError(f"--arch {library}:{name}: unknown library; timm: and torchvision: are known")
