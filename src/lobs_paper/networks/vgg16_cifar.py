"""VGG-16 for images of 32x32."""

from __future__ import annotations

from torch import nn


def vgg16_cifar(classes: int = 10) -> nn.Module:
    """VGG-16 of torchvision with batch norm for images of 32x32: one fully connected layer after the convolutions."""
    from torchvision.models.vgg import VGG, cfgs, make_layers

    network = VGG(make_layers(cfgs["D"], batch_norm=True), num_classes=1)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(512, classes)
    return network
