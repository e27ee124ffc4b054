"""Linears and convolutions: what each unit reads, and which constants its bias can take over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.nn import functional

from lobs.compaction.channels import Axis, LinearOperation, constants, rows

if TYPE_CHECKING:
    from lobs.compaction.trace import Node, Walk


def product(walk: Walk, name: str, source: Axis | None, place: tuple[int, int], exact: bool) -> Axis:
    """Follow ``z = W y``.

    Args:
        walk: the pass.
        name: of the module.
        source: its input; None: nothing is known about it.
        place: the dimension that holds the channels, and the number of dimensions.
        exact: a constant other than zero can go into the bias.

    Returns:
        The units.
    """
    module: Any = walk.modules[name]
    groups = getattr(module, "groups", 1)
    weight = rows(module)
    inputs = _inputs(walk, name, source, place[0], weight.shape[1] * groups)
    foldable = inputs.known & (exact | inputs.value.eq(0))
    reads = (weight != 0).flatten(2).any(dim=2) if weight.dim() > 2 else weight != 0
    reads = reads.cpu().unflatten(0, (groups, -1))  # [groups, out / groups, in / groups]
    known = ~(reads & ~foldable.view(groups, 1, -1)).any(dim=2).flatten()
    value = constants(module, torch.where(foldable, inputs.value, 0.0))
    known &= value.isfinite()
    outputs = walk.channels.new(len(weight))
    if groups > 1:
        # A group leaves as a whole: its first input stands for all of its inputs and units.
        members = inputs.ids.view(groups, -1)
        for member in members.T[1:]:
            walk.channels.tie(member, members[:, 0])
        walk.channels.tie(outputs, members[:, 0].repeat_interleave(len(weight) // groups))
    found = LinearOperation(name, module, inputs, outputs, reads[0] if groups == 1 else None, foldable, known)
    walk.channels.products.append(found)
    return Axis(outputs, known, value).placed(*place)


def _inputs(walk: Walk, name: str, source: Axis | None, dim: int, width: int) -> Axis:
    line = None if source is None else source.line(dim, width)
    if line is None:
        walk.pin(source, f"is read by {name!r} along another dimension, too")
        ids = walk.channels.new(width)
        walk.channels.pin(ids, "is an input")
        line = Axis(ids, torch.zeros(width, dtype=torch.bool), torch.zeros(width, dtype=torch.float64))
    return line


def _linear(walk: Walk, node: Node, module: nn.Linear) -> Axis | None:
    rank = _rank(walk, node)
    return product(walk, node.target, walk.axis(node.args[0]), (rank - 1, rank), True) if rank > 1 else None


def _convolution(walk: Walk, node: Node, module: Any) -> Axis | None:
    if _rank(walk, node) != module.weight.dim():
        return None
    exact = module.padding_mode != "zeros" or not any(module._reversed_padding_repeated_twice)
    return product(walk, node.target, walk.axis(node.args[0]), (1, module.weight.dim()), exact)


def _transposed(walk: Walk, node: Node, module: Any) -> Axis | None:
    # How many values meet depends on the place: constants other than zero do not stay constant.
    if _rank(walk, node) != module.weight.dim() or module.groups != 1:
        return None
    return product(walk, node.target, walk.axis(node.args[0]), (1, module.weight.dim()), False)


def _rank(walk: Walk, node: Node) -> int:
    """Dimensions of the input of a call with one argument; 0 for any other call."""
    single = len(node.args) == 1 and not node.kwargs and isinstance(node.args[0], fx.Node)
    return len(walk.shapes.get(node.args[0], ())) if single else 0


def _functional(walk: Walk, node: Node) -> Axis | None:
    """A product written as a function of a module's own weight, as in subclasses of Conv2d."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    given: dict[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    source, weight, bias = given.get("input"), given.get("weight"), given.get("bias")
    if not isinstance(source, fx.Node) or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    owner, _, attribute = str(weight.target).rpartition(".")
    module: Any = walk.modules[owner]
    linear = node.target is functional.linear
    fits = isinstance(module, nn.Linear if linear else (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    whole = bias is None or (isinstance(bias, fx.Node) and bias.target == f"{owner}.bias".lstrip("."))
    if not fits or not whole or attribute != "weight" or not walk.plain(module):
        return None
    rank = len(walk.shapes[source])
    if rank != module.weight.dim() and not (linear and rank > 1):
        return None
    if given.get("groups", 1) != getattr(module, "groups", 1):
        return None
    padding = given.get("padding", 0)
    exact = padding == "valid" or not (any(padding) if isinstance(padding, (tuple, list)) else padding)
    # Without a bias in the call nobody knows whether one would be used.
    place = (rank - 1 if linear else 1, rank)
    return product(walk, owner, walk.axis(source), place, exact and bias is not None)


MODULES: dict[type, Callable[..., Axis | None]] = {
    nn.Linear: _linear,
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _transposed),
}
FUNCTIONS = dict.fromkeys(
    (
        functional.linear,
        torch.conv1d,
        torch.conv2d,
        torch.conv3d,
        functional.conv1d,
        functional.conv2d,
        functional.conv3d,
    ),
    _functional,
)
