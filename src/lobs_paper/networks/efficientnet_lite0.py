"""EfficientNet-Lite0, for ImageNet."""

from __future__ import annotations

from typing import Any

from torch import nn


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
