"""A network from its configuration: `_target_` names any importable class or function that gives an `nn.Module`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import wraps
from typing import Any

from torch import nn

from lobs.base.network_inputs import Output, selected
from lobs_paper.targets import import_target

# Keys of group `model` that are no arguments of the network.
SETTINGS = ("_target_", "weights", "output")


def build(model: Mapping[str, object]) -> nn.Module:
    """Build a network from its configuration: `_target_` makes it, every key but `SETTINGS` is an argument.

    A class or function of a module in the working directory is found, too. With `output` the network answers with that
    part of its outputs, so that whatever runs it sees nothing else.

    Args:
        model: group `model` of the configuration.

    Returns:
        The network, freshly initialised.

    Raises:
        ValueError: the class cannot be imported, is no module, or refuses the arguments.
    """
    target = str(model["_target_"])
    make = import_target("model._target_", target)
    arguments = {key: value for key, value in model.items() if key not in SETTINGS}
    try:
        network = make(**arguments)
    except TypeError as error:
        raise ValueError(f"model: {target} does not accept {arguments}: {error}") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"model._target_={target!r} builds a {type(network).__name__}, not a torch.nn.Module")
    output: Any = model.get("output")
    if isinstance(output, str) and "." in output:
        output = import_target("model.output", output)
    return network if output is None else _answering(network, output)


def _answering(network: nn.Module, output: Output) -> nn.Module:
    """The network, of a class whose forward gives a part of its outputs: names and weights stay as they are."""
    kind = type(network)

    @wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> object:
        return selected(kind.forward(self, *args, **kwargs), output)

    network.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return network
