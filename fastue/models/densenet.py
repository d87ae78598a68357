"""DenseNet-121 with a CIFAR stem (Huang et al. 2017).

Growth 32 at full width; transitions halve channels and size.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseLayer(nn.Module):
    def __init__(self, cin: int, growth: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(F.relu(self.bn2(out)))], 1)


class DenseNet121(nn.Module):
    """Logits [B, num_classes] of pictures [B, C, H, W]; `width` is twice the growth rate."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 64):
        super().__init__()
        growth, channels = width // 2, width
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        stages: list[nn.Module] = []
        for stage, depth in enumerate((6, 12, 24, 16)):
            if stage:
                stages += [
                    nn.BatchNorm2d(channels),
                    nn.ReLU(),
                    nn.Conv2d(channels, channels // 2, 1, bias=False),
                    nn.AvgPool2d(2, ceil_mode=True),
                ]
                channels //= 2
            for _ in range(depth):
                stages.append(DenseLayer(channels, growth))
                channels += growth
        self.stages = nn.Sequential(*stages, nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
