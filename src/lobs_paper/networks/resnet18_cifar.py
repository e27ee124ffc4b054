"""ResNet-18 for images of 32x32."""

from __future__ import annotations

from torch import nn


def resnet18_cifar(classes: int = 10) -> nn.Module:
    """ResNet-18 of torchvision for images of 32x32: a first convolution of 3x3, stride 1, no pooling after it."""
    from torchvision.models import resnet18

    network = resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network
