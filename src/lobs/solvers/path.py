"""The pruning path: what every solver returns.

A path orders a layer's weights once and can then stop anywhere: one factorisation serves every density of a sweep,
every point of a curve, and the allocation of a budget between layers.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor

from lobs.calibration.statistics import LayerStatistics, layer_error, unit_errors
from lobs.solvers.curve import EVERYWHERE, KNOTS, SOLVED_EVERYWHERE, knot_counts, measured, powers_between

if TYPE_CHECKING:
    from lobs.solvers.base import Solver

# The least weight of a unit, of their mean: what nothing depends on costs next to nothing.
LEAST_UNIT_WEIGHT = 1e-6


class PruningPath(ABC):
    """A layer's weights at every count of removals.

    What was removed stays removed: a weight that is zero already is zero at every count, and leaves before all others.
    The first `free` counts take such weights off the mask and change nothing else.

    Attributes:
        weight: the trained weight ``[out, d]``, the bias in the last column where there is one.
        statistics: those of the layer.
        total: how many weights the path can remove (biases never; with an N:M pattern only (M-N)/M of them).
        removable: weights without the biases: a density is a share of this.
        damping: lambda that the solver added to Psi, 0 where it used none.
        sensitivities: L_q ``[out, features]`` where the method scores weights so, else None.
        rank: int32 ``[out, features]``, the order in which weights leave, where there is one (`RankedPath`).
        removes_units: whether whole units leave, their biases with them.
        solver: that made the path; None for parts of one.
        note: what was approximated, where anything was.
        everywhere: a curve of so few counts is measured at all of them.
        state: what `Solver.restored` makes the same path from; None where the solver computes it anew as fast.
    """

    removes_units = False
    everywhere = EVERYWHERE
    solver: Solver | None = None
    note: str | None = None
    state: Mapping[str, Tensor] | None = None

    def __init__(
        self,
        weight: Tensor,
        statistics: LayerStatistics,
        total: int,
        damping: float = 0.0,
        sensitivities: Tensor | None = None,
        rank: Tensor | None = None,
        cheap: Callable[[], Sequence[int]] | None = None,
    ) -> None:
        self.weight = weight
        self.rank = rank
        self._cheap = cheap
        self.statistics = statistics
        self.total = total
        self.removable = weight.shape[0] * statistics.features
        self.damping = damping
        self.sensitivities = sensitivities

    @property
    def zeros(self) -> Tensor:
        """Where the weight is zero already, bool ``[out, features]``."""
        return self.weight[:, : self.statistics.features] == 0

    @cached_property
    def free(self) -> int:
        """How many removals cost nothing: the zeros, less those that an N:M pattern keeps."""
        leaving = self.zeros if self.rank is None else self.zeros & (self.rank < self.total)
        return int(leaving.sum())

    @abstractmethod
    def at(self, count: int) -> tuple[Tensor, Tensor]:
        """The layer with exactly ``count`` weights removed.

        Returns:
            Weight and mask, both ``[out, d]``; the mask is True where a weight is kept.

        Raises:
            ValueError: ``count`` is not between 0 and `total`.
        """

    @abstractmethod
    def kept(self, count: int) -> Tensor:
        """The mask alone, ``[out, features]`` without the bias: True where a weight is kept at ``count``."""

    @abstractmethod
    def _exact_curve(self) -> Tensor | None:
        """E after every count, float64 ``[total + 1]``, where the method knows it; None: it is measured."""

    def solved_counts(self) -> list[int] | None:
        """The counts at which `at` only looks up what was solved for the curve; elsewhere it solves anew.

        Returns:
            Increasing, from 0 to `total`; None where every count costs about the same (all nested paths).
        """
        return None if self._cheap is None else sorted({self.free, *self._cheap()})

    @overload
    def layer_error(self, count: None = None) -> Tensor: ...
    @overload
    def layer_error(self, count: int) -> float: ...
    def layer_error(self, count: int | None = None) -> Tensor | float:
        """E = ||Z_hat - Z||_F^2 / n after ``count`` removals; the whole curve ``[total + 1]`` without a count.

        Non-decreasing: where removing more happens to lower E (only methods without compensation do that), the
        largest E met so far counts. Methods with an exact curve (`exact_obs`) give E including the damping term
        ``lambda ||dW||_F^2``; the others measure Psi's E at their `solved_counts`, or at about 32 knots. Between two
        of them E follows a power of the count of weights that were not zero, through both.

        Returns:
            A float64 tensor of all counts, or one float.
        """
        if count is None:
            return self._interpolate(torch.arange(self.total + 1))
        self._check(count)
        return float(self._interpolate(torch.tensor([count]))[0])

    def curve_points(self, most: int = 2000) -> tuple[Tensor, Tensor]:
        """Counts and `layer_error` there: those that were solved for, else at most about so many.

        Returns:
            counts: increasing, from 0 to `total`, denser towards the sparse end.
            errors: float64, non-decreasing.
        """
        counts, errors = self._knots
        if self.solved_counts() is not None and len(counts) <= most:
            return counts, errors
        counts = torch.tensor(self._knot_counts(most))
        return counts, self._interpolate(counts)

    def within(self, tolerance: float, rule: str = "error") -> int:
        """The largest count allowed by the paper's tolerable error (Algorithm 1).

        Args:
            tolerance: epsilon, in units of the layer's output (a root mean square over samples, summed over units).
            rule: ``"error"``: sqrt(E) accumulated over all removals stays <= epsilon. ``"sensitivity"``:
                sqrt(L_q) of every removed weight stays <= epsilon, as Algorithm 1 has it.

        Returns:
            The count.

        Raises:
            ValueError: a negative tolerance, an unknown rule, or no sensitivities on this path.
        """
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be >= 0, got {tolerance}")
        if rule == "error":
            return self._largest_within(tolerance**2 * (1 + 1e-12))
        if rule != "sensitivity":
            raise ValueError(f"unknown rule {rule!r}: accepted are error, sensitivity")
        if self.sensitivities is None or self.rank is None:
            raise ValueError("this method has no sensitivities L_q: use rule='error'")
        # Along an exact path a later weight can be more sensitive than the one after it: the first one above stops.
        order = self.rank.flatten().argsort()[: self.total]
        highest = self.sensitivities.flatten()[order].sqrt().cummax(0).values
        return int((highest <= tolerance).sum())

    def count_for(self, density: float) -> int:
        """How many weights to remove to keep the share ``density`` of them, rounded down to that share.

        Returns:
            The count.

        Raises:
            ValueError: the density is outside 0..1, or lower than what the path's N:M pattern can reach.
        """
        if not 0 <= density <= 1:
            raise ValueError(f"density is the share of weights kept, between 0 and 1; got {density}")
        count = self.removable - int(density * self.removable + 1e-9)
        if count > self.total:
            lowest = 1 - self.total / self.removable
            raise ValueError(f"density {density} is below the {lowest:.4g} that this path's pattern ends at")
        return count

    def at_least(self, count: int) -> int:
        """A count raised to `free`: what is zero already counts as removed."""
        return max(count, self.free)

    def not_all(self, count: int) -> int:
        """A count lowered so that at least one weight is kept."""
        return min(count, max(0, self.removable - 1))

    def sensitivity_threshold(self, count: int) -> float | None:
        """The largest L_q among the ``count`` removed weights (0 for none), None without sensitivities."""
        if self.sensitivities is None:
            return None
        removed = self.sensitivities[~self.kept(count)]
        return float(removed.max()) if len(removed) else 0.0

    def weighted(self, unit_weights: Tensor) -> PruningPath:
        """The layer's path in another currency: the error ``sum_i g_i E_i`` takes the place of ``E = sum_i E_i``.

        A row's own order and its compensation stay as they are; how the rows' removals are merged, and the curve,
        change. Only the ratios of the weights count for the order.

        Args:
            unit_weights: g, float64 ``[out]``. Those below a millionth of their mean are raised to it: what only units
                that nothing depends on would lose is next to nothing.

        Returns:
            The path; `layer_error` is in units of the sum, `measured_error` and the sensitivities in those of E.

        Raises:
            ValueError: g has another shape, is negative or not finite, or this is only part of a path.
        """
        g = unit_weights.double().cpu()
        if g.shape != self.weight.shape[:1] or not bool(g.isfinite().all() and (g >= 0).all()):
            raise ValueError(
                f"unit weights must be {len(self.weight)} finite numbers >= 0; got {tuple(g.shape)} "
                f"from {float(g.min()) if g.numel() else 0:.3g} to {float(g.max()) if g.numel() else 0:.3g}"
            )
        if self.solver is None:
            raise ValueError(f"this {type(self).__name__} was made by no solver: weight the units of a solver's path")
        # The method sees weights around 1, whatever their unit: a power of 4, whose square root rounds nothing.
        largest = float(g.max()) or sys.float_info.min
        equal = bool((g == g[0]).all())
        unit = largest if equal else 4.0 ** math.floor(math.log(largest, 4))
        relative = torch.ones_like(g) if equal else g / unit
        path = self.solver.weighted(self, relative.clamp_min(LEAST_UNIT_WEIGHT * float(relative.mean())))
        path.unit = unit
        return path

    def measured_error(self, weight: Tensor) -> float:
        """Psi's E of any weight for this layer, without damping."""
        return layer_error(weight.double() - self.weight.double(), self.statistics.second_moment)

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor]:
        """Counts and the errors there, made non-decreasing."""
        exact = self._exact_curve()
        if exact is not None:
            return torch.arange(self.total + 1), exact.cummax(0).values
        errors = torch.stack([part.sum() for part in self._measured.values()])
        return torch.tensor(list(self._measured)), errors.cummax(0).values

    @cached_property
    def _measured(self) -> dict[int, Tensor]:
        """`_errors_at` by count, at the knots."""
        solved = self.solved_counts()
        if solved is not None:
            return {count: self._errors_at(count) for count in solved}
        return measured(self._knot_counts(KNOTS), self._errors_at, self._start)

    def _errors_at(self, count: int) -> Tensor:
        """E at a count, float64, in as many parts as are known."""
        return torch.tensor([self.measured_error(self.at(count)[0])], dtype=torch.float64)

    def _knot_counts(self, knots: int) -> list[int]:
        """Where a curve is looked at: nothing happens before the end of the weights that are zero already."""
        start = self._start
        return sorted({0, *(start + count for count in knot_counts(self.total - start, knots, self.everywhere))})

    @property
    def _start(self) -> int:
        """The last count before which nothing is lost; units leave with their weights and the zeros between them."""
        return 0 if self.removes_units else self.free

    def _interpolate(self, counts: Tensor) -> Tensor:
        knots, errors = self._knots
        if len(knots) == self.total + 1:
            return errors[counts]
        return powers_between(knots, errors, counts, self._start)

    def _largest_within(self, error: float) -> int:
        """The largest count with E <= error; between two knots of a measured curve it is searched by bisection."""
        knots, errors = self._knots
        index = int(torch.searchsorted(errors, error, right=True)) - 1
        low = int(knots[index])
        high = int(knots[index + 1]) if index + 1 < len(knots) else low + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.measured_error(self.at(middle)[0]) <= error:
                low = middle
            else:
                high = middle
        return low

    def _check(self, count: int) -> None:
        if not 0 <= count <= self.total:
            raise ValueError(f"count must be between 0 and {self.total}, got {count}")


class RankedPath(PruningPath):
    """A nested path: weights leave in one fixed order, whatever the count.

    Args:
        rank: int32 ``[out, features]``; a weight is removed at ``count`` when its rank is below it. Weights that may
            never be removed have ranks >= ``total``.
        total: how many weights have ranks below it.
        compensate: mask ``[out, features]`` of kept weights that are not zero -> new weight ``[out, d]`` (its other
            entries are ignored); None leaves the kept weights as they are.
        curve: E after every count where the solver knows it, else it is measured.
        removes_units: a unit of which nothing else is left loses its bias too.
    """

    def __init__(
        self,
        weight: Tensor,
        statistics: LayerStatistics,
        rank: Tensor,
        total: int,
        compensate: Callable[[Tensor], Tensor] | None = None,
        curve: Tensor | None = None,
        damping: float = 0.0,
        sensitivities: Tensor | None = None,
        removes_units: bool = False,
    ) -> None:
        super().__init__(weight, statistics, total, damping, sensitivities, rank)
        self.rank: Tensor = rank
        self.removes_units = removes_units
        self._compensate = compensate
        self._curve = curve

    def at(self, count: int) -> tuple[Tensor, Tensor]:
        """Weight and mask with the ``count`` weights of lowest rank removed."""
        return self.with_kept(self.kept(count), count > self.free)

    def with_kept(self, kept: Tensor, compensated: bool = True) -> tuple[Tensor, Tensor]:
        """Weight and mask where every row has lost the first so many of its own order.

        Args:
            kept: bool ``[out, features]``.
            compensated: False where only weights that were zero are gone.

        Returns:
            As `PruningPath.at`.
        """
        bias = self.statistics.bias
        support = kept & ~self.zeros
        compensate = self._compensate if compensated else None
        weight = self.weight.clone() if compensate is None else compensate(support)
        support = with_bias_column(support, bias)
        if self.removes_units:
            support &= kept.any(dim=1, keepdim=True)
        mask = support if self.removes_units else with_bias_column(kept, bias)
        return weight.masked_fill_(~support, 0.0), mask

    def kept(self, count: int) -> Tensor:
        """Ranks that are not below ``count``."""
        self._check(count)
        return self.rank >= count

    def unit_errors(self) -> tuple[Tensor, Tensor]:
        """What every unit has lost and its error at the knots, ``[out, knots]``: that depends on its own row alone."""
        removed = [(~self.kept(count)).sum(1).cpu() for count in self._measured]
        return torch.stack(removed, 1), torch.stack(list(self._measured.values()), 1)

    def _errors_at(self, count: int) -> Tensor:
        change = self.at(count)[0].double() - self.weight.double()
        return unit_errors(change, self.statistics.second_moment).cpu().clamp_min(0.0)

    def _exact_curve(self) -> Tensor | None:
        return self._curve


class SolvedPath(PruningPath):
    """A path without nesting: the method is run anew for every count that is asked for.

    Args:
        solve: count above `free` -> (weight, mask), both ``[out, d]``; the mask keeps none of ``leaving``.
        cheap: gives the counts, from 0 to ``total``, at which ``solve`` has its answer ready; the curve is measured
            there. None: all counts cost the same.
        leaving: bool ``[out, features]``, the zeros that leave first; None: all of them.
    """

    everywhere = SOLVED_EVERYWHERE

    def __init__(
        self,
        weight: Tensor,
        statistics: LayerStatistics,
        total: int,
        solve: Callable[[int], tuple[Tensor, Tensor]],
        damping: float = 0.0,
        cheap: Callable[[], Sequence[int]] | None = None,
        leaving: Tensor | None = None,
    ) -> None:
        super().__init__(weight, statistics, total, damping, cheap=cheap)
        self._solve = solve
        self._leaving = self.zeros if leaving is None else leaving
        self.free = int(self._leaving.sum())

    def at(self, count: int) -> tuple[Tensor, Tensor]:
        """Weight and mask of the method run for this count."""
        self._check(count)
        bias = self.statistics.bias
        if count <= self.free:
            first = (self._leaving.flatten().cumsum(0) <= count).reshape(self._leaving.shape)
            return self.weight.clone(), with_bias_column(~(self._leaving & first), bias)
        weight, mask = self._solve(count)
        return weight.masked_fill(~with_bias_column(~self.zeros, bias), 0.0), mask

    def kept(self, count: int) -> Tensor:
        """The mask of the method run for this count."""
        return self.at(count)[1][:, : self.statistics.features]

    def _exact_curve(self) -> Tensor | None:
        return None


def with_bias_column(kept: Tensor, bias: bool) -> Tensor:
    """A mask over the features extended by the bias's column, which is always kept."""
    return torch.cat([kept, kept.new_ones(len(kept), 1)], dim=1) if bias else kept
