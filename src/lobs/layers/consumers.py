"""Whole units: which weights of the next layer read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from lobs.layers.matrix import groups_of, matrix_shape
from lobs.layers.parts import Part
from lobs.layers.view import Prunable


@dataclass(frozen=True)
class Consumer:
    """Who reads a layer's units.

    Attributes:
        reader: the next layer's name.
        width: how many of its inputs one unit feeds, next to each other.
        groups: of the reader; its first group reads the first units, and so on.
    """

    reader: str
    width: int
    groups: int = 1

    def inputs(self, units: Tensor) -> Tensor:
        """A mask over units as one over the reader's inputs, ``[groups, features]``."""
        return units.unflatten(0, (self.groups, -1)).repeat_interleave(self.width, dim=1)


def consumers_of(modules: Mapping[str, Prunable]) -> dict[str, Consumer]:
    """For each layer of a chain the next one, and how many of its inputs one unit feeds.

    A convolution's channel feeds one kernel of the next convolution, or its whole map after flattening.

    Args:
        modules: in the order of their calls.

    Returns:
        Consumers by name; the last layer has none.

    Raises:
        ValueError: two layers that follow each other do not fit (a branch): units cannot be followed there.
    """
    consumers = {}
    names = list(modules)
    for name, following in pairwise(names):
        reader = modules[following]
        (units, _), (_, inputs) = matrix_shape(modules[name]), matrix_shape(reader)
        groups, branched = groups_of(reader), any(isinstance(module, Part) for module in (modules[name], reader))
        if branched or getattr(reader, "in_channels", units) != units or groups * inputs % units:
            raise ValueError(
                f"layer {following!r} with {inputs} inputs per unit does not simply follow layer {name!r} with {units} "
                f"units: whole units can only be removed from a chain of layers"
            )
        consumers[name] = Consumer(following, groups * inputs // units, groups)
    return consumers


def drop_columns(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], consumers: Mapping[str, Consumer]) -> None:
    """Remove in place the weights that read units of which nothing is left.

    Args:
        weights: ``[out, d]`` by layer.
        masks: likewise, True where a weight is kept.
        consumers: from `consumers_of`.
    """
    # Before any is changed: a unit that reads dead ones alone has a bias to give on, and is not dead itself.
    dead = {name: ~masks[name].any(dim=1) for name in consumers}
    for name, consumer in consumers.items():
        columns = consumer.inputs(dead[name])[:, None]
        for matrix in (weights[consumer.reader], masks[consumer.reader]):
            matrix.unflatten(0, (consumer.groups, -1))[..., : columns.shape[2]].masked_fill_(columns, 0)
