"""ResNet with a CIFAR stem (He et al. 2016): a 3x3 convolution and no max-pooling.

So 32x32 pictures keep their detail.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastue.models.conv import Conv, add_relu


def conv_bn(
    cin: int, cout: int, kernel: int, stride: int = 1, *, relu: bool = False
) -> nn.Sequential:
    """Activations are in place: a fresh buffer for each costs a CPU more than the arithmetic."""
    conv = Conv(cin, cout, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout), *([nn.ReLU(inplace=True)] if relu else []))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, cin: int, width: int, stride: int):
        super().__init__()
        self.conv1 = conv_bn(cin, width, 3, stride, relu=True)
        self.conv2 = conv_bn(width, width, 3)
        self.shortcut = (
            nn.Identity() if stride == 1 and cin == width else conv_bn(cin, width, 1, stride)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return add_relu(self.conv2, self.conv1(x), self.shortcut(x), self.relu)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, cin: int, width: int, stride: int):
        super().__init__()
        cout = width * self.expansion
        self.conv1 = conv_bn(cin, width, 1, relu=True)
        self.conv2 = conv_bn(width, width, 3, stride, relu=True)
        self.conv3 = conv_bn(width, cout, 1)
        self.shortcut = (
            nn.Identity() if stride == 1 and cin == cout else conv_bn(cin, cout, 1, stride)
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return add_relu(self.conv3, self.conv2(self.conv1(x)), self.shortcut(x), self.relu)


class ResNet(nn.Module):
    """Logits [B, num_classes] of pictures [B, C, H, W]; `width` channels in the first stage."""

    def __init__(
        self,
        block,
        depths: tuple[int, ...],
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
    ):
        super().__init__()
        self.stem = conv_bn(in_channels, width, 3, relu=True)
        cin, stages = width, []
        for stage, depth in enumerate(depths):
            for i in range(depth):
                stages.append(block(cin, width << stage, stride=2 if stage > 0 and i == 0 else 1))
                cin = (width << stage) * block.expansion
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(cin, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def resnet10(num_classes: int, in_channels: int = 3, width: int = 64) -> ResNet:
    return ResNet(BasicBlock, (1, 1, 1, 1), num_classes, in_channels, width)


def resnet18(num_classes: int, in_channels: int = 3, width: int = 64) -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, width)


def resnet50(num_classes: int, in_channels: int = 3, width: int = 64) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, width)
