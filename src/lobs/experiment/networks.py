"""The networks of the paper. An experiment names one by `_target_`; any importable `nn.Module` will do."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib import import_module
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


class LeNet5(nn.Sequential):
    """LeNet-5 as in Caffe: two 5x5 convolutions (20 and 50 maps), each with 2x2 max pooling, then 500 and 10 units.

    As in Caffe's definition the only ReLU follows the layer of 500 units.
    """

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(channels, 20, 5),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(20, 50, 5),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(800, 500),
                relu1=nn.ReLU(),
                fc2=nn.Linear(500, classes),
            )
        )


def build(model: Mapping[str, object]) -> nn.Module:
    """Build a network from its configuration: `_target_` is the class, every other key an argument.

    Args:
        model: group `model` of the configuration.

    Returns:
        The network, freshly initialised.

    Raises:
        ValueError: the class cannot be imported, is no module, or refuses the arguments.
    """
    target = str(model["_target_"])
    module_name, _, class_name = target.rpartition(".")
    try:
        network_class = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"model._target_={target!r} cannot be imported: {error}") from None
    arguments = {key: value for key, value in model.items() if key != "_target_"}
    try:
        network = network_class(**arguments)
    except TypeError as error:
        raise ValueError(f"model: {target} does not accept {arguments}: {error}") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"model._target_={target!r} builds a {type(network).__name__}, not a torch.nn.Module")
    return network
