"""How a network's budget is shared out between its layers: the point taken on each layer's path."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

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
    if allocation == "uniform":
        return counts_for(dict.fromkeys(paths, density), paths)
    if not 0 <= density <= 1:
        raise ValueError(f"density is the share of weights kept, between 0 and 1; got {density}")
    removable = sum(path.removable for path in paths.values())
    return equal_slopes(paths, removable - int(density * removable + 1e-9))


def equal_slopes(paths: Mapping[str, PruningPath], count: int) -> dict[str, int]:
    """Share ``count`` removals out so that the sum of the layers' relative errors is smallest.

    That is, over hulls of the curves::

        min sum_l E_l(c_l) / E_l(total_l)   subject to   sum_l c_l = count

    With each curve replaced by its lower convex hull, the best shares are those at which all layers lose the same
    relative error per weight: the hulls' segments of all layers, taken in the order of their slopes. Relative, because
    layers' outputs have different scales; a layer that is wiped out counts 1 whatever its size.

    Args:
        paths: of all layers.
        count: weights to remove in all.

    Returns:
        A count for every path; they add up to ``count``.

    Raises:
        ValueError: the paths (their N:M patterns) cannot remove so many.
    """
    total = sum(path.total for path in paths.values())
    if count > total:
        raise ValueError(f"{count} weights cannot leave: the layers' paths end after {total}")
    segments: list[tuple[float, int, str, int]] = []
    for name, path in paths.items():
        counts, errors = path.curve_points()
        whole = float(errors[-1])
        hull = _lower_hull(counts.tolist(), (errors / whole if whole > 0 else errors).tolist())
        for (start, low), (stop, high) in pairwise(hull):
            segments.append(((high - low) / (stop - start), len(segments), name, stop - start))
    chosen = dict.fromkeys(paths, 0)
    left = count
    # A hull's slopes rise, so a layer's segments come in their order; the running number breaks ties the same way.
    for _, _, name, length in sorted(segments):
        taken = min(length, left)
        chosen[name] += taken
        left -= taken
    return chosen


def _lower_hull(counts: list[int], errors: list[float]) -> list[tuple[int, float]]:
    """The vertices of the largest convex curve below the points (counts increasing)."""
    hull: list[tuple[int, float]] = []
    for count, error in zip(counts, errors, strict=True):
        while len(hull) > 1:
            (first, low), (middle, between) = hull[-2:]
            if (between - low) * (count - middle) < (error - between) * (middle - first):
                break
            hull.pop()
        hull.append((count, error))
    return hull


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
