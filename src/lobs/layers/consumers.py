"""Whole units: which weights of the next layer read them, and how a budget is met by units alone."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from lobs.layers.matrix import Prunable
from lobs.solvers.path import PruningPath


@dataclass(frozen=True)
class Link:
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


def readers(modules: Mapping[str, Prunable]) -> dict[str, Link]:
    """For each layer of a chain the next one, and how many of its inputs one unit feeds.

    A convolution's channel feeds one kernel of the next convolution, or its whole map after flattening.

    Args:
        modules: in the order of their calls.

    Returns:
        Links by name; the last layer has none.

    Raises:
        ValueError: two layers that follow each other do not fit (a branch): units cannot be followed there.
    """
    links = {}
    names = list(modules)
    for name, following in pairwise(names):
        units, reader = modules[name].weight.shape[0], modules[following]
        groups = reader.groups if isinstance(reader, nn.Conv2d) else 1
        inputs = reader.weight.shape[1:].numel()
        if (isinstance(reader, nn.Conv2d) and reader.in_channels != units) or groups * inputs % units:
            raise ValueError(
                f"layer {following!r} with {inputs} inputs per unit does not simply follow layer {name!r} with {units} "
                f"units: whole units can only be removed from a chain of layers"
            )
        links[name] = Link(following, groups * inputs // units, groups)
    return links


def unit_counts(paths: Mapping[str, PruningPath], links: Mapping[str, Link], density: float) -> dict[str, int]:
    """How many weights each layer loses when all keep the same share of units and the budget is met.

    What is left of a layer is its kept rows times the inputs that kept units of the layer before feed. Every layer
    keeps at least one unit.

    Args:
        paths: with `PruningPath.removes_units`, in the order of the calls.
        links: from `readers`.
        density: share of weights kept in the whole network, columns counted.

    Returns:
        Weights that leave with their own rows, by layer: what `PruningPath.at` takes.

    Raises:
        ValueError: even one unit per layer is more than the density allows.
    """
    budget = density * sum(path.removable for path in paths.values()) + 1e-9
    sizes = {name: path.weight.shape[0] for name, path in paths.items()}

    def removals_at(share: float) -> dict[str, int]:
        units = {name: max(1, int(share * size)) if paths[name].total else size for name, size in sizes.items()}
        return {name: (sizes[name] - units[name]) * path.statistics.features for name, path in paths.items()}

    def kept(share: float) -> int:
        rows = {name: paths[name].kept(count).any(dim=1) for name, count in removals_at(share).items()}
        total = 0
        inputs = {link.reader: link.inputs(rows[name]).sum(1) for name, link in links.items()}
        for name, alive in rows.items():
            by_group = alive.unflatten(0, (paths[name].statistics.groups, -1)).sum(1)
            total += int((by_group * inputs.get(name, paths[name].statistics.features)).sum())
        return total

    # Every share at which some layer gains a unit, from the largest down.
    steps = sorted({(unit + 0.5) / size for size in sizes.values() for unit in range(1, size + 1)}, reverse=True)
    first = bisect_left(steps, True, key=lambda share: kept(min(share, 1.0)) <= budget)
    if first < len(steps):
        return removals_at(min(steps[first], 1.0))
    least = kept(0.0) / sum(path.removable for path in paths.values())
    raise ValueError(f"density {density} is below {least:.4g}, which one unit in every layer takes")


def drop_columns(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], links: Mapping[str, Link]) -> None:
    """Remove in place the weights that read units of which nothing is left.

    Args:
        weights: ``[out, d]`` by layer.
        masks: likewise, True where a weight is kept.
        links: from `readers`.
    """
    # Before any is changed: a unit that reads dead ones alone has a bias to give on, and is not dead itself.
    dead = {name: ~masks[name].any(dim=1) for name in links}
    for name, link in links.items():
        columns = link.inputs(dead[name])[:, None]
        for matrix in (weights[link.reader], masks[link.reader]):
            matrix.unflatten(0, (link.groups, -1))[..., : columns.shape[2]].masked_fill_(columns, 0)
