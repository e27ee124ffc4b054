"""LeNet-300-100, for MNIST."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn


class LeNet300(nn.Sequential):
    """LeNet-300-100: a fully connected 784-300-100-10 network with ReLU, for MNIST (LeCun et al. 1998)."""

    def __init__(self, inputs: int = 784, hidden: Sequence[int] = (300, 100), classes: int = 10) -> None:
        sizes = [inputs, *hidden, classes]
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for index, (size, units) in enumerate(pairwise(sizes), start=1):
            layers[f"fc{index}"] = nn.Linear(size, units)
            if index <= len(hidden):
                layers[f"relu{index}"] = nn.ReLU()
        super().__init__(layers)
