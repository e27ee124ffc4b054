"""Minimises the sum of the layers' losses under one bound on the sum of their costs.

Every layer is a curve of points: removals -> loss. With ``C_l`` the cost of what a layer keeps::

    min sum_l L_l(c_l)   subject to   sum_l C_l(removable_l - c_l) <= bound,   fewest_l <= c_l <= most_l

`equal_slopes` solves this on the curves' lower convex hulls, `dynamic_program` on the curves' own points. Both end
with `give_back`, which spends what is left of the bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, inf
from typing import TypeAlias

import torch
from torch import Tensor

from lobs.allocation.budget import Problem

# Removals, int64 and strictly increasing from 0 to the path's total; losses there, float64.
Curve: TypeAlias = tuple[Tensor, Tensor]

BINS = 4096


def equal_slopes(curves: Mapping[str, Curve], problem: Problem) -> dict[str, int]:
    """Share the budget out so that all layers lose the same per unit of cost at the margin.

    With each curve replaced by its lower convex hull in the plane (cost saved, loss), the best shares are those at
    which the hulls' slopes are equal: the segments of all hulls are taken in the order of their slopes until the
    budget is met. Exact for the hulls at their vertices; the last segment is taken in part.

    Args:
        curves: of all layers.
        problem: budget and limits.

    Returns:
        Removals by layer. They cost at most the bound, and no more weight fits in.
    """
    segments: list[tuple[float, int, str, int, float]] = []
    chosen = {name: fewest for name, (fewest, _) in problem.ranges.items()}
    for name, curve in curves.items():
        counts, losses = _within(curve, problem.ranges[name])
        costs = problem.layer_cost(name, counts)
        # The first removals may save nothing: a sparse file is no smaller than a dense one at first.
        saving = costs < costs[0]
        saving[0] = True
        points, lost, across = (part[saving].tolist() for part in (counts, losses, costs[0] - costs))
        for i, j in pairwise(lower_hull(across, lost)):
            saved = across[j] - across[i]
            segments.append(((lost[j] - lost[i]) / saved, len(segments), name, points[j], saved))
    cost = problem.cost(chosen)
    # A hull's slopes rise, so a layer's segments come in their order; the running number breaks ties the same way.
    for _, _, name, count, saved in sorted(segments):
        if cost <= problem.bound:
            break
        if cost - saved > problem.bound:
            chosen[name] = count
            cost -= saved
            continue
        rest = cost - float(problem.layer_cost(name, torch.tensor(chosen[name])))
        chosen[name] = problem.fewest(name, problem.bound - rest, chosen[name], count)
        break
    return give_back(chosen, curves, problem)


def dynamic_program(curves: Mapping[str, Curve], problem: Problem, bins: int = BINS) -> dict[str, int]:
    """Share the budget out over the curves' own points: curves that are not convex lose nothing.

    What the budget leaves beyond the cheapest choice is cut into at most ``bins`` units of whole weights, operations
    or bytes, and every point's cost is rounded up to units: the best choice of points under the rounded costs, exact
    where a unit is 1.

    Args:
        curves: of all layers.
        problem: budget and limits.
        bins: units of the budget at most; time and memory grow with it.

    Returns:
        Removals by layer. They cost at most the bound, and no more weight fits in.
    """
    points = {name: _within(curve, problem.ranges[name]) for name, curve in curves.items()}
    extra = {}
    spare = problem.bound
    for name, (counts, _) in points.items():
        cost = problem.layer_cost(name, counts)
        extra[name] = cost - cost[-1]
        spare -= float(cost[-1])
    unit = max(1, ceil(spare / bins))
    width = max(0, int(spare / unit + 1e-9))
    best = torch.zeros(width + 1, dtype=torch.float64)  # smallest sum of losses with so many units
    units = {name: (cost / unit - 1e-9).ceil().long().tolist() for name, cost in extra.items()}
    choices = {}
    for name, (_, losses) in points.items():
        new = torch.full_like(best, float("inf"))
        choices[name] = torch.zeros(width + 1, dtype=torch.long)
        for index, (used, loss) in enumerate(zip(units[name], losses.tolist(), strict=True)):
            if used <= width:
                candidate = best[: width + 1 - used] + loss
                better = candidate < new[used:]
                new[used:][better] = candidate[better]
                choices[name][used:][better] = index
        best = new
    chosen = {}
    for name in reversed(list(points)):
        index = int(choices[name][width])
        chosen[name] = int(points[name][0][index])
        width -= units[name][index]
    return give_back({name: chosen[name] for name in points}, curves, problem)


def give_back(counts: Mapping[str, int], curves: Mapping[str, Curve], problem: Problem) -> dict[str, int]:
    """Keep more weights as long as the budget allows, first where the loss falls most per unit of cost.

    Args:
        counts: removals by layer that respect the budget and the limits.
        curves: of all layers.
        problem: budget and limits.

    Returns:
        Removals by layer, none larger than before. With a budget of weights it is met exactly, where limits let it.
    """
    counts = dict(counts)
    points = {name: _within(curve, problem.ranges[name]) for name, curve in curves.items()}
    cost = problem.cost(counts)
    while True:
        steps: list[tuple[float, int, str, int]] = []
        for name, count in counts.items():
            knots, losses = points[name]
            if count <= int(knots[0]):
                continue
            own = float(problem.layer_cost(name, torch.tensor(count)))
            index = int(torch.searchsorted(knots, count)) - 1  # the next point with fewer removals
            fewest = problem.fewest(name, problem.bound - (cost - own), int(knots[index]), count)
            if fewest < count:
                here = float(interpolate((knots, losses), torch.tensor([count]))[0])
                before = float(problem.layer_cost(name, knots[index]))
                free = before <= own
                slope = -inf if free else (float(losses[index]) - here) / (before - own)
                steps.append((slope, len(steps), name, fewest))
        if not steps:
            return counts
        _, _, name, fewest = min(steps)
        counts[name] = fewest
        cost = problem.cost(counts)


def lower_hull(across: Sequence[float], losses: Sequence[float]) -> list[int]:
    """The vertices of the largest convex curve below the points.

    Args:
        across: strictly increasing.
        losses: at these places.

    Returns:
        Indices of the vertices, the first and the last point included.
    """
    hull: list[int] = []
    for index, (place, loss) in enumerate(zip(across, losses, strict=True)):
        while len(hull) > 1:
            first, middle = hull[-2:]
            rise = (losses[middle] - losses[first]) * (place - across[middle])
            if rise < (loss - losses[middle]) * (across[middle] - across[first]):
                break
            hull.pop()
        hull.append(index)
    return hull


def interpolate(curve: Curve, counts: Tensor) -> Tensor:
    """A curve's losses at any counts on it, linear between its points."""
    knots, losses = curve
    if len(knots) == 1:
        return losses.expand(len(counts))
    right = torch.searchsorted(knots, counts).clamp(1, len(knots) - 1)
    share = (counts - knots[right - 1]).double() / (knots[right] - knots[right - 1])
    return losses[right - 1] * (1 - share) + losses[right] * share


def _within(curve: Curve, limits: tuple[int, int]) -> Curve:
    """The curve between a fewest and a most count, both of them points of it."""
    counts, _ = curve
    inside = counts[(counts > limits[0]) & (counts < limits[1])]
    counts = torch.cat([torch.tensor(limits[:1]), inside, torch.tensor(limits[1:])]).unique()
    return counts, interpolate(curve, counts)
