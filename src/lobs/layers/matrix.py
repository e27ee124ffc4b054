"""How a module is seen as a matrix.

One layout feeds every method: a layer is ``Z = W y``, with ``W`` of shape ``[out, features (+ 1)]`` and one
*sample* ``y`` per row of the input. The bias, where there is one, is the last column, with an input that is
always 1. A convolution is the same product applied to its unfolded patches: every output position is a sample and
``features = in_channels / groups * kernel places``. What a class of modules has to tell for that is its `View`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from lobs.layers.convolution import ConvolutionView, TransposedConvolutionView
from lobs.layers.linear import LinearView, TransposedLinearView
from lobs.layers.view import Prunable, View

VIEWS: dict[type[nn.Module], View] = {
    nn.Linear: LinearView(),
    nn.Conv1d: ConvolutionView(1),
    nn.Conv2d: ConvolutionView(2),
    nn.Conv3d: ConvolutionView(3),
    nn.ConvTranspose1d: TransposedConvolutionView(1),
    nn.ConvTranspose2d: TransposedConvolutionView(2),
    nn.ConvTranspose3d: TransposedConvolutionView(3),
}
_OF_TRANSFORMERS = TransposedLinearView()
# An unfolded chunk of a convolution's input stays below this; larger chunks are no faster.
CHUNK_BYTES = 64 * 2**20
# Outputs whose zeros are counted at once.
COUNTED_AT_ONCE = 2**20


def register(kind: type[nn.Module], view: View) -> None:
    """Let the modules of a class be pruned.

    From then on they count as layers everywhere, like `nn.Linear`; every first call is checked against ``W y + b``.

    Args:
        kind: the class; classes derived from it are seen the same way, unless they are registered themselves.
        view: how its modules are seen as matrices.

    Raises:
        TypeError: ``kind`` is no class of modules, or ``view`` no `lobs.layers.View`.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"kind must be a class of modules, got {kind!r}")
    if not isinstance(view, View):
        raise TypeError(f"view must be an object of a class derived from lobs.layers.View, got {view!r}")
    VIEWS[kind] = view


def find_view(module: nn.Module) -> View | None:
    """How a module is seen, by the first of its classes that has a view; None where none has."""
    for kind in type(module).__mro__:
        if kind in VIEWS:
            return VIEWS[kind]
    return _OF_TRANSFORMERS if TransposedLinearView.fits(module) else None


def view_of(module: nn.Module) -> View:
    """How a module is seen that is known to have a view."""
    return cast("View", find_view(module))


def kinds() -> str:
    """The classes that have a view, for messages."""
    return ", ".join(kind.__name__ for kind in VIEWS)


def groups_of(module: nn.Module) -> int:
    """In how many groups a layer's units and inputs fall."""
    return view_of(module).groups(module)


def matrix_shape(module: Prunable) -> tuple[int, int]:
    """``(out, features)`` of a layer's matrix, without a bias."""
    shape = view_of(module).matrix(module, module.weight.detach()).shape
    return shape[0], shape[1]


def weight_matrix(module: Prunable, bias: bool | None = None) -> Tensor:
    """A copy of the layer's weight as ``[out, features (+ 1 with a bias)]``, the bias in the last column.

    Args:
        module: the layer.
        bias: whether the bias is taken along (`LayerStatistics.bias`); None: where there is one.

    Returns:
        The matrix.
    """
    weight = view_of(module).matrix(module, module.weight.detach())
    if module.bias is None or bias is False:
        return weight.clone(memory_format=torch.contiguous_format)
    return torch.cat([weight, module.bias.detach()[:, None]], dim=1)


@torch.no_grad()
def set_weight_matrix(module: Prunable, matrix: Tensor, bias: bool | None = None) -> None:
    """Write a matrix in the layout of `weight_matrix` back into the module, in place.

    Args:
        module: the layer.
        matrix: ``[out, features (+ 1)]``.
        bias: whether the last column is the bias; False leaves the bias as it is. None: where there is one.

    Raises:
        ValueError: the matrix has another shape than the module's own.
    """
    out, features = matrix_shape(module)
    with_bias = module.bias is not None and bias is not False
    expected = (out, features + with_bias)
    if tuple(matrix.shape) != expected:
        raise ValueError(f"a matrix of shape {tuple(matrix.shape)} does not fit {module}: expected {expected}")
    module.weight.copy_(view_of(module).shaped(module, matrix[:, :features]))
    if with_bias:
        cast("Tensor", module.bias).copy_(matrix[:, -1])


def call_input(args: tuple, kwargs: Mapping[str, object]) -> Tensor | None:
    """What a layer's call was given, by position or by keyword; None where that is no tensor."""
    given = args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))
    return given if isinstance(given, Tensor) else None


def input_samples(module: Prunable, inputs: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Tensor]:
    """The inputs of a layer as samples, in chunks of ``[groups, samples, features]`` (no bias column).

    A convolution's patches are unfolded a few images at a time, so that no more than about ``chunk_bytes`` of them
    (at least one image) exist at once. Chunks are views of them where that spares a copy.

    Returns:
        The chunks, one after the other.
    """
    return view_of(module).samples(module, inputs, chunk_bytes)


def zero_counts(module: Prunable, outputs: Tensor) -> tuple[Tensor, int]:
    """How many of each unit's outputs a ReLU sets to zero, int64 ``[out]``, and of how many."""
    axis = outputs.dim() + view_of(module).unit_axis(outputs)
    others = [dim for dim in range(outputs.dim()) if dim != axis]
    if not others:
        return (outputs <= 0).long(), 1
    # Parts that stay in the cache: several times faster than a mask of all.
    images = max(1, COUNTED_AT_ONCE * len(outputs) // max(1, outputs.numel()))
    zeros = torch.zeros(outputs.shape[axis], dtype=torch.long, device=outputs.device)
    for part in outputs.split(images) if axis else [outputs]:
        zeros += (part <= 0).sum(dim=others)
    return zeros, outputs.numel() // outputs.shape[axis]


def unit_outputs(module: Prunable, outputs: Tensor) -> Tensor:
    """A layer's outputs as ``[samples, out]``: positions of a convolution count as samples."""
    axis = view_of(module).unit_axis(outputs)
    return outputs.movedim(axis, -1).reshape(-1, outputs.shape[axis])
