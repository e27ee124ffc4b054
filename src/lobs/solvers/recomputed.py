"""Paths that are not kept: where the matrices of all layers do not fit into the memory at once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor

from lobs.solvers.hessian import FLOAT64_FEATURES
from lobs.solvers.path import PruningPath

# Arrays [out, d] that a path keeps alive beside its matrices: weights, scores in double precision, ranks, coefficients.
ARRAYS = 5


class RecomputedPath(PruningPath):
    """Remembers a path's curve, which is what sharing a budget out reads, and computes the weights anew.

    Args:
        path: to be forgotten.
        make: computes it again, with the same result.
    """

    def __init__(self, path: PruningPath, make: Callable[[], PruningPath]) -> None:
        moment = path.statistics.second_moment.to("meta")  # a shape without memory
        cheap = path.solved_counts()
        super().__init__(
            path.weight,
            replace(path.statistics, second_moment=moment, inputs_sample=None, target_sample=None),
            path.total,
            path.damping,
            cheap=None if cheap is None else lambda: cheap,
        )
        self.computed = make
        self._knots = path._knots
        self.free, self.note, self.everywhere = path.free, path.note, path.everywhere
        self.removes_units = path.removes_units

    def at(self, count: int) -> tuple[Tensor, Tensor]:
        """Weight and mask at a count, from the path computed anew."""
        self._check(count)
        return self.computed().at(count)

    def kept(self, count: int) -> Tensor:
        """The mask alone, likewise."""
        self._check(count)
        return self.computed().kept(count)

    def weighted(self, unit_weights: Tensor) -> PruningPath:
        """In another currency, likewise."""

        def make() -> PruningPath:
            return self.computed().weighted(unit_weights)

        return RecomputedPath(make(), make)

    def within(self, tolerance: float, rule: str = "error") -> int:
        """The largest count within a tolerance, likewise."""
        return self.computed().within(tolerance, rule)

    def measured_error(self, weight: Tensor) -> float:
        """Psi's E of any weight, likewise."""
        return self.computed().measured_error(weight)

    def sensitivity_threshold(self, count: int) -> float | None:
        """The largest sensitivity removed, likewise."""
        return self.computed().sensitivity_threshold(count)

    def _exact_curve(self) -> Tensor | None:
        return self._knots[1] if len(self._knots[0]) == self.total + 1 else None


def whole(path: PruningPath) -> PruningPath:
    """The path itself, computed anew where only its curve was kept."""
    return path.computed() if isinstance(path, RecomputedPath) else path


def path_bytes(path: PruningPath) -> int:
    """About what a path keeps alive: its moment, with damping that matrix and its inverse, and arrays of its weights.

    Args:
        path: of any solver.

    Returns:
        Bytes; no fewer than those of the tensors that it holds now.
    """
    moment = path.statistics.second_moment
    factors = 2 * (8 if moment.shape[-1] <= FLOAT64_FEATURES else 4) if path.damping else 0
    expected = moment.numel() * (8 + factors) + ARRAYS * path.weight.numel() * path.weight.element_size()
    return max(expected, _held_bytes(path))


def _held_bytes(path: PruningPath) -> int:
    """Bytes of all tensors that can be reached from a path, each storage once."""
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting: list[Any] = [path]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, str, bytes)):
            continue
        seen.add(id(thing))
        if isinstance(thing, Tensor):
            if not thing.is_meta:
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, FunctionType):
            waiting += [cell.cell_contents for cell in thing.__closure__ or ()]
        else:
            waiting += gc.get_referents(thing)
    return sum(storages.values())
