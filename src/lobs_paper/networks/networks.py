"""The networks of the paper. An experiment names one by `_target_`; any importable `nn.Module` will do."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

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


def resnet18_cifar(classes: int = 10) -> nn.Module:
    """ResNet-18 of torchvision for images of 32x32: a first convolution of 3x3, stride 1, no pooling after it."""
    from torchvision.models import resnet18

    network = resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def vgg16_cifar(classes: int = 10) -> nn.Module:
    """VGG-16 of torchvision with batch norm for images of 32x32: one fully connected layer after the convolutions."""
    from torchvision.models.vgg import VGG, cfgs, make_layers

    network = VGG(make_layers(cfgs["D"], batch_norm=True), num_classes=1)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(512, classes)
    return network


def efficientnet_lite0(classes: int = 1000, **settings: Any) -> nn.Module:
    """EfficientNet-Lite0 of the package efficientnet-lite-pytorch, made of plain modules.

    The package's convolutions pad their own input. Here the padding is that of `nn.Conv2d`, or of an `nn.ZeroPad2d`
    before it where it differs between sides, so that a hook sees every layer's input. The package's weights fit.

    Args:
        classes: units of the last layer.
        settings: what else the package's network takes, such as `width_coefficient`.

    Returns:
        The network, freshly initialised.

    Raises:
        ValueError: the package is missing.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ValueError(f"EfficientNet-Lite0 needs the packages of lobs[imagenet]: {error}") from None
    network = EfficientNet.from_name("efficientnet-lite0", num_classes=classes, **settings)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            network.set_submodule(name, _plain_convolution(module))
    network.register_load_state_dict_pre_hook(_rename_padded)
    return network


def _plain_convolution(padded: nn.Conv2d) -> nn.Module:
    """A convolution that pads its own input by `static_padding`, without that, or behind it."""
    padding = getattr(padded.static_padding, "padding", (0, 0, 0, 0))
    left, right, top, bottom = padding
    even = left == right and top == bottom
    plain = nn.Conv2d(
        padded.in_channels,
        padded.out_channels,
        padded.kernel_size,  # type: ignore[arg-type]
        tuple(padded.stride),  # type: ignore[arg-type]
        (top, left) if even else 0,
        groups=padded.groups,
        bias=padded.bias is not None,
    )
    plain.load_state_dict(padded.state_dict())
    return plain if even else nn.Sequential(nn.ZeroPad2d(padding), plain)


def _rename_padded(network: nn.Module, state: dict[str, Any], *_: object) -> None:
    """The package's names of the convolutions that now stand behind their padding."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Sequential) and isinstance(module[0], nn.ZeroPad2d):
            for key in [key for key in state if key.rpartition(".")[0] == name]:
                state[f"{name}.1.{key.rpartition('.')[2]}"] = state.pop(key)


def build(model: Mapping[str, object]) -> nn.Module:
    """Build a network from its configuration: `_target_` makes it, every key but `weights` is an argument.

    A class or function of a module in the working directory is found, too.

    Args:
        model: group `model` of the configuration.

    Returns:
        The network, freshly initialised.

    Raises:
        ValueError: the class cannot be imported, is no module, or refuses the arguments.
    """
    target = str(model["_target_"])
    module_name, _, class_name = target.rpartition(".")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # as for a script there; the command `lobs` starts elsewhere
    try:
        network_class = getattr(import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"model._target_={target!r} cannot be imported: {error}") from None
    arguments = {key: value for key, value in model.items() if key not in ("_target_", "weights")}
    try:
        network = network_class(**arguments)
    except TypeError as error:
        raise ValueError(f"model: {target} does not accept {arguments}: {error}") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"model._target_={target!r} builds a {type(network).__name__}, not a torch.nn.Module")
    return network
