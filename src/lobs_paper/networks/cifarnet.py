"""Caffe's quick network, for CIFAR-10."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


class CifarNet(nn.Sequential):
    """Caffe's quick network for CIFAR-10: convolutions of 32, 32 and 64 maps of 5x5, then 64 and 10 units.

    Pooling is 3x3 with stride 2, the maximum first (before the ReLU) and then twice the mean; as in Caffe, windows may
    reach over the edge, and no ReLU stands between the last two layers.
    """

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(channels, 32, 5, padding=2),
                pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
                relu1=nn.ReLU(),
                conv2=nn.Conv2d(32, 32, 5, padding=2),
                relu2=nn.ReLU(),
                pool2=nn.AvgPool2d(3, 2, ceil_mode=True),
                conv3=nn.Conv2d(32, 64, 5, padding=2),
                relu3=nn.ReLU(),
                pool3=nn.AvgPool2d(3, 2, ceil_mode=True),
                flatten=nn.Flatten(),
                fc1=nn.Linear(1024, 64),
                fc2=nn.Linear(64, classes),
            )
        )
