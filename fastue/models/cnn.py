"""A small plain CNN: four 3x3 convolutions with BatchNorm, for quick runs and tests."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue.models.resnet import conv_bn


class CNN(nn.Module):
    """Logits [B, num_classes] of pictures [B, C, H, W]; `width` channels after the first layer."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 32):
        super().__init__()
        layers: list[nn.Module] = []
        cin = in_channels
        for factor, stride in ((1, 1), (2, 2), (4, 2), (4, 2)):
            layers.append(conv_bn(cin, width * factor, 3, stride, relu=True))
            cin = width * factor
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(cin, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))
