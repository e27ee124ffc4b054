"""Follows a network's channels from its inputs to its outputs, by torch.fx.

The network is traced and gone through once in the order of its calls. A step that is not listed here is taken to read
all channels of its inputs, and nothing is known about what it gives.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from lobs.compaction.channels import Axis, Channels, LinearOperation, constants
from lobs.layers.view import Prunable

# fx types a node's arguments as anything that a graph may hold; what is asked of them is checked where it is used.
Node: TypeAlias = Any

_POINTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softshrink),
)
_POINTWISE = {
    *(torch.relu, torch.sigmoid, torch.tanh, torch.relu_, operator.neg),
    *(functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.selu, functional.celu),
    *(functional.gelu, functional.silu, functional.mish, functional.softplus, functional.softsign, functional.hardtanh),
    *(functional.sigmoid, functional.tanh, functional.logsigmoid, functional.hardswish, functional.hardsigmoid),
    *("relu", "relu_", "sigmoid", "tanh"),
}
_IDENTITY = ("contiguous", "clone", "detach")
_IDENTITY_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
# Pools whose windows never look at padding: the mean and the maximum of a constant is the constant.
_POOL_MODULES = (nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POOLS = (functional.max_pool2d, torch.max_pool2d, functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d)
_ARITHMETIC: dict[Any, Callable] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), operator.add),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), operator.mul),
    **dict.fromkeys((operator.sub, torch.sub, "sub", "sub_"), operator.sub),
    **dict.fromkeys((operator.truediv, torch.div, "div", "div_"), operator.truediv),
}
# Functions that overwrite their first argument; methods that do so end with an underscore.
_IN_PLACE = (torch.relu_, operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow)


class _Shapes(fx.Interpreter):
    """Runs a traced network and notes the shape of every tensor."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
        return result


def follow(model: nn.Module, example: tuple[Tensor, ...]) -> Channels:
    """Follow a network's channels.

    Args:
        model: in evaluation mode.
        example: the arguments of one call.

    Returns:
        The channels.

    Raises:
        ValueError: torch.fx cannot trace the network, or the network does not accept the example.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # whatever a network's own code raises when it meets a proxy
        raise ValueError(
            f"{type(model).__name__} cannot be compacted: torch.fx cannot trace it ({type(error).__name__}: {error})"
        ) from error
    run = _Shapes(fx.GraphModule(model, graph))
    try:
        with torch.no_grad():
            run.run(*example)
    except Exception as error:
        shapes = ", ".join(str(tuple(entry.shape)) for entry in example)
        raise ValueError(
            f"{type(model).__name__} does not accept the example input of shape {shapes}: {error}"
        ) from error
    return _Walk(model, graph, run.shapes).channels


class _Walk:
    """One pass over the graph, front to back."""

    def __init__(self, model: nn.Module, graph: fx.Graph, shapes: dict[Node, torch.Size]) -> None:
        self.channels = Channels()
        self.modules = dict(model.named_modules())
        self.shapes = shapes
        self.uses = self._count_uses(model, graph)
        self.axes: dict[Node, Axis | None] = {}
        for node in graph.nodes:
            self.axes[node] = self._visit(node)

    def _count_uses(self, model: nn.Module, graph: fx.Graph) -> Counter[int]:
        """How often each parameter and buffer is used."""
        uses: Counter[int] = Counter()
        for node in graph.nodes:
            if node.op == "call_module":
                module = self.modules[node.target]
                uses.update(id(tensor) for tensor in (*module.parameters(), *module.buffers()))
            elif node.op == "get_attr":
                uses[id(operator.attrgetter(node.target)(model))] += len(node.users)
        return uses

    def _visit(self, node: Node) -> Axis | None:
        if node.op == "get_attr" or self._reads_batch_size_only(node):
            return None
        axis = None
        if node.op.startswith("call") and not self._overwrites(node):
            axis = self._module(node) if node.op == "call_module" else self._function(node)
        if axis is not None:
            return axis
        for source in node.all_input_nodes:
            known = self.axes[source]
            if known is not None:
                self.channels.pin(known.ids)
        return self._opaque(node)

    def _opaque(self, node: Node) -> Axis | None:
        """Channels nothing is known about, which stay."""
        shape: tuple[int, ...] = self.shapes.get(node, ())
        if len(shape) not in (2, 4):
            return None
        ids = self.channels.new(shape[1])
        self.channels.pin(ids)
        return _varying(ids)

    def _reads_batch_size_only(self, node: Node) -> bool:
        if node.target == "size" and node.args[1:] == (0,):
            return True
        if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
            return node.args[1] == 0 and self._is_shape(node.args[0])
        return self._is_shape(node) and all(
            user.target is operator.getitem and user.args[1] == 0 for user in node.users
        )

    def _is_shape(self, node: Node) -> bool:
        if node.op == "call_method":
            return node.target == "size" and len(node.args) == 1
        return node.target is getattr and node.args[1:] == ("shape",)

    def _overwrites(self, node: Node) -> bool:
        """Whether a step changes a tensor in place that is read elsewhere too: then nothing is known about either."""
        in_place = node.kwargs.get("inplace") or node.target in _IN_PLACE
        if node.op == "call_module":
            in_place = getattr(self.modules[node.target], "inplace", False)
        elif isinstance(node.target, str):
            in_place = node.target.endswith("_")
        source = node.args[0] if node.args else None
        if not in_place or not isinstance(source, fx.Node) or len(source.users) < 2:
            return False
        axis = self.axes[source]
        if axis is not None:
            axis.known[:] = False
        return True

    def _module(self, node: Node) -> Axis | None:
        module = self.modules[node.target]
        source = self._source(node)
        if source is None or node.kwargs or len(node.args) != 1 or not self._plain(module):
            return None
        kind, dims = type(module), len(self.shapes[node.args[0]])
        if kind is nn.Linear and dims == 2:
            return self._product(node.target, module, source, True)
        if kind is nn.Conv2d and dims == 4:
            exact = module.padding_mode != "zeros" or not any(module._reversed_padding_repeated_twice)
            return self._product(node.target, module, source, exact)
        if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
            return self._norm(node.target, module, source)
        if kind in _IDENTITY_MODULES:
            return source
        if kind in _POINTWISE_MODULES or (kind is nn.PReLU and module.num_parameters == 1):
            return source.mapped(deepcopy(module).cpu().double())
        if kind in _POOL_MODULES:
            return source if node in self.shapes else None  # none: it gives indices, too
        if kind is nn.AvgPool2d:
            padding = module.padding if isinstance(module.padding, tuple) else (module.padding,)
            plain = not any(padding) and not module.ceil_mode and module.divisor_override is None
            return source.where(plain | source.value.eq(0))
        if kind is nn.ZeroPad2d:
            return source.where(source.value == 0)
        if kind is nn.Flatten and module.start_dim == 1:
            return self._flat(node, source)
        return None

    def _function(self, node: Node) -> Axis | None:
        target = node.target
        if target in (torch.conv2d, functional.conv2d, functional.linear):
            return self._functional_product(node)
        if target is torch.cat:
            return self._joined(node)
        if target in _ARITHMETIC:
            return self._arithmetic(node)
        source = self._source(node)
        if source is None or any(isinstance(entry, fx.Node) for entry in node.kwargs.values()):
            return None
        if target in ("view", "reshape"):
            # Only what leaves the number of columns open can follow when channels leave.
            sizes = node.args[1] if len(node.args) == 2 else node.args[1:]
            open_ended = isinstance(sizes, (tuple, list)) and len(sizes) == 2 and sizes[1] == -1
            return self._flat(node, source) if open_ended else None
        if any(isinstance(entry, fx.Node) for entry in node.args[1:]):
            return None
        if target in (torch.flatten, "flatten"):
            start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
            return self._flat(node, source) if start == 1 else None
        if target in _IDENTITY:
            return source
        if target in _POINTWISE:
            call = operator.methodcaller(target, *node.args[1:], **node.kwargs) if isinstance(target, str) else None
            return source.mapped(call or (lambda value: target(value, *node.args[1:], **node.kwargs)))
        if target in _POOLS:
            return source if node in self.shapes else None
        if target in (functional.avg_pool2d, torch._C._nn.avg_pool2d):
            return source.where(source.value == 0)
        if target is functional.dropout:
            return None if node.kwargs.get("training", True) else source
        if target in (torch.mean, "mean"):
            dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            dims = [dims] if isinstance(dims, int) else dims
            size = len(self.shapes[node.args[0]])
            return source if dims and all(dim % size > 1 for dim in dims) and self._two_or_four(node) else None
        return None

    def _two_or_four(self, node: Node) -> bool:
        return len(self.shapes.get(node, ())) in (2, 4)

    def _source(self, node: Node) -> Axis | None:
        first = node.args[0] if node.args else None
        return self.axes[first] if isinstance(first, fx.Node) else None

    def _plain(self, module: nn.Module) -> bool:
        """Whether a module does just what its class does, on tensors of its own."""
        hooks = (module._forward_hooks, module._forward_pre_hooks)
        tensors = (*module.parameters(), *module.buffers())
        return (
            not any(hooks) and not parametrize.is_parametrized(module) and all(self.uses[id(t)] == 1 for t in tensors)
        )

    def _flat(self, node: Node, source: Axis) -> Axis | None:
        before, after = self.shapes[node.args[0]], self.shapes[node]
        if len(after) != 2 or after[0] != before[0]:
            return None
        width = after[1] // before[1]
        return Axis(*(entry.repeat_interleave(width) for entry in (source.ids, source.known, source.value)))

    def _functional_product(self, node: Node) -> Axis | None:
        """A product written as a function of a module's own weight, as in subclasses of Conv2d."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        given: dict[str, Node] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        source, weight, bias = given.get("input"), given.get("weight"), given.get("bias")
        if not isinstance(source, fx.Node) or not isinstance(weight, fx.Node) or weight.op != "get_attr":
            return None
        owner, _, attribute = str(weight.target).rpartition(".")
        module, axis = self.modules[owner], self.axes[source]
        fits = isinstance(module, nn.Linear if node.target is functional.linear else nn.Conv2d)
        whole = bias is None or (isinstance(bias, fx.Node) and bias.target == f"{owner}.bias".lstrip("."))
        dims = 2 if node.target is functional.linear else 4
        if axis is None or not fits or not whole or attribute != "weight" or not self._plain(module):
            return None
        if len(self.shapes[source]) != dims or given.get("groups", 1) != getattr(module, "groups", 1):
            return None
        padding = given.get("padding", 0)
        exact = padding == "valid" or not (any(padding) if isinstance(padding, (tuple, list)) else padding)
        # Without a bias in the call nobody knows whether one would be used.
        return self._product(owner, module, axis, exact and bias is not None)

    def _product(self, name: str, module: Prunable, source: Axis, exact: bool) -> Axis:
        """Follow ``z = W y``; ``exact``: a constant other than zero can go into the bias."""
        foldable = source.known & (exact | source.value.eq(0))
        groups = getattr(module, "groups", 1)
        weight = module.weight.detach()
        reads = (weight != 0).flatten(2).any(dim=2) if weight.dim() > 2 else weight != 0
        reads = reads.cpu().unflatten(0, (groups, -1))  # [groups, out / groups, in / groups]
        known = ~(reads & ~foldable.view(groups, 1, -1)).any(dim=2).flatten()
        value = constants(module, torch.where(foldable, source.value, 0.0))
        if groups == 1:
            outputs = self.channels.new(len(weight))
            reads_all = reads[0]
        else:
            # A group leaves as a whole: its first input stands for all of its inputs and units.
            members = source.ids.view(groups, -1)
            for member in members.T[1:]:
                self.channels.tie(member, members[:, 0])
            outputs = self.channels.new(len(weight))
            self.channels.tie(outputs, members[:, 0].repeat_interleave(len(weight) // groups))
            reads_all = None
        self.channels.products.append(LinearOperation(name, module, source, outputs, reads_all, foldable))
        return Axis(outputs, known & value.isfinite(), value)

    def _norm(self, name: str, module: Any, source: Axis) -> Axis | None:
        if module.running_mean is None or len(source.ids) != module.num_features:
            return None
        scale = (module.running_var.cpu().double() + module.eps).rsqrt()
        shift = torch.zeros_like(scale)
        if module.weight is not None:
            scale, shift = scale * module.weight.detach().cpu().double(), module.bias.detach().cpu().double()
        mean = module.running_mean.cpu().double()
        # A scale of zero makes any channel a constant.
        value = torch.where(scale == 0, shift, (source.value - mean) * scale + shift)
        self.channels.norms.append((name, module, source.ids))
        return Axis(source.ids, source.known | (scale == 0), value)

    def _joined(self, node: Node) -> Axis | None:
        tensors = node.args[0]
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        axes = [self.axes[entry] for entry in tensors]
        if dim not in (1, 1 - len(self.shapes[node])) or any(axis is None for axis in axes):
            return None
        parts = [axis for axis in axes if axis is not None]
        return Axis(*(torch.cat([getattr(axis, name) for axis in parts]) for name in ("ids", "known", "value")))

    def _arithmetic(self, node: Node) -> Axis | None:
        change = _ARITHMETIC[node.target]
        if node.kwargs or len(node.args) != 2:
            return None
        one, other = node.args
        axes = [self.axes[entry] if isinstance(entry, fx.Node) else None for entry in node.args]
        if isinstance(one, fx.Node) and isinstance(other, fx.Node):
            first, second = axes
            if first is None or second is None or len(self.shapes[one]) != len(self.shapes[other]):
                return None
            if len(first.ids) != len(second.ids):
                return None
            self.channels.tie(first.ids, second.ids)
            value = change(first.value, second.value)
            return Axis(first.ids, first.known & second.known & value.isfinite(), value)
        axis, number = (axes[0], other) if axes[0] is not None else (axes[1], one)
        if axis is None or not isinstance(number, (int, float)):
            return None
        return axis.mapped(lambda value: change(*(number if entry is number else value for entry in node.args)))


def _varying(ids: Tensor) -> Axis:
    return Axis(ids, torch.zeros(len(ids), dtype=torch.bool), torch.zeros(len(ids), dtype=torch.float64))
