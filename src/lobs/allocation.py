"""How a network's budget is shared out between its layers: the point taken on each layer's path."""

from __future__ import annotations

from collections.abc import Mapping

from lobs.registry import ALLOCATIONS, unknown_name
from lobs.solvers.path import PruningPath


def allocate(paths: Mapping[str, PruningPath], density: float, allocation: str = "uniform") -> dict[str, int]:
    """How many weights to remove from each layer so that at most the share ``density`` of all weights is kept.

    Returns:
        A count for every path.

    Raises:
        ValueError: the allocation is unknown, the density outside 0..1 or out of a path's reach.
    """
    if allocation not in ALLOCATIONS:
        raise ValueError(unknown_name("allocation", allocation, ALLOCATIONS))
    return counts_for(dict.fromkeys(paths, density), paths)


def counts_for(densities: Mapping[str, float], paths: Mapping[str, PruningPath]) -> dict[str, int]:
    """The counts that leave each layer its own density.

    Returns:
        A count for every path.

    Raises:
        ValueError: a layer is missing or unknown, or its density is out of its path's reach.
    """
    unknown = densities.keys() - paths.keys()
    missing = paths.keys() - densities.keys()
    if unknown or missing:
        raise ValueError(
            f"densities must name exactly the pruned layers {', '.join(paths)}"
            + (f"; unknown: {', '.join(sorted(unknown))}" if unknown else "")
            + (f"; missing: {', '.join(sorted(missing))}" if missing else "")
        )
    counts = {}
    for name, path in paths.items():
        try:
            counts[name] = path.count_for(densities[name])
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    return counts
