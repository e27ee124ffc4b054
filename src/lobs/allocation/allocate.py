"""How a network's budget is shared out between its layers: the point taken on each layer's path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from lobs.allocation.budget import Budget, Problem, problem
from lobs.allocation.knapsack import Curve, dynamic_program, equal_slopes
from lobs.allocation.loss_curves import loss_curves, resolved
from lobs.allocation.output_distance import OutputDistance, along_errors, refine_jointly
from lobs.export.sparse import file_costs
from lobs.registry import ALLOCATIONS, unknown_name
from lobs.solvers.path import PruningPath


def allocate(
    paths: Mapping[str, PruningPath],
    budget: Budget | float,
    allocation: str = "uniform",
    *,
    losses: Mapping[str, Curve] | None = None,
    model: nn.Module | None = None,
    batches: Iterable | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> dict[str, int]:
    """How many weights to remove from each layer so that the network meets a budget.

    All allocations but ``uniform`` minimise a sum of the layers' losses under the budget (`lobs.allocation.knapsack`);
    they differ in the losses (`lobs.allocation.loss_curves`). The budget is never exceeded, but by a single layer that
    would lose all its weights and keeps one; a budget of weights is met exactly, except by ``uniform``, which rounds in
    every layer.

    Args:
        paths: of all layers, in the order of their calls.
        budget: a `Budget`, or the share of weights kept. Tolerance and densities are each layer's own.
        allocation: a name in `lobs.registry.ALLOCATIONS`.
        losses: from `loss_curves` for this allocation, to use them for many budgets.
        model: the dense network, for the allocations that need it.
        batches: calibration images, for the allocations that need them.
        progress: wraps the iterable of what takes long: layers measured, or networks.

    Returns:
        A count for every path.

    Raises:
        ValueError: an unknown name, a budget or limit that is out of range or out of reach, something missing that the
            allocation needs, or losses that do not belong to the paths.
    """
    if allocation not in ALLOCATIONS:
        raise ValueError(unknown_name("allocation", allocation, ALLOCATIONS))
    allocation = resolved(allocation, batches is not None and model is not None)
    if not isinstance(budget, Budget):
        budget = Budget(density=budget)
    if budget.densities is not None:
        return counts_for(budget.densities, paths)
    if budget.tolerance is not None:
        counts = {name: path.within(budget.tolerance, budget.tolerance_rule) for name, path in paths.items()}
        return {name: path.not_all(counts[name]) for name, path in paths.items()}
    file = file_costs(model, list(paths)) if budget.size is not None and model is not None else None
    if allocation == "uniform":
        if budget.density is not None and not budget.limits:
            counts = counts_for(dict.fromkeys(paths, budget.density), paths)
            if not budget.density:
                return counts
            kept = {name: path.not_all(counts[name]) for name, path in paths.items()}
            if kept == counts or len(paths) == 1:
                return kept
        return uniform(paths, problem(paths, budget, file))
    task = problem(paths, budget, file)
    if allocation == "measured_joint" and batches is not None:
        batches = list(batches)  # read twice
    if losses is None:
        curves = loss_curves(paths, allocation, model=model, batches=batches, progress=progress)
    else:
        curves = dict(losses)
    _check_curves(curves, paths)
    curves = {name: curves[name] for name in paths}
    if allocation == "measured":
        return dynamic_program({name: along_errors(curves[name], path) for name, path in paths.items()}, task)
    if allocation == "measured_joint":
        if model is None or batches is None:
            raise ValueError("allocation 'measured_joint' measures pruned networks: give model= and batches=")
        return refine_jointly(OutputDistance(model, batches), paths, curves, task, progress=progress).counts
    return equal_slopes(curves, task)


def uniform(paths: Mapping[str, PruningPath], task: Problem) -> dict[str, int]:
    """The largest density that, in every layer alike or as near to it as the layer's limits allow, fits the budget.

    Returns:
        A count for every path.
    """

    def counts_at(density: float) -> dict[str, int]:
        return {
            name: max(fewest, min(most, paths[name].removable - int(density * paths[name].removable + 1e-9)))
            for name, (fewest, most) in task.ranges.items()
        }

    low, high = 0.0, 1.0
    if task.cost(counts_at(high)) <= task.bound:
        return counts_at(high)
    for _ in range(50):  # 2^-50 of a layer is less than a weight
        middle = (low + high) / 2
        low, high = (middle, high) if task.cost(counts_at(middle)) <= task.bound else (low, middle)
    return counts_at(low)


def counts_for(densities: Mapping[str, float], paths: Mapping[str, PruningPath]) -> dict[str, int]:
    """The counts that leave each layer its own density.

    Returns:
        A count for every path.

    Raises:
        ValueError: a layer is missing or unknown, or its density is out of its path's reach.
    """
    check_names(densities, paths)
    counts = {}
    for name, path in paths.items():
        try:
            counts[name] = path.count_for(densities[name])
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from None
    return counts


def check_names(densities: Mapping[str, float], names: Iterable[str]) -> None:
    """Refuse densities of other layers than those that are pruned.

    Args:
        densities: by layer.
        names: of the layers.

    Raises:
        ValueError: a layer is missing or unknown.
    """
    names = list(names)
    unknown = [name for name in densities if name not in names]
    missing = [name for name in names if name not in densities]
    if unknown or missing:
        raise ValueError(
            f"densities must name exactly the pruned layers {', '.join(names)}"
            + (f"; unknown: {', '.join(unknown)}" if unknown else "")
            + (f"; missing: {', '.join(missing)} (layers=[...] leaves them dense)" if missing else "")
        )


def _check_curves(curves: Mapping[str, Curve], paths: Mapping[str, PruningPath]) -> None:
    if curves.keys() != paths.keys():
        raise ValueError(f"losses must be of exactly the layers {', '.join(paths)}; got those of {', '.join(curves)}")
    for name, (counts, losses) in curves.items():
        if len(counts) != len(losses) or int(counts[0]) != 0 or int(counts[-1]) != paths[name].total:
            raise ValueError(
                f"layer {name!r}: losses must go from 0 to the path's {paths[name].total} removals, one per count; "
                f"got {len(losses)} losses from {int(counts[0])} to {int(counts[-1])}"
            )
        if not torch.isfinite(losses).all():
            raise ValueError(f"layer {name!r}: its losses hold NaN or infinite values")
