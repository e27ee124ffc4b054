"""How a budget is met by whole units alone: every layer keeps the same share of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from fractions import Fraction

from lobs.layers.consumers import Consumer
from lobs.solvers.path import PruningPath


def unit_counts(paths: Mapping[str, PruningPath], consumers: Mapping[str, Consumer], density: float) -> dict[str, int]:
    """How many weights each layer loses when all keep the same share of units and the budget is met.

    What is left of a layer is its kept rows times the inputs that kept units of the layer before feed. Every layer
    keeps at least one unit.

    Args:
        paths: with `PruningPath.removes_units`, in the order of the calls.
        consumers: from `consumers_of`.
        density: share of weights kept in the whole network, columns counted.

    Returns:
        Weights that leave with their own rows, by layer: what `PruningPath.at` takes.

    Raises:
        ValueError: even one unit per layer is more than the density allows.
    """
    budget = density * sum(path.removable for path in paths.values()) + 1e-9
    sizes = {name: path.weight.shape[0] for name, path in paths.items()}

    def removals_at(share: Fraction) -> dict[str, int]:
        units = {name: max(1, int(share * size)) if paths[name].total else size for name, size in sizes.items()}
        return {name: (sizes[name] - units[name]) * path.statistics.features for name, path in paths.items()}

    def kept(share: Fraction) -> int:
        rows = {name: paths[name].kept(count).any(dim=1) for name, count in removals_at(share).items()}
        total = 0
        inputs = {consumer.reader: consumer.inputs(rows[name]).sum(1) for name, consumer in consumers.items()}
        for name, alive in rows.items():
            by_group = alive.unflatten(0, (paths[name].statistics.groups, -1)).sum(1)
            total += int((by_group * inputs.get(name, paths[name].statistics.features)).sum())
        return total

    # Every share at which some layer gains a unit, from the largest down.
    steps = sorted({Fraction(unit, size) for size in sizes.values() for unit in range(1, size + 1)}, reverse=True)
    first = bisect_left(steps, True, key=lambda share: kept(share) <= budget)
    if first < len(steps):
        return removals_at(steps[first])
    least = kept(Fraction(0)) / sum(path.removable for path in paths.values())
    raise ValueError(f"density {density} is below {least:.4g}, which one unit in every layer takes")
