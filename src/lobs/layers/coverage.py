"""Which weights of a network are out of pruning's reach, and why: the account that every result carries.

A *weight* is an entry of a parameter with two or more axes (matrices, kernels, embeddings); biases and the scales of
norms are none, as in every density here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lobs.base.fingerprint import network_digest
from lobs.base.network_inputs import Inputs, run
from lobs.layers.matrix import find_view
from lobs.layers.network import memory_place, named_modules, tied_layers
from lobs.layers.parts import Part, split_parameters

# Where a parameter lies in memory, from and to, and the layers that it belongs to.
Place: TypeAlias = tuple[int, int, set[str]]
# From this share of a network's weights on, what is out of reach is worth a warning.
WORTH_A_WARNING = 0.01
NOT_COVERED: dict[type[nn.Module], str] = {
    nn.Embedding: "its rows are looked up, not multiplied with",
    nn.EmbeddingBag: "its rows are looked up, not multiplied with",
    nn.MultiheadAttention: "its class has a forward of its own, or its weights are computed from others",
    nn.RNNCellBase: "a single cell, which is called step by step: LSTM, GRU and RNN are covered",
    nn.Bilinear: "a product of two inputs, not of one with a matrix",
    nn.RNNBase: "its class has a forward of its own, or its weights are computed from others",
}


@dataclass(frozen=True)
class Calls:
    """Which layers a network calls.

    Attributes:
        called: layers that were given at least one sample, in the order of their first call.
        functional: layers whose weight is used outside of their calls, with the operation (`functional_uses`).
        empty: layers that were called without a single sample.
        network: which one (`lobs.base.fingerprint.network_digest`); None: not known.
    """

    called: list[str] = field(default_factory=list)
    functional: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    network: str | None = None

    def of_another(self, model: nn.Module) -> bool:
        """Whether these are known to be another network's, or this one's before it changed."""
        return self.network not in (None, network_digest(model))

    def reason(self, name: str) -> str:
        """Why there are no statistics of a layer."""
        if name in self.functional:
            return f"used by a function ({self.functional[name]}), not called as a layer"
        if name in self.empty:
            return "given no samples by the calibration batches"
        return "no statistics of it" if name in self.called else "never called"


@dataclass(frozen=True)
class Unpruned:
    """Weights that pruning left alone.

    Attributes:
        name: of the module that holds them.
        kind: its class.
        weights: how many.
        reason: why, in a few words.
        by_choice: whether the caller left them out (``layers``, ``exclude``).
    """

    name: str
    kind: str
    weights: int
    reason: str
    by_choice: bool = False


def unpruned_weights(model: nn.Module, pruned: Iterable[str], excluded: Iterable[str], calls: Calls) -> list[Unpruned]:
    """All weights of a network that do not belong to its pruned layers.

    Args:
        model: the network.
        pruned: names of the layers that were pruned, as `prunable_layers` gives them.
        excluded: of those that the caller left out.
        calls: tell why a layer has no statistics.

    Returns:
        One entry per module, in the order of definition; a parameter that several modules share is counted once.
    """
    groups, excluded = tied_layers(model), set(excluded)
    # A part is another view of its owner's parameter in every module that shares it.
    counted = {_identity(module, module.weight) for name in pruned for module in groups[name].values()}
    first = {own: name for name, members in groups.items() for own in members}
    result = []
    for name, module in named_modules(model):
        split = split_parameters(module)
        own = {key: p for key, p in module._parameters.items() if p is not None and key not in split}
        parameters = [p for p in own.values() if p.dim() > 1 and _identity(module, p) not in counted]
        counted |= {_identity(module, parameter) for parameter in parameters}
        weights = sum(parameter.numel() for parameter in parameters)
        if weights:
            layer = first.get(name, name)
            if layer in excluded:
                reason = "left out by layers= or exclude="
            elif find_view(module) is not None and any(p is own.get("weight") for p in parameters):
                reason = calls.reason(layer)
            elif split:
                reason = "keys and values of its own are no matrix"
            else:
                reason = next(
                    (why for kind, why in NOT_COVERED.items() if isinstance(module, kind)), "class not covered"
                )
            result.append(Unpruned(name, type(module).__name__, weights, reason, layer in excluded))
    return result


def _identity(module: nn.Module, parameter: Tensor) -> object:
    return memory_place(parameter) if isinstance(module, Part) else id(parameter)


def weight_count(model: nn.Module) -> int:
    """All weights of a network, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)


def shown(unpruned: Iterable[Unpruned], most: int = 4) -> str:
    """The largest entries on one line, those of a kind and reason together."""
    grouped: dict[tuple[str, str], list[Unpruned]] = {}
    for entry in unpruned:
        grouped.setdefault((entry.kind, entry.reason), []).append(entry)
    largest = sorted(grouped.items(), key=lambda item: -sum(entry.weights for entry in item[1]))
    lines = []
    for (kind, reason), entries in largest[:most]:
        names = ", ".join(repr(entry.name) for entry in entries[:2]) + (" and others" if len(entries) > 2 else "")
        lines.append(f"{sum(entry.weights for entry in entries):,} in {kind} {names} ({reason})")
    return "; ".join(lines) + ("; and others" if len(largest) > most else "")


@torch.no_grad()
def functional_uses(model: nn.Module, inputs: Tensor | Inputs) -> dict[str, str]:
    """The layers whose weight or bias is computed with outside of the layer's own calls.

    Watched on torch's dispatcher: an operation that reads a parameter's memory while none of the layers that own it is
    being called (a decoder multiplies by an encoder's transposed weight).

    Args:
        model: in evaluation mode.
        inputs: of one pass.

    Returns:
        The name of the first such operation by layer.
    """
    groups = tied_layers(model)
    owners: dict[nn.Parameter, set[str]] = {}
    for name, members in groups.items():
        for parameter in (p for module in members.values() for p in module.parameters(recurse=False) if p.numel()):
            owners.setdefault(parameter, set()).add(name)
    places: dict[int, list[Place]] = {}  # a storage may hold several parameters
    for parameter, names in owners.items():
        start = parameter.data_ptr()
        place = start, start + parameter.numel() * parameter.element_size(), names
        places.setdefault(parameter.untyped_storage().data_ptr(), []).append(place)
    inside: list[str] = []
    found: dict[str, str] = {}
    handles: list[Any] = []
    for name, members in groups.items():
        for module in members.values():
            handles.append(module.register_forward_pre_hook(_entering(inside, name)))
            handles.append(module.register_forward_hook(_leaving(inside), always_call=True))
    try:
        with _Watch(places, inside, found):
            run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _entering(inside: list[str], name: str) -> Callable:
    return lambda *_: inside.append(name)


def _leaving(inside: list[str]) -> Callable:
    def leave(*_: object) -> None:
        inside.pop()

    return leave


class _Watch(TorchDispatchMode):
    """Notes operations that read a watched parameter from outside of its layers."""

    def __init__(self, places: Mapping[int, list[Place]], inside: list[str], found: dict[str, str]) -> None:
        super().__init__()
        self.places, self.inside, self.found = places, inside, found

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not func.is_view and not func.name().endswith(("_like", "detach")):
            for tensor in _real_tensors((args, kwargs)):
                for start, end, owners in self.places.get(tensor.untyped_storage().data_ptr(), ()):
                    if start <= tensor.data_ptr() < end and owners.isdisjoint(self.inside):
                        for name in owners:
                            self.found.setdefault(name, func.name().partition("::")[2].partition(".")[0])
        return func(*args, **(kwargs or {}))


def _real_tensors(values: object) -> Iterator[Tensor]:
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided and not leaf.is_meta:
            yield leaf
