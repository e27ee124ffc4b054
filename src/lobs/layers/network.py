"""Which layers a network has, and which of them share weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import cast

from torch import Tensor, nn

from lobs.base.arguments import check_module
from lobs.layers.matrix import find_view, groups_of, kinds, view_of
from lobs.layers.parts import parts_of
from lobs.layers.view import Prunable


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """`model.named_modules()`, every module followed by its parts (`lobs.layers.parts`).

    Yields:
        Name and module.

    Raises:
        TypeError: the model is no module.
    """
    check_module(model)
    for name, module in model.named_modules():
        yield name, module
        for part, layer in parts_of(module).items():
            yield f"{name}.{part}" if name else part, layer


# They run a network on several devices: by name, as to import them takes long.
SPREAD = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}


def prunable_layers(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, Prunable]:
    """The layers of a network that have a view as a matrix, by name, in the order of definition.

    Linear layers, convolutions and transposed ones, registered classes (`lobs.layers.register`), and the parts of
    attention and recurrent modules, which are no submodules.

    Of modules that share one weight (`tied_layers`) only the first counts.

    Args:
        model: any module.
        layers: names or shell patterns (``"features.*"``) that select some of them; None selects all.

    Returns:
        The chosen modules by name.

    Raises:
        TypeError: ``layers`` is a single string, or names a module that has no view.
        ValueError: a name or pattern fits no module, or the network has no such layer at all, is compiled or
            wrapped for several devices.
    """
    groups = tied_layers(model)
    found = {name: next(iter(members.values())) for name, members in groups.items()}
    if layers is None:
        if not found:
            raise ValueError(f"{type(model).__name__} has no layer to prune (of {kinds()})")
        return found
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of names, got the single string {layers!r}")
    modules = dict(named_modules(model))
    chosen: set[str] = set()
    for pattern in layers:
        # A name in full is no pattern: it may hold brackets.
        matches = {name for name, members in groups.items() if pattern in members} or {
            name for name, members in groups.items() if any(fnmatchcase(own, pattern) for own in members)
        }
        if not matches and any(own.startswith(f"{pattern}.") for members in groups.values() for own in members):
            kind = type(modules[pattern]).__name__ if pattern in modules else "module"
            raise TypeError(f"{pattern!r} is a {kind} of several layers: all of them are {pattern + '.*'!r}")
        if not matches and pattern in modules:
            raise TypeError(
                f"layer {pattern!r} is a {type(modules[pattern]).__name__}, which is not seen as a matrix: layers of "
                f"{kinds()} are, and what lobs.layers.register is told"
            )
        if not matches:
            raise ValueError(f"no layer fits {pattern!r}; the network has {', '.join(found) or 'none'}")
        chosen |= matches
    return {name: module for name, module in found.items() if name in chosen}


def tied_layers(model: nn.Module) -> dict[str, dict[str, Prunable]]:
    """The prunable modules of a network, those together that compute with one and the same weight.

    Args:
        model: any module that is not compiled.

    Returns:
        By the name of the first in the order of definition: all of them by name.

    Raises:
        ValueError: the network is compiled or wrapped for several devices, or a layer has no values yet.
    """
    groups: dict[str, dict[str, Prunable]] = {}
    owners: dict[tuple, str] = {}
    for name, module in named_modules(model):
        where = f"its module {name!r}" if name else "the network"
        if spread := SPREAD.intersection(kind.__name__ for kind in type(module).__mro__):
            raise ValueError(
                f"{where} is wrapped for several devices ({spread.pop()}): give the network as it was before (DDP "
                f"holds it as .module; FSDP has to come after pruning) and wrap what comes back"
            )
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            raise ValueError(
                f"{where} is compiled (torch.compile), which hides what its layers are given: give the network as it "
                f"was before (torch.compile's result holds it as _orig_mod) and compile what comes back"
            )
        if find_view(module) is not None:
            if not (hasattr(module, "weight") and hasattr(module, "bias")):
                raise ValueError(
                    f"layer {name!r}: {type(module).__name__} is registered as a layer and has no weight or no bias: "
                    f"a layer has both (its bias may be None)"
                )
            first, weight = name, module._parameters.get("weight")
            if weight is not None and (isinstance(weight, nn.parameter.UninitializedParameter) or weight.is_meta):
                raise ValueError(
                    f"layer {name!r} has no values yet (it is lazy or on the meta device): load or initialise the "
                    f"network first, and run it once"
                )
            # A weight that is computed anew is nobody else's.
            if weight is not None and weight.numel():
                view = view_of(module)  # the same weight seen otherwise is another layer: `check_owners` refuses both
                first = owners.setdefault((memory_place(weight), groups_of(module), id(view)), name)
            groups.setdefault(first, {})[name] = cast("Prunable", module)
    return groups


def memory_place(weight: Tensor) -> tuple:
    """Where a tensor lies in memory: the same for parameters that are tied, by object or by their data alone."""
    return weight.data_ptr(), tuple(weight.shape), weight.stride(), weight.dtype


def bias_columns(model: nn.Module) -> dict[str, bool]:
    """Whether each layer's bias belongs to its matrix: where it is one, and nobody else's.

    Modules that share a weight have to share the bias, too.

    Args:
        model: the network.

    Returns:
        By layer, as `tied_layers` names them.
    """
    columns = {}
    owners: dict[int, int] = {}
    for _, module in named_modules(model):
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for name, members in tied_layers(model).items():
        biases = {id(module.bias): module.bias for module in members.values()}
        bias = next(iter(biases.values()))
        columns[name] = len(biases) == 1 and bias is not None and owners.get(id(bias), 1) <= len(members)
    return columns
