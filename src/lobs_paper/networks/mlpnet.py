"""The small perceptron on which papers on pruning at once compare themselves."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

from torch import nn


class MLPNet(nn.Sequential):
    """A fully connected 784-40-20-10 network with ReLU and without biases, for MNIST (Singh & Alistarh 2020)."""

    def __init__(self, inputs: int = 784, hidden: Sequence[int] = (40, 20), classes: int = 10) -> None:
        sizes = [inputs, *hidden, classes]
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        for index, (size, units) in enumerate(pairwise(sizes), start=1):
            layers[f"fc{index}"] = nn.Linear(size, units, bias=False)
            if index <= len(hidden):
                layers[f"relu{index}"] = nn.ReLU()
        super().__init__(layers)
