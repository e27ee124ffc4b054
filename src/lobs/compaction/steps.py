"""Steps that work channel by channel: activations, norms, pools, sums, gates, concatenations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from lobs.compaction.channels import Axis, Follower

if TYPE_CHECKING:
    from lobs.compaction.trace import Node, Walk

_ARITHMETIC: dict[Any, Callable] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), operator.add),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), operator.mul),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), operator.sub),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), operator.truediv),
}


def _same(walk: Walk, node: Node, *given: Any) -> Axis:
    return given[-1]


def _pointwise_module(walk: Walk, node: Node, module: nn.Module, source: Axis) -> Axis:
    return source.mapped(deepcopy(module).cpu().double())


def _prelu(walk: Walk, node: Node, module: nn.PReLU, source: Axis) -> Axis | None:
    return _pointwise_module(walk, node, module, source) if module.num_parameters == 1 else None


def pointwise(walk: Walk, node: Node, source: Axis) -> Axis | None:
    """A function of each element; its other arguments are numbers."""
    args, kwargs = walk.known(node.args[1:]), walk.known(node.kwargs)
    if any(isinstance(entry, fx.Node) for entry in (*args, *kwargs.values())):
        return None
    target = node.target
    call = operator.methodcaller(target, *args, **kwargs) if isinstance(target, str) else None
    found = source.mapped(call or (lambda value: target(value, *args, **kwargs)))
    return found.where(False) if walk.varies((node.args[1:], node.kwargs)) else found


def _batch_norm(walk: Walk, node: Node, module: Any, source: Axis) -> Axis | None:
    line = source.line(1, module.num_features)
    if module.running_mean is None or line is None:
        return None
    scale = (module.running_var.cpu().double() + module.eps).rsqrt()
    shift = torch.zeros_like(scale)
    tensors = ["running_mean", "running_var"]
    if module.weight is not None:
        scale, shift = scale * module.weight.detach().cpu().double(), module.bias.detach().cpu().double()
        tensors += ["weight", "bias"]
    # A scale of zero makes any channel a constant.
    value = torch.where(scale == 0, shift, (line.value - module.running_mean.cpu().double()) * scale + shift)
    walk.channels.followers.append(Follower(module, line.ids, dict.fromkeys(tensors, 0), {"num_features": 1}))
    return Axis(line.ids, line.known | (scale == 0), value).placed(1, source.ids.dim())


def _group_norm(walk: Walk, node: Node, module: nn.GroupNorm, source: Axis) -> Axis | None:
    """Mean and variance are a group's own: a group leaves as a whole, and every other one stays as it is."""
    line = source.line(1, module.num_channels)
    if line is None:
        return None
    width = module.num_channels // module.num_groups
    members = line.ids.view(-1, width)
    for member in members.T[1:]:
        walk.channels.tie(member, members[:, 0])
    walk.channels.use(line.ids)
    scale, shift = torch.ones_like(line.value), torch.zeros_like(line.value)
    if module.affine:
        scale, shift = module.weight.detach().cpu().double(), module.bias.detach().cpu().double()
    groups = line.value.view(-1, width)
    spread = groups - groups.mean(dim=1, keepdim=True)
    value = (spread * (spread.square().mean(dim=1, keepdim=True) + module.eps).rsqrt()).flatten() * scale + shift
    known = line.known.view(-1, width).all(dim=1).repeat_interleave(width)
    tensors = {"weight": 0, "bias": 0} if module.affine else {}
    walk.channels.followers.append(Follower(module, line.ids, tensors, {"num_channels": 1, "num_groups": width}))
    value = torch.where(scale == 0, shift, value)
    return Axis(line.ids, known | (scale == 0), value).placed(1, source.ids.dim())


def _layer_norm_module(walk: Walk, node: Node, module: nn.LayerNorm, source: Axis) -> Axis | None:
    return _layer_norm(walk, repr(node.target), source, (module.normalized_shape, module.weight, module.bias))


def _layer_norm_function(walk: Walk, node: Node, source: Axis) -> Axis | None:
    names = ("input", "normalized_shape", "weight", "bias", "eps")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    tensors, owner = [], "layer_norm"
    for entry in (given.get("weight"), given.get("bias")):
        if isinstance(entry, fx.Node):
            if entry.op != "get_attr":
                return None
            owner = repr(str(entry.target).rpartition(".")[0])
        tensors.append(operator.attrgetter(str(entry.target))(walk.model) if isinstance(entry, fx.Node) else None)
    return _layer_norm(walk, owner, source, (given["normalized_shape"], *tensors))


def _layer_norm(walk: Walk, name: str, source: Axis, given: tuple[Any, Any, Any]) -> Axis | None:
    """Every channel, constant or not, counts in mean and variance: none can leave."""
    shape, weight, bias = given
    walk.pin(source, f"feeds LayerNorm {name}, in whose mean and variance it counts")
    rank = source.ids.dim()
    line = source.line(rank - 1, shape[0]) if len(shape) == 1 else None
    if line is None or weight is None:
        return None
    scale = weight.detach().cpu().double()
    shift = torch.zeros_like(scale) if bias is None else bias.detach().cpu().double()
    return Axis(line.ids, scale == 0, shift).placed(rank - 1, rank)


def pool(dims: int) -> Callable[..., Axis | None]:
    """Of a pool or a resize over the last dimensions, whose windows never look at padding: a constant stays one."""

    def handle(walk: Walk, node: Node, *given: Any) -> Axis | None:
        source = given[-1]
        # No shape: it gives indices, too.
        return source if node in walk.shapes and set(source.ids.shape[-dims:]) == {1} else None

    return handle


def _average_pool(walk: Walk, node: Node, module: Any, source: Axis) -> Axis | None:
    if set(source.ids.shape[2:]) != {1}:
        return None
    padding = module.padding if isinstance(module.padding, tuple) else (module.padding,)
    plain = not any(padding) and not module.ceil_mode and getattr(module, "divisor_override", None) is None
    return source.where(plain | source.value.eq(0))


def _zero_kept(walk: Walk, node: Node, *given: Any) -> Axis | None:
    source = given[-1]
    return source.where(source.value == 0) if set(source.ids.shape[2:]) == {1} else None


def _pad(walk: Walk, node: Node, source: Axis) -> Axis | None:
    names = ("input", "pad", "mode", "value")
    given: dict[str, Any] = {**dict(zip(names, walk.known(node.args), strict=False)), **walk.known(node.kwargs)}
    widths = given["pad"]
    numbers = isinstance(widths, (tuple, list)) and all(isinstance(entry, int) for entry in widths)
    if (
        not numbers
        or set(source.ids.shape[-(len(widths) // 2) :]) != {1}
        or given.get("mode", "constant") != "constant"
    ):
        return None
    border = {**dict(zip(names, node.args, strict=False)), **node.kwargs}.get("value")
    return source.where(source.value == 0 if not given.get("value") and not walk.varies(border) else False)


def _dropout(walk: Walk, node: Node, source: Axis) -> Axis | None:
    return None if node.kwargs.get("training", True) else source


def _stochastic_depth(walk: Walk, node: Node, source: Axis) -> Axis | None:
    training = node.args[3] if len(node.args) > 3 else node.kwargs.get("training", True)
    return None if training else source


def _mean(walk: Walk, node: Node, source: Axis) -> Axis | None:
    given = dict(zip(("dim", "keepdim"), walk.known(node.args[1:]), strict=False)) | walk.known(node.kwargs)
    dims, rank = given.get("dim"), source.ids.dim()
    dims = [dims] if isinstance(dims, int) else dims
    if not dims or any(source.ids.shape[dim] > 1 for dim in dims):
        return None
    if given.get("keepdim"):
        return source
    gone = {dim % rank for dim in dims}
    shape = [size for dim, size in enumerate(source.ids.shape) if dim not in gone]
    return source.each(lambda entry: entry.reshape(shape))


def arithmetic(walk: Walk, node: Node) -> Axis | None:
    """A sum, difference, product or quotient of two tensors, or of a tensor and a number or parameter."""
    change = _ARITHMETIC[node.target]
    if node.kwargs or len(node.args) != 2:
        return None
    one, other = walk.known(node.args)
    first, second = walk.axis(one), walk.axis(other)
    if first is not None and second is not None:
        return _both(walk, first, second, change)
    axis, rest, source = (first, other, one) if first is not None else (second, one, other)
    if axis is None:
        return None

    def ordered(value: Tensor, number: Any) -> Tensor:
        return change(value, number) if axis is first else change(number, value)

    if isinstance(rest, (int, float)):
        found = axis.mapped(lambda value: ordered(value, rest))
        # Whatever the number is for other inputs, zero times or over it is zero.
        kept = axis.value == 0 if change is operator.mul or (change is operator.truediv and axis is first) else False
        return found.where(kept) if walk.varies(node.args) else found
    if isinstance(rest, fx.Node) and rest.op == "get_attr":
        return _with_parameter(walk, axis, rest, (node, source, ordered))
    walk.pin(axis, f"meets a branch about which nothing is known, in a step {walk.label(node)}")
    return None


def _both(walk: Walk, first: Axis, second: Axis, change: Callable) -> Axis | None:
    rank = max(first.ids.dim(), second.ids.dim())
    first, second = (
        axis.each(lambda entry: entry.reshape((1,) * (rank - entry.dim()) + entry.shape)) for axis in (first, second)
    )
    value = change(first.value, second.value) if _fit(first, second) else None
    if value is None:
        return None
    known = first.known & second.known
    if change is operator.mul:
        known = known | (first.known & first.value.eq(0)) | (second.known & second.value.eq(0))
        value = torch.where(first.known & second.known, value, 0.0)
    if first.ids.shape == second.ids.shape:
        walk.channels.tie(first.ids, second.ids)
        walk.channels.use(second.ids)
        ids = first.ids
    else:
        single, ids = (first.ids, second.ids) if first.ids.numel() == 1 else (second.ids, first.ids)
        walk.channels.pin(single, "is spread over other channels")
    return Axis(ids, known & value.isfinite(), value)


def _fit(first: Axis, second: Axis) -> bool:
    return first.ids.shape == second.ids.shape or 1 in (first.ids.numel(), second.ids.numel())


def _with_parameter(walk: Walk, axis: Axis, entry: Node, step: tuple[Node, Node, Callable]) -> Axis | None:
    """A scale or shift per channel (LayerScale), a table of positions, or a single number."""
    node, source, change = step
    tensor = operator.attrgetter(entry.target)(walk.model)
    owner, _, attribute = str(entry.target).rpartition(".")
    rank, shape = axis.ids.dim(), axis.ids.shape
    if walk.shapes.get(node) != walk.shapes[source] or walk.uses[id(tensor)] != 1:
        return None
    sizes = (1,) * (rank - tensor.dim()) + tuple(tensor.shape)
    cut = [dim for dim in range(rank) if shape[dim] > 1 and sizes[dim] > 1]
    if len(cut) > 1 or attribute in walk.modules[owner]._non_persistent_buffers_set:
        return None  # what no file holds keeps its size
    if cut:
        line = axis.line(cut[0], shape[cut[0]])
        if line is None:
            return None
        place = cut[0] - (rank - tensor.dim())
        walk.channels.followers.append(Follower(walk.modules[owner], line.ids, {attribute: place}))
    number = tensor.detach().cpu().double().view(sizes)
    value = change(axis.value, number)
    if value.shape != shape:  # it differs from place to place
        return Axis(axis.ids, torch.zeros_like(axis.known), torch.zeros_like(axis.value))
    nothing = number.eq(0).expand(shape) if _ARITHMETIC[node.target] is operator.mul else torch.zeros_like(axis.known)
    value = torch.where(nothing, 0.0, value)
    return Axis(axis.ids, (axis.known | nothing) & value.isfinite(), value)


def _joined(walk: Walk, node: Node) -> Axis | None:
    """A concatenation along the channels, or along anything else, where the parts' channels leave together."""
    given = dict(zip(("tensors", "dim"), walk.known(node.args), strict=False)) | walk.known(node.kwargs)
    entries = given["tensors"]
    if not isinstance(entries, (tuple, list)) or node not in walk.shapes:
        return None
    rank = len(walk.shapes[node])
    dim = given.get("dim", 0) % rank
    axes = [walk.axis(entry) for entry in entries]
    found = [axis for axis in axes if axis is not None]
    if not found or any(len(walk.shapes[entry]) != rank for entry in entries):
        return None
    lines = [
        _unknown(walk, walk.shapes[entry][dim]) if axis is None else axis.line(dim, walk.shapes[entry][dim])
        for entry, axis in zip(entries, axes, strict=True)
    ]
    if all(line is not None for line in lines):
        whole = [torch.cat([getattr(line, name) for line in lines]) for name in ("ids", "known", "value")]
        return Axis(*whole).placed(dim, rank)
    first = found[0]
    if len(found) < len(axes) or any(axis.ids.shape != first.ids.shape or axis.ids.shape[dim] > 1 for axis in found):
        return None
    known = first.known.clone()
    for axis in found[1:]:
        walk.channels.tie(first.ids, axis.ids)
        walk.channels.use(axis.ids)
        known &= axis.known & (axis.value == first.value)
    return Axis(first.ids, known, first.value)


def _unknown(walk: Walk, width: int) -> Axis:
    ids = walk.channels.new(width)
    walk.channels.pin(ids, "is an input")
    return Axis(ids, torch.zeros(width, dtype=torch.bool), torch.zeros(width, dtype=torch.float64))


def of_other_packages(target: Any) -> Callable[..., Axis | None] | None:
    """What handles a function of a package that need not be installed."""
    known = getattr(target, "__module__", None) == "torchvision.ops.stochastic_depth"
    return _stochastic_depth if known and target.__name__ == "stochastic_depth" else None


POINTWISE_MODULES = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Tanhshrink, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softshrink),
)
POINTWISE = (
    *(torch.relu, torch.sigmoid, torch.tanh, torch.relu_, operator.neg),
    *(functional.relu, functional.relu6, functional.leaky_relu, functional.elu, functional.selu, functional.celu),
    *(functional.gelu, functional.silu, functional.mish, functional.softplus, functional.softsign, functional.hardtanh),
    *(functional.sigmoid, functional.tanh, functional.logsigmoid, functional.hardswish, functional.hardsigmoid),
    *("relu", "relu_", "sigmoid", "tanh", operator.pow, "pow", torch.clamp, "clamp", torch.exp, "exp"),
)
# By class: called with the pass, the step, the module and the axis of its only argument.
MODULES: dict[type, Callable] = {
    **dict.fromkeys(POINTWISE_MODULES, _pointwise_module),
    nn.PReLU: _prelu,
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout), _same),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    nn.GroupNorm: _group_norm,
    nn.LayerNorm: _layer_norm_module,
    **dict.fromkeys((nn.MaxPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), pool(1)),
    **dict.fromkeys((nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample), pool(2)),
    **dict.fromkeys((nn.MaxPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d), pool(3)),
    **dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _average_pool),
    nn.ZeroPad2d: _zero_kept,
}
# By function, or name of a method: called with the pass, the step and the axis of its first argument.
FUNCTIONS: dict[Any, Callable] = {
    **dict.fromkeys(POINTWISE, pointwise),
    **dict.fromkeys(("contiguous", "clone", "detach", "float", "double"), _same),
    **dict.fromkeys((functional.max_pool2d, torch.max_pool2d, functional.adaptive_avg_pool2d), pool(2)),
    **dict.fromkeys((functional.adaptive_max_pool2d, functional.interpolate), pool(2)),
    **dict.fromkeys((functional.avg_pool2d, torch._C._nn.avg_pool2d), _zero_kept),
    functional.layer_norm: _layer_norm_function,
    functional.pad: _pad,
    functional.dropout: _dropout,
    **dict.fromkeys((torch.mean, "mean"), _mean),
}
# Called with the pass and the step.
SEVERAL: dict[Any, Callable] = {
    **dict.fromkeys(_ARITHMETIC, arithmetic),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _joined),
}
