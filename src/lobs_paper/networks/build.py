"""A network from its configuration: `_target_` names a class of networks, or a function that gives one."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from torch import nn

from lobs.base.network_inputs import Output, selected
from lobs_paper.config.own_code import is_own
from lobs_paper.targets import import_target

# Keys of group `model` that are no arguments of the network.
SETTINGS = ("_target_", "weights", "output")
# Modules whose functions make networks, wherever they are installed.
_OURS = ("torchvision.models.", "lobs_paper.networks.")


def build(model: Mapping[str, object]) -> nn.Module:
    """Build a network from its configuration: `_target_` makes it, every key but `SETTINGS` is an argument.

    `_target_` is a class of networks, or a function of torchvision.models or of a module of one's own; modules in the
    working directory are found, too. Nothing else is ever called. With `output` the network answers with that
    part of its outputs, so that whatever runs it sees nothing else.

    Args:
        model: group `model` of the configuration.

    Returns:
        The network, freshly initialised.

    Raises:
        ValueError: the class cannot be imported, is no network's class or function, or refuses the arguments.
    """
    target = str(model["_target_"])
    make = _maker(target)
    arguments = {key: value for key, value in model.items() if key not in SETTINGS}
    try:
        network = make(**arguments)
    except Exception as error:  # whatever it makes of a size that cannot be; its own mistakes are shown, too
        cause = " ".join(f"{error}".split())[:200] or type(error).__name__
        raise ValueError(f"model: {target} does not accept {arguments}: {cause}") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"model._target_={target!r} builds a {type(network).__name__}, not a torch.nn.Module")
    output: Any = model.get("output")
    if isinstance(output, str) and "." in output:
        output = import_target("model.output", output)
    return network if output is None else _answering(network, output)


def _maker(target: str) -> Callable[..., Any]:
    """What makes the network, looked at before it is called: a mistyped name must not run anything else."""
    make = import_target("model._target_", target)
    if isinstance(make, type) and issubclass(make, nn.Module):
        return make
    if inspect.isfunction(make) and (make.__module__.startswith(_OURS) or _is_own(make.__module__)):
        return make
    what = f"a function of {make.__module__}" if inspect.isfunction(make) else f"a {type(make).__name__}"
    raise ValueError(
        f"model._target_={target!r} is {what}, not a torch.nn.Module's class: accepted are such a class, a function of "
        "torchvision.models, and a function of a module of your own, which may call anything"
    )


def _is_own(module: str) -> bool:
    """Whether a module is neither Python's own nor an installed package's."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and is_own(Path(file))


def _answering(network: nn.Module, output: Output) -> nn.Module:
    """The network, of a class whose forward gives a part of its outputs: names and weights stay as they are."""
    kind = type(network)

    @wraps(kind.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> object:
        return selected(kind.forward(self, *args, **kwargs), output)

    network.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return network
