"""A network from its configuration: `_target_` names any importable class or function that gives an `nn.Module`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lobs_paper.targets import import_target


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
    make = import_target("model._target_", target)
    arguments = {key: value for key, value in model.items() if key not in ("_target_", "weights")}
    try:
        network = make(**arguments)
    except TypeError as error:
        raise ValueError(f"model: {target} does not accept {arguments}: {error}") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"model._target_={target!r} builds a {type(network).__name__}, not a torch.nn.Module")
    return network
