"""ResNet-20 for images of 32x32."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Two convolutions of 3x3 beside a shortcut without weights: where channels grow, zeros are added to it.

    Args:
        inputs: channels that come in.
        channels: that go out.
        stride: of the first convolution and of the shortcut.
    """

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.added = stride, channels - inputs

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways, rectified."""
        way = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.added:
            before = self.added // 2
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))
        return functional.relu(way + x)


class ResNet20(nn.Sequential):
    """ResNet-20 for CIFAR-10 (He et al. 2016, section 4.2): three stages of three blocks, 16, 32 and 64 channels."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(channels, 16, 3, padding=1, bias=False),
                bn1=nn.BatchNorm2d(16),
                relu=nn.ReLU(),
                layer1=nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1)),
                layer2=nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1)),
                layer3=nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1)),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                linear=nn.Linear(64, classes),
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
