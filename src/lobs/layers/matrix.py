"""How a module is seen as a matrix.

One layout feeds every method: a layer is ``Z = W y``, with ``W`` of shape ``[out, features (+ 1)]`` and one
*sample* ``y`` per row of the input. The bias, where there is one, is the last column, with an input that is
always 1. A convolution is the same product applied to its unfolded patches: every output position is a sample and
``features = in_channels / groups * kernel height * kernel width``, in the order of ``weight.flatten(1)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from lobs.layers.conv2d import Conv2dView
from lobs.layers.linear import LinearView
from lobs.layers.view import View

Prunable: TypeAlias = nn.Linear | nn.Conv2d
VIEWS: dict[type[nn.Module], View] = {nn.Linear: LinearView(), nn.Conv2d: Conv2dView()}
PRUNABLE = (nn.Linear, nn.Conv2d)
# An unfolded chunk of a convolution's input stays below this; larger chunks are no faster.
CHUNK_BYTES = 64 * 2**20


def view_of(module: nn.Module) -> View:
    """How a module is seen, by the first of its classes that has a view."""
    return next(VIEWS[kind] for kind in type(module).__mro__ if kind in VIEWS)


def weight_matrix(module: Prunable, bias: bool | None = None) -> Tensor:
    """A copy of the layer's weight as ``[out, features (+ 1 with a bias)]``, the bias in the last column.

    Args:
        module: the layer.
        bias: whether the bias is taken along (`LayerStatistics.bias`); None: where there is one.

    Returns:
        The matrix.
    """
    weight = module.weight.detach().flatten(1)
    if module.bias is None or bias is False:
        return weight.clone()
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
    features = prod(module.weight.shape[1:])
    with_bias = module.bias is not None and bias is not False
    expected = (module.weight.shape[0], features + with_bias)
    if tuple(matrix.shape) != expected:
        raise ValueError(f"a matrix of shape {tuple(matrix.shape)} does not fit {module}: expected {expected}")
    module.weight.copy_(matrix[:, :features].reshape(module.weight.shape))
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
    zeros = (outputs <= 0).sum(dim=others) if others else (outputs <= 0).long()
    return zeros, outputs.numel() // outputs.shape[axis]


def unit_outputs(module: Prunable, outputs: Tensor) -> Tensor:
    """A layer's outputs as ``[samples, out]``: positions of a convolution count as samples."""
    axis = view_of(module).unit_axis(outputs)
    return outputs.movedim(axis, -1).reshape(-1, outputs.shape[axis])
