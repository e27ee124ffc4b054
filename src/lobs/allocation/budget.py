"""What a pruned network may cost: the budget, each layer's cost, the limits on single layers."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from math import ceil
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lobs.base.arguments import check_by_layer, check_number
from lobs.export.sparse_layout import VALUE_BYTES, FileCosts, sparse_bytes
from lobs.registry import unknown_name
from lobs.solvers.path import PruningPath

# A layer's cost by the number of its weights that are kept: int64 in, float64 out, never falling.
Cost: TypeAlias = Callable[[Tensor], Tensor]
Limits: TypeAlias = Mapping[str, tuple[float, float]]

# What each budget means, for messages.
MEANINGS = {
    "density": "the share of weights kept",
    "tolerance": "the error allowed per layer",
    "densities": "a density for each layer",
    "flops": "the share of multiply-adds kept",
    "size": "the bytes of the sparse file",
}


TOLERANCE_RULES = ("error", "sensitivity")


@dataclass(frozen=True)
class Budget:
    """A limit on what is kept of a network; exactly one of the first five is given.

    Attributes:
        density: share of the weights kept, 0 to 1.
        tolerance: the paper's epsilon, the error allowed per layer (`PruningPath.within`).
        densities: a density for each layer by name.
        flops: share of the dense layers' multiply-adds kept, 0 to 1. A kept weight costs one multiply-add per output
            position and image: 1 in a Linear layer on a vector, height times width of the output in a convolution.
        size: bytes of the file that `lobs.save_sparse` writes: `sparse_bytes` of these layers' weights, and with
            `FileCosts` everything else in it; without, 4 per bias.
        limits: (least, most) density by layer name or shell pattern; the first that fits counts. ``(0.05, 1.0)`` keeps
            at least 5% of a layer, ``(1.0, 1.0)`` excludes it. With density, flops or size.
        tolerance_rule: ``"error"``: the accumulated sqrt(E) stays <= tolerance; ``"sensitivity"``: every removed
            weight's sqrt(L_q) does, as in Algorithm 1.

    Raises:
        ValueError: not exactly one is given, it is out of range, or limits do not go with it.
        TypeError: a number is none.
    """

    density: float | None = None
    tolerance: float | None = None
    densities: Mapping[str, float] | None = None
    flops: float | None = None
    size: int | None = None
    limits: Limits | None = None
    tolerance_rule: str = "error"

    def __post_init__(self) -> None:
        for name in ("density", "tolerance", "flops", "size"):
            check_number(name, getattr(self, name), MEANINGS[name])
        check_by_layer("densities", self.densities, pairs=False)
        check_by_layer("limits", self.limits, pairs=True)
        given = {name: value for name in MEANINGS if (value := getattr(self, name)) is not None}
        shown = " and ".join(f"{name}={value!r}" for name, value in given.items())
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(MEANINGS)}; got {shown or 'none'}")
        if self.limits and not self.divisible:
            raise ValueError(f"limits={dict(self.limits)!r} go with density, flops or size; got {shown}")
        for name in ("density", "flops"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} is {MEANINGS[name]}, between 0 and 1; got {share}")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ValueError(f"tolerance must be >= 0, got {self.tolerance}")
        if self.tolerance_rule not in TOLERANCE_RULES:
            raise ValueError(f"unknown rule {self.tolerance_rule!r}: accepted are {', '.join(TOLERANCE_RULES)}")
        if self.size is not None and not self.size >= 0:
            raise ValueError(f"size is {MEANINGS['size']}, at least 0; got {self.size}")

    @property
    def divisible(self) -> bool:
        """Whether it is one for all layers together, not one for each of them."""
        return self.tolerance is None and self.densities is None

    def of_layer(self, name: str) -> Budget:
        """This budget for one layer alone."""
        return self if self.densities is None else replace(self, densities={name: self.densities[name]})

    @property
    def asked(self) -> dict[str, object]:
        """The fields that were given, by name."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        return next(f"{name}={value}" for name in MEANINGS if (value := getattr(self, name)) is not None)


def budget_of(budget: Budget | None, asked: Mapping[str, Any]) -> Budget:
    """A budget from an object or from its fields.

    Args:
        budget: or None.
        asked: fields by name, where there is no object.

    Returns:
        The budget.

    Raises:
        TypeError: both, something else, or a field that no budget has.
        ValueError: as `Budget`.
    """
    if budget is not None and not isinstance(budget, Budget):
        raise TypeError(f"budget must be a lobs.Budget, got {budget!r}: give its fields by name, density=0.1 say")
    if budget is not None and asked:
        raise TypeError(f"give a budget or its fields, got {budget} and {', '.join(asked)}")
    known = {entry.name: None for entry in fields(Budget)}
    for name in asked:
        if name not in known:
            raise TypeError(unknown_name("argument", name, known))
    return Budget(**asked) if budget is None else budget


@dataclass(frozen=True)
class Problem:
    """What every sharing-out has to respect.

    Attributes:
        budget: as it was asked for.
        costs: of each layer.
        bound: on the sum of the costs.
        removable: weights of each layer.
        ranges: fewest and most removals of each layer.
    """

    budget: Budget
    costs: dict[str, Cost]
    bound: float
    removable: dict[str, int]
    ranges: dict[str, tuple[int, int]]

    def layer_cost(self, name: str, counts: Tensor) -> Tensor:
        """A layer's cost after so many removals, float64."""
        return self.costs[name](self.removable[name] - counts)

    def cost(self, counts: Mapping[str, int]) -> float:
        """The network's cost."""
        return sum(float(self.layer_cost(name, torch.tensor(count))) for name, count in counts.items())

    def fewest(self, name: str, allowed: float, low: int, high: int) -> int:
        """The fewest removals from ``low`` to ``high`` at which a layer costs at most ``allowed``; else ``high``."""
        while low < high:
            middle = (low + high) // 2
            if float(self.layer_cost(name, torch.tensor(middle))) <= allowed:
                high = middle
            else:
                low = middle + 1
        return high


def problem(paths: Mapping[str, PruningPath], budget: Budget, file: FileCosts | None = None) -> Problem:
    """A budget and limits in numbers, known to be feasible.

    Args:
        paths: of all layers the budget is about.
        budget: what the layers may cost together: density, flops or size, with its limits (`count_ranges`).
        file: for a budget of ``size``.

    Returns:
        Costs, bound and ranges.

    Raises:
        ValueError: limits and paths alone keep more than the budget, or a limit is wrong.
    """
    ranges = count_ranges(paths, budget.limits or {}, empty=0 in (budget.density, budget.flops))
    removable = {name: path.removable for name, path in paths.items()}
    costs = {name: _cost(name, path, budget, file) for name, path in paths.items()}
    dense = sum(float(costs[name](torch.tensor(size))) for name, size in removable.items())
    if budget.density is not None:
        bound = float(int(budget.density * dense + 1e-9))
    else:
        fixed = 0 if file is None else file.fixed
        bound = float(budget.size - fixed) if budget.size is not None else float(budget.flops or 0.0) * dense
        bound += 1e-9 * dense
    result = Problem(budget, costs, bound, removable, ranges)
    least = result.cost({name: most for name, (_, most) in ranges.items()})
    if least > result.bound:
        size = budget.size is not None
        kept = f"{least + budget.size - bound:.0f} bytes" if budget.size is not None else f"{least / dense:.4g}"
        what = (
            "the layers' limits"
            if budget.limits
            else "one weight per layer and the ends of the layers' paths (N:M patterns)"
        )
        rest = ", the file's other tensors and its header" * (size and file is not None)
        remedy = "lower the limits" if budget.limits else "allow empty layers with limits={'*': (0, 1)}"
        raise ValueError(f"{what}{rest} alone keep {kept}, more than the budget {budget}: ask for more, or {remedy}")
    return result


def count_ranges(paths: Mapping[str, PruningPath], limits: Limits, empty: bool = True) -> dict[str, tuple[int, int]]:
    """The fewest and the most removals of each layer that limits on its density allow.

    The first pattern that fits a layer counts. The least density is rounded up to whole weights and the most down;
    where no whole number lies between, the least counts. ``(1, 1)`` excludes a layer from pruning.

    Args:
        paths: of the layers.
        limits: (least, most) density by layer name or shell pattern.
        empty: whether a layer that no limit names may lose all of its weights.

    Returns:
        Fewest and most removals by layer.

    Raises:
        ValueError: a pattern fits no layer, a limit is not 0 <= least <= most <= 1, or a layer's path cannot go as
            low as its most density.
    """
    for pattern, limit in limits.items():
        if not any(_fits(name, pattern, paths) for name in paths):
            raise ValueError(f"no layer fits {pattern!r} of the limits; there are {', '.join(paths)}")
        if len(limit) != 2 or not 0 <= limit[0] <= limit[1] <= 1:
            raise ValueError(f"limits of {pattern!r} must be (least, most) with 0 <= least <= most <= 1; got {limit}")
    ranges = {}
    for name, path in paths.items():
        own = _limit(name, limits, paths)
        least, most = (0.0, 1.0) if own is None else own
        kept = max(ceil(least * path.removable - 1e-9), int(own is None and not empty))
        fewest = path.removable - max(kept, int(most * path.removable + 1e-9))
        if fewest > path.total:
            end = 1 - path.total / path.removable
            raise ValueError(f"layer {name!r}: at most {most} of it may be kept, but its path ends at {end:.4g}")
        ranges[name] = (fewest, min(path.total, path.removable - kept))
    return ranges


def most_kept(limits: Limits, sizes: Mapping[str, int]) -> int:
    """How many weights limits on the layers' density keep at most.

    Args:
        limits: as for `count_ranges`.
        sizes: weights by layer.

    Returns:
        A count, of all layers together.
    """
    most = {name: (_limit(name, limits, sizes) or (0.0, 1.0))[1] for name in sizes}
    return sum(int(most[name] * size + 1e-9) for name, size in sizes.items())


def _limit(name: str, limits: Limits, names: Container[str]) -> tuple[float, float] | None:
    """A layer's own: the first that fits."""
    return next((limit for pattern, limit in limits.items() if _fits(name, pattern, names)), None)


def _fits(name: str, pattern: str, names: Container[str]) -> bool:
    """A name in full is no pattern: it may hold brackets."""
    return name == pattern if pattern in names else fnmatchcase(name, pattern)


def _cost(name: str, path: PruningPath, budget: Budget, file: FileCosts | None) -> Cost:
    if budget.size is not None and file is not None:
        copies, width = file.copies[name], file.value_bytes[name]
        return lambda kept: copies * sparse_bytes(kept, path.removable, width)
    if budget.size is not None:
        biases = VALUE_BYTES * path.weight.shape[0] * path.statistics.bias
        return lambda kept: sparse_bytes(kept, path.removable) + biases
    positions = 1.0 if budget.flops is None else path.statistics.samples / path.statistics.inputs
    return lambda kept: kept.double() * positions
