"""Steps that move values about: the same step, done on the places of a tensor's ids, says where they go.

A step may follow only if it does the same when channels have left: a size that is written into the network as a number
may not count channels, and where a step cuts channels into equal parts, as many have to leave each of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from lobs.compaction.channels import Axis

if TYPE_CHECKING:
    from lobs.compaction.trace import Axes, Node, Walk


def moved(axis: Axis, shape: torch.Size, call: Callable[[Tensor], Tensor]) -> Axis:
    """The axis of a tensor after a step.

    Args:
        axis: before it.
        shape: of the whole tensor before it.
        call: the step.

    Returns:
        The axis after it, with size 1 wherever ids are the same.
    """
    places = call(torch.arange(axis.ids.numel()).view(axis.ids.shape).expand(shape))
    for dim in range(places.dim()):
        first = places.narrow(dim, 0, 1)
        if places.stride(dim) == 0 or bool((places == first).all()):
            places = first
    return axis.each(lambda entry: entry.flatten()[places])


def _call(walk: Walk, node: Node) -> Callable[[Tensor], Any]:
    args, kwargs = walk.known(node.args[1:]), walk.known(node.kwargs)
    if isinstance(node.target, str):
        return lambda places: getattr(places, node.target)(*args, **kwargs)
    return lambda places: node.target(places, *args, **kwargs)


def _whole(walk: Walk, node: Node, source: Axis) -> Axis | None:
    """Any step that works on any number of channels: permutations, flattening, one more dimension."""
    before, after = walk.shapes[node.args[0]], walk.shapes.get(node)
    return moved(source, before, _call(walk, node)) if after is not None and after.numel() else None


def _attribute(walk: Walk, node: Node, source: Axis) -> Axis | None:
    return _whole(walk, node, source) if node.args[1] in ("mT", "T", "mH") else None


def _squeezed(walk: Walk, node: Node, source: Axis) -> Axis | None:
    given = dict(zip(("dim",), walk.known(node.args[1:]), strict=False)) | walk.known(node.kwargs)
    dim = given.get("dim")
    # Any other dimension could be that of the only channel that is left.
    return _whole(walk, node, source) if isinstance(dim, int) and source.ids.shape[dim] == 1 else None


def _rolled(walk: Walk, node: Node, source: Axis) -> Axis | None:
    given = dict(zip(("shifts", "dims"), walk.known(node.args[1:]), strict=False)) | walk.known(node.kwargs)
    dims = given.get("dims")
    dims = [dims] if isinstance(dims, int) else dims
    return source if dims and all(source.ids.shape[dim] == 1 for dim in dims) else None


def _flattened(walk: Walk, node: Node, module: nn.Flatten, source: Axis) -> Axis | None:
    shape = walk.shapes[node.args[0]]
    return moved(source, shape, module.forward) if shape.numel() else None


def reshaped(walk: Walk, node: Node, source: Axis) -> Axis | None:
    """A view or reshape; sizes along channels have to be open (-1) or counted from a tensor with the same channels."""
    before, after = walk.shapes[node.args[0]], walk.shapes.get(node)
    entries = node.args[1:] or tuple(node.kwargs.values())
    if len(entries) == 1 and isinstance(entries[0], (tuple, list)):
        entries = tuple(entries[0])
    if after is None or not after.numel() or len(entries) != len(after):
        return None
    counted = [walk.sizes.get(entry) if isinstance(entry, fx.Node) else None for entry in entries]
    result = moved(source, before, lambda places: places.reshape(after))
    for dims, parts in blocks(before, after):
        varying = [dim for dim in dims if source.ids.shape[dim] > 1]
        free = [part for part in parts if entries[part] == -1 or counted[part] is not None]
        if not varying:
            continue
        if len(free) != 1 or (len(parts) > 1 and len(dims) > 1) or not _counts(walk, counted[free[0]], source.ids):
            return None
        if len(parts) > 1:
            # Of every part as many leave.
            members = result.ids.movedim(free[0], 0).flatten(1)
            for member in members.T[1:]:
                walk.channels.tie(member, members[:, 0])
    return result


def _counts(walk: Walk, counted: Tensor | None, ids: Tensor) -> bool:
    """Whether a size changes as the number of some ids does, or can be made to: counted ids leave with these."""
    if counted is None or set(counted.flatten().tolist()) == set(ids.flatten().tolist()):
        return True
    if counted.numel() == ids.numel():
        walk.channels.tie(counted, ids)
    return counted.numel() == ids.numel()


def blocks(before: torch.Size, after: torch.Size) -> Iterator[tuple[list[int], list[int]]]:
    """The smallest runs of dimensions that a reshape turns into each other.

    Args:
        before: sizes, none of them zero.
        after: as many values.

    Yields:
        Dimensions before and after, run by run; what is left over at the end has size 1.
    """
    one, other = 0, 0
    while one < len(before) and other < len(after):
        ends, sizes = [one + 1, other + 1], [before[one], after[other]]
        while sizes[0] != sizes[1]:
            side = 0 if sizes[0] < sizes[1] else 1
            sizes[side] *= (before, after)[side][ends[side]]
            ends[side] += 1
        yield list(range(one, ends[0])), list(range(other, ends[1]))
        one, other = ends


def _chunked(walk: Walk, node: Node, source: Axis) -> Axes:
    given = dict(zip(("chunks", "dim"), walk.known(node.args[1:]), strict=False)) | walk.known(node.kwargs)
    chunks, dim, shape = given["chunks"], given.get("dim", 0), walk.shapes[node.args[0]]
    varies = source.ids.shape[dim] > 1
    if not isinstance(chunks, int) or (varies and shape[dim] % chunks):
        return None
    parts = [moved(source, shape, operator.itemgetter(part)) for part in _pieces(shape, chunks, dim)]
    for part in parts[1:] if varies else ():
        if part.ids.shape != parts[0].ids.shape:
            return None
        walk.channels.tie(parts[0].ids, part.ids)
    return tuple(parts)


def _pieces(shape: torch.Size, chunks: int, dim: int) -> list[tuple[slice, ...]]:
    """Where the parts of a tensor that is cut into chunks lie."""
    ends = [len(part) for part in torch.arange(shape[dim]).chunk(chunks)]
    starts = [sum(ends[:place]) for place in range(len(ends))]
    lead = (slice(None),) * (dim % len(shape))
    return [(*lead, slice(start, start + size)) for start, size in zip(starts, ends, strict=True)]


def item(walk: Walk, node: Node, source: Axes) -> Axes:
    """One of several tensors, or a part of one tensor that takes all of its channels."""
    index = walk.known(node.args[1])
    if isinstance(source, tuple):
        known = isinstance(index, int) and not walk.varies(node.args[1])
        return source[index] if known and -len(source) <= index < len(source) else None
    index = index if isinstance(index, tuple) else (index,)
    plain = all(entry is None or entry is ... or isinstance(entry, (int, slice)) for entry in index)
    if source is None or not plain or any(isinstance(entry, bool) for entry in index) or node not in walk.shapes:
        return None
    taken = [entry for entry in index if entry is not None and entry is not ...]
    rest = [slice(None)] * (source.ids.dim() - len(taken))
    place = index.index(...) if ... in index else len(index)
    before = [entry for entry in index[:place] if entry is not None]
    entries = [*before, *rest, *taken[len(before) :]]
    if any(size > 1 and entry != slice(None) for size, entry in zip(source.ids.shape, entries, strict=True)):
        return None
    if not walk.shapes[node].numel():
        return None
    return moved(source, walk.shapes[node.args[0]], operator.itemgetter(walk.known(node.args[1])))


def expanded_as(walk: Walk, node: Node, source: Axis) -> Axis | None:
    """One tensor brought to the size of another one with the same channels."""
    other = walk.axis(node.args[1])
    if other is None or other.ids.shape != source.ids.shape:
        return None
    walk.channels.tie(source.ids, other.ids)
    walk.channels.use(other.ids)
    return source


# As in `steps`.
MODULES: dict[type, Callable] = {nn.Flatten: _flattened}
FUNCTIONS: dict[Any, Callable] = {
    **dict.fromkeys((torch.permute, "permute", torch.transpose, "transpose", torch.swapaxes, "swapaxes"), _whole),
    **dict.fromkeys((torch.flatten, "flatten", torch.unsqueeze, "unsqueeze", "t", torch.movedim, "movedim"), _whole),
    getattr: _attribute,
    **dict.fromkeys((torch.squeeze, "squeeze"), _squeezed),
    **dict.fromkeys((torch.roll, "roll"), _rolled),
    **dict.fromkeys((torch.reshape, "reshape", "view"), reshaped),
    **dict.fromkeys((torch.chunk, "chunk"), _chunked),
    operator.getitem: item,
    "expand_as": expanded_as,
}
