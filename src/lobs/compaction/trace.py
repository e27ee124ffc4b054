"""Follows a network's channels from its inputs to its outputs, by torch.fx.

The network is traced and gone through once in the order of its calls. What a step does to channels stands in the tables
of `products`, `steps`, `moves` and `attention`; one that is listed nowhere is taken to read all channels of its inputs,
which stay then, and nothing is known about what it gives.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from lobs.base.network_inputs import forward_signature
from lobs.compaction import attention, moves, products, steps
from lobs.compaction.channels import Axis, Channels

# fx types a node's arguments as anything that a graph may hold; what is asked of them is checked where it is used.
Node: TypeAlias = Any
Axes: TypeAlias = Axis | tuple[Axis, ...] | None

# What handles a call: of a module with one argument, of any other module, of a function or method whose first argument
# is followed, of any other function.
_MODULES: dict[Any, Callable[..., Axes]] = {**steps.MODULES, **moves.MODULES}
_OTHER_MODULES: dict[Any, Callable[..., Axes]] = {**products.MODULES, **attention.MODULES}
_FUNCTIONS: dict[Any, Callable[..., Axes]] = {**steps.FUNCTIONS, **moves.FUNCTIONS}
_OTHER_FUNCTIONS: dict[Any, Callable[..., Axes]] = {**products.FUNCTIONS, **steps.SEVERAL}
# Arguments that are taken to be the same in every call.
_FIXED = (type(None), bool, int, float, str)
# Functions that overwrite their first argument; methods that do so end with an underscore.
_IN_PLACE = (torch.relu_, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow)


@dataclass
class Traced:
    """A network as `follow` has found it.

    Attributes:
        channels: its channels.
        skipped: why a module's call was not followed, by the module's name.
        originals: attention modules in whose place their parts stand, by name.
    """

    channels: Channels
    skipped: dict[str, str]
    originals: dict[str, nn.Module]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, attention.CompactAttention) or super().is_leaf_module(m, module_qualified_name)


class _Run(fx.Interpreter):
    """Runs a traced network; notes tensors' shapes and what they are views of, and what numbers steps give."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)  # a GraphModule has names of its own, "meta" or "code", as networks do
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.values: dict[fx.Node, Any] = {}
        self.owners: dict[fx.Node, fx.Node] = {}

    def run_node(self, n: fx.Node) -> Any:
        given = {node: self.env[node] for node in n.all_input_nodes}  # which the run forgets after their last use
        result = super().run_node(n)
        for node, value in given.items():
            if n not in self.owners and _shares(value, result):
                self.owners[n] = self.owners.get(node, node)
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
        elif isinstance(result, (bool, int, float, torch.Size)):
            self.values[n] = result
        return result


def _shares(value: Any, result: Any) -> bool:
    """Whether what a step gives lies, in part, where its input lies."""
    places = {id(_base(entry)) for entry in tree_leaves(value) if isinstance(entry, Tensor)}
    return any(id(_base(entry)) in places for entry in tree_leaves(result) if isinstance(entry, Tensor))


def _base(tensor: Tensor) -> Tensor:
    return tensor if tensor._base is None else tensor._base


def follow(model: nn.Module, example: Mapping[str, Any]) -> Traced:
    """Follow a network's channels.

    Args:
        model: in evaluation mode; attention modules whose heads can leave are replaced by `attention.CompactAttention`.
        example: the arguments of one call by name; None, flags and numbers, also in tuples and the like, are taken
            to be the same in every call, as are defaults.

    Returns:
        The channels and what belongs to them.

    Raises:
        ValueError: torch.fx cannot trace the network, or the network does not accept the example.
    """
    signature = forward_signature(model)
    left = {} if signature is None else {name: each.default for name, each in signature.parameters.items()}
    values = {**left, **example}
    fixed = {name: value for name, value in values.items() if all(isinstance(x, _FIXED) for x in tree_leaves(value))}
    try:
        graph = _Tracer().trace(model, fixed)
    except Exception as error:  # whatever a network's own code raises when it meets a proxy
        first = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{type(model).__name__} cannot be compacted: torch.fx cannot trace it ({type(error).__name__}: {first})"
        ) from error
    uses = _count_uses(model, graph)
    called = [node.target for node in graph.nodes if node.op == "call_module"]
    originals, skipped = attention.split(model, called, lambda module: _plain(module, uses))
    run = _Run(model, graph)
    arguments: list[Any] = []
    for name, value in values.items():
        if name in fixed and not isinstance(value, _FIXED):  # torch.fx takes what a container holds one by one
            arguments += tree_leaves(value)
        elif name in example:
            arguments.append(value)
    try:
        with torch.no_grad():
            run.run(*arguments)
    except Exception as error:
        shapes = ", ".join(str(tuple(getattr(entry, "shape", [type(entry).__name__]))) for entry in example.values())
        raise ValueError(
            f"{type(model).__name__} does not accept the example input of shape {shapes}: {error}"
        ) from error
    walk = Walk(model, graph, run.shapes, run.values, run.owners)
    unused = [name for name, module in walk.modules.items() if not any(walk.uses[id(t)] for t in module.parameters())]
    walk.skipped |= skipped | dict.fromkeys(unused, "is not used in evaluation mode")
    return Traced(walk.channels, walk.skipped, originals)


def _count_uses(model: nn.Module, graph: fx.Graph) -> Counter[int]:
    """How often each parameter and buffer is used."""
    uses: Counter[int] = Counter()
    for node in graph.nodes:
        if node.op == "call_module":
            module = model.get_submodule(node.target)
            uses.update(id(tensor) for tensor in (*module.parameters(), *module.buffers()))
        elif node.op == "get_attr":
            uses[id(operator.attrgetter(node.target)(model))] += len(node.users)
    return uses


def _plain(module: nn.Module, uses: Counter[int]) -> bool:
    """Whether a module does just what its class does, on tensors of its own."""
    inside = list(module.modules())
    hooks = any(part._forward_hooks or part._forward_pre_hooks or parametrize.is_parametrized(part) for part in inside)
    return not hooks and all(uses[id(tensor)] == 1 for tensor in (*module.parameters(), *module.buffers()))


@dataclass
class Walk:
    """One pass over the graph, front to back.

    Attributes:
        model: the network.
        graph: its steps.
        shapes: of every step's tensor.
        values: numbers and shapes that steps gave.
        owners: whose memory a step's tensor lies in, where that is another step's.
        channels: what has been found.
        skipped: why a module's call was not followed, by the module's name.
        axes: of every step's tensor, or tensors; None where nothing is known.
        sizes: of numbers that change when channels leave: the ids that they count.
    """

    model: nn.Module
    graph: fx.Graph
    shapes: dict[Node, torch.Size]
    values: dict[Node, Any]
    owners: dict[Node, Node]
    channels: Channels = field(default_factory=Channels)
    skipped: dict[str, str] = field(default_factory=dict)
    axes: dict[Node, Axes] = field(default_factory=dict)
    sizes: dict[Node, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules())
        self.uses = _count_uses(self.model, self.graph)
        for node in self.graph.nodes:
            self.axes[node] = self._visit(node)

    def plain(self, module: nn.Module) -> bool:
        """Whether a module does just what its class does, on tensors of its own."""
        return _plain(module, self.uses)

    def pin(self, axes: Axes, reason: str) -> None:
        """Let all channels of a tensor, or of several, stay."""
        for axis in axes if isinstance(axes, tuple) else (axes,):
            if axis is not None:
                self.channels.pin(axis.ids, reason)

    def known(self, arguments: Any) -> Any:
        """A call's arguments, with the values of what is no tensor."""
        return fx.node.map_arg(arguments, lambda node: self.values.get(node, node))

    def varies(self, arguments: Any) -> bool:
        """Whether a number among a call's arguments was computed, from sizes or values: other inputs give another."""
        nodes: list[Node] = []
        fx.node.map_arg(arguments, nodes.append)
        return any(node.op != "placeholder" and isinstance(self.values.get(node), (bool, int, float)) for node in nodes)

    def axis(self, entry: Any) -> Axis | None:
        """Of one tensor among a call's arguments."""
        axes = self.axes.get(entry) if isinstance(entry, fx.Node) else None
        return axes if isinstance(axes, Axis) else None

    def _visit(self, node: Node) -> Axes:
        unread = node.target is operator.getitem and not node.users  # what an assignment to several names leaves
        if node.op in ("placeholder", "get_attr") or unread or self._reads_size(node):
            return None
        axes = self._call(node) if node.op.startswith("call") and not self._overwrites(node) else None
        if axes is None:
            reason = "is an output of the network" if node.op == "output" else f"is read by {self.label(node)}"
            for source in node.all_input_nodes:
                self.pin(self.axes[source], reason)
                if source in self.sizes:
                    self.channels.pin(self.sizes[source], f"{reason}, by the number of channels")
        return axes

    def label(self, node: Node) -> str:
        """A step's name in a reason."""
        if node.op == "call_module":
            return f"{node.target!r} ({type(self.modules[node.target]).__name__})"
        return str(getattr(node.target, "__name__", node.target))

    def _call(self, node: Node) -> Axes:
        first = node.args[0] if node.args else None
        source = self.axes[first] if isinstance(first, fx.Node) else None
        if node.op == "call_module":
            module = self.modules[node.target]
            if not self.plain(module):
                self.skipped[node.target] = "is called more than once, has hooks or shares its weights"
                return None
            if type(module) in _OTHER_MODULES:
                return _OTHER_MODULES[type(module)](self, node, module)
            handle = _MODULES.get(type(module))
            single = len(node.args) == 1 and not node.kwargs and isinstance(source, Axis)
            return handle(self, node, module, source) if handle and single else None
        counted = any(entry in self.sizes for entry in node.all_input_nodes)
        if node.target in _OTHER_FUNCTIONS:
            return None if counted else _OTHER_FUNCTIONS[node.target](self, node)
        handle = _FUNCTIONS.get(node.target) or steps.of_other_packages(node.target)
        if handle is None or source is None or (isinstance(source, tuple) and handle is not moves.item):
            return None
        others = [entry for entry in node.all_input_nodes if entry is not first and self.axes[entry] is not None]
        if (counted and handle is not moves.reshaped) or (others and handle is not moves.expanded_as):
            return None
        return handle(self, node, source)

    def _reads_size(self, node: Node) -> bool:
        """Whether a step is about sizes alone; where these will change, `sizes` says so."""
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if source is None or node.op == "call_module":
            return False
        attribute = node.args[1] if node.target is getattr else None
        if node.target in ("dim", "ndimension") or attribute in ("ndim", "dtype", "device"):
            return True
        given = (*node.args[1:], *node.kwargs.values())
        if (node.target == "size" and not given) or attribute == "shape":
            axis = self.axis(source)
            if axis is not None:
                self.sizes[node] = axis.ids
            return True
        if node.target is operator.getitem and isinstance(self.values.get(source), torch.Size):
            return self._counts(node, self.sizes.get(source), node.args[1])
        if node.target == "size":
            axis = self.axis(source)
            return self._counts(node, None if axis is None else axis.ids, given[0])
        if node.target in (operator.floordiv, operator.mul) and source in self.sizes and self.values.get(source):
            others = [entry for entry in node.all_input_nodes if entry in self.sizes]
            if others == [source] and isinstance(self.values[source], int):
                self.sizes[node] = self.sizes[source]
                return True
        return False

    def _counts(self, node: Node, ids: Tensor | None, index: Any) -> bool:
        if ids is None or not isinstance(index, (int, slice)):
            return ids is None
        shape = ids.shape[index]
        if shape == 1 or (isinstance(shape, torch.Size) and shape.numel() == 1):
            return True
        if isinstance(index, int):
            self.sizes[node] = ids
        return isinstance(index, int)

    def _overwrites(self, node: Node) -> bool:
        """Whether a step changes a tensor in place that is read later, as it is or by a view: nothing is known then."""
        in_place = node.kwargs.get("inplace") or node.target in _IN_PLACE
        if node.op == "call_module":
            in_place = getattr(self.modules[node.target], "inplace", False)
        elif isinstance(node.target, str):
            in_place = node.target.endswith("_")
        source = node.args[0] if node.args else None
        if not in_place or not isinstance(source, fx.Node):
            return False
        owner, order = self.owners.get(source, source), {each: place for place, each in enumerate(self.graph.nodes)}
        before = [each for each in self.axes if owner in (each, self.owners.get(each))]
        if not any(order[user] > order[node] for each in before for user in each.users):
            return False
        for axis in map(self.axis, before):
            if axis is not None:
                axis.known = torch.zeros_like(axis.known)
        return True
