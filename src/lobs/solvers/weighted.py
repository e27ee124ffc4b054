"""A path on which the errors of a layer's units count differently."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lobs.solvers.curve import KNOTS, powers_between
from lobs.solvers.path import PruningPath, RankedPath

# Of so many units errors are off by 1% (median, LeNet-300-100) where each is read between its own knots; of 10 by 6%.
MANY_UNITS = 64


class WeightedPath(PruningPath):
    """A layer's weights in the order that the method found for ``D W``, ``D = diag(scale)``.

    The curve is that of ``unit sum_i scale_i^2 E_i``; `measured_error` stays the plain E.

    Args:
        plain: the layer's path without weights.
        scaled: the path that the same method found for the rows of W times their scale.
        scale: ``[out]``, all above 0.

    Attributes:
        unit: of the curve.
    """

    unit: float = 1.0

    def __init__(self, plain: PruningPath, scaled: PruningPath, scale: Tensor) -> None:
        rows = scale[:, None]
        sensitivities = None if scaled.sensitivities is None else scaled.sensitivities / rows.square()
        super().__init__(plain.weight, plain.statistics, scaled.total, scaled.damping, sensitivities, scaled.rank)
        self._plain, self._scaled, self._rows = plain, scaled, rows
        self.removes_units = scaled.removes_units
        self.free, self.everywhere = scaled.free, scaled.everywhere
        self.note = scaled.note

    def at(self, count: int) -> tuple[Tensor, Tensor]:
        """Weight and mask at a count, see `PruningPath.at`."""
        if isinstance(self._plain, RankedPath):
            return self._plain.with_kept(self.kept(count), count > self.free)
        weight, mask = self._scaled.at(count)
        # What the method leaves alone stays to the last bit.
        solved = (weight / self._rows).to(self.weight.dtype)
        return torch.where(weight == self._scaled.weight, self.weight, solved), mask

    def kept(self, count: int) -> Tensor:
        """The mask alone, likewise."""
        return self._scaled.kept(count)

    def solved_counts(self) -> list[int] | None:
        """As of the path for the scaled rows."""
        return self._scaled.solved_counts()

    def _largest_within(self, error: float) -> int:
        return self._scaled._largest_within(error / self.unit)

    def _exact_curve(self) -> Tensor | None:
        curve = self._scaled._exact_curve()
        return None if curve is None else self.unit * curve

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor]:
        plain, scaled = self._plain, self._scaled
        if not isinstance(plain, RankedPath) or len(self.weight) < MANY_UNITS or scaled._exact_curve() is not None:
            counts, errors = scaled._knots
            return counts, self.unit * errors
        # Other knots, the same rows: what they lose is read between their own knots, and nothing is measured again.
        knots = scaled._knot_counts(4 * KNOTS)
        removed = torch.stack([(~self.kept(count)).sum(1) for count in knots], 1).cpu()
        start = 0 if self.removes_units else self.zeros.sum(1, keepdim=True).cpu()
        errors = powers_between(*plain.unit_errors(), removed, start)
        weights = self.unit * self._rows.square().double().cpu()
        return torch.tensor(knots), (weights * errors).sum(0).cummax(0).values
