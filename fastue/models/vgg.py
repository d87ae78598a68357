"""VGG-11 with BatchNorm and a single linear head, the CIFAR form.

Simonyan & Zisserman 2015, configuration A.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue.models.resnet import conv_bn


class VGG11(nn.Module):
    """Logits [B, num_classes] of pictures [B, C, H, W]; `width` channels after the first layer."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 64):
        super().__init__()
        layers, cin = [], in_channels
        for factor in (1, "pool", 2, "pool", 4, 4, "pool", 8, 8, "pool", 8, 8):
            if factor == "pool":
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            else:
                layers.append(conv_bn(cin, width * factor, 3, relu=True))
                cin = width * factor
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(cin, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))
