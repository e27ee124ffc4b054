"""Whole units: which weights of the next layer read them, and how a budget is met by units alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

from lobs.layers import Prunable
from lobs.solvers.path import PruningPath


def readers(modules: Mapping[str, Prunable]) -> dict[str, tuple[str, int]]:
    """For each layer of a chain the next one, and how many of its inputs one unit feeds.

    A convolution's channel feeds one kernel of the next convolution, or its whole map after flattening.

    Args:
        modules: in the order of their calls.

    Returns:
        (next layer's name, inputs per unit) by name; the last layer has none.

    Raises:
        ValueError: two layers that follow each other do not fit (a branch, a group): units cannot be followed there.
    """
    links = {}
    names = list(modules)
    for name, following in pairwise(names):
        units, reader = modules[name].weight.shape[0], modules[following]
        inputs = reader.weight.shape[1:].numel()
        grouped = isinstance(reader, nn.Conv2d) and (reader.groups > 1 or reader.in_channels != units)
        if grouped or inputs % units:
            raise ValueError(
                f"layer {following!r} with {inputs} inputs per unit does not simply follow layer {name!r} with {units} "
                f"units: whole units can only be removed from a chain of layers"
            )
        links[name] = (following, inputs // units)
    return links


def unit_counts(
    paths: Mapping[str, PruningPath], links: Mapping[str, tuple[str, int]], density: float
) -> dict[str, int]:
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

    def units_at(share: float) -> dict[str, int]:
        return {name: max(1, int(share * size)) if paths[name].total else size for name, size in sizes.items()}

    def kept(units: Mapping[str, int]) -> int:
        inputs = {name: path.statistics.features for name, path in paths.items()}
        for name, (following, width) in links.items():
            inputs[following] = units[name] * width
        return sum(units[name] * inputs[name] for name in paths)

    # Every share at which some layer gains a unit, from the largest down.
    steps = sorted({(unit + 0.5) / size for size in sizes.values() for unit in range(1, size + 1)}, reverse=True)
    for share in steps:
        units = units_at(min(share, 1.0))
        if kept(units) <= budget:
            return {name: (sizes[name] - units[name]) * path.statistics.features for name, path in paths.items()}
    least = kept(units_at(0.0)) / sum(path.removable for path in paths.values())
    raise ValueError(f"density {density} is below {least:.4g}, which one unit in every layer takes")


def drop_columns(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], links: Mapping[str, tuple[str, int]]
) -> None:
    """Remove in place the weights that read units of which nothing is left.

    Args:
        weights: ``[out, d]`` by layer.
        masks: likewise, True where a weight is kept.
        links: from `readers`.
    """
    for name, (following, width) in links.items():
        dead = (~masks[name].any(dim=1)).repeat_interleave(width)
        columns = dead.nonzero()[:, 0]
        weights[following][:, columns] = 0.0
        masks[following][:, columns] = False
