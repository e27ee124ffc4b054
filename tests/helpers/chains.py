"""A chain of convolutions and linear layers, and which inputs of a layer one unit before it feeds."""

import torch
from torch import nn

from lobs.layers.matrix import input_samples


def grouped_chain():
    """A plain, a grouped and a depthwise convolution, a map that is flattened, and two linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, (2, 1), groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 6, 2, groups=6, bias=False),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    ).eval()


IMAGES = torch.randn(20, 2, 6, 5, generator=torch.Generator().manual_seed(0))


def fed(reader, units, unit):
    """Which inputs of a layer are not zero where one unit before it alone is not, bool ``[groups, features]``."""
    shape = (units, 3, 3) if isinstance(reader, nn.Conv2d) else (units, reader.in_features // units)
    maps = torch.zeros(1, *shape)
    maps[0, unit] = 1
    given = maps if isinstance(reader, nn.Conv2d) else maps.flatten(1)
    return torch.cat([samples != 0 for samples in input_samples(reader, given)], 1).any(1)
