"""A path on which the errors of a layer's units count differently."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from lobs.solvers.path import PruningPath


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
        self._scaled, self._rows = scaled, rows
        self.removes_units = scaled.removes_units
        self.free = scaled.free
        self.note = scaled.note

    def at(self, count: int) -> tuple[Tensor, Tensor]:
        """Weight and mask at a count, see `PruningPath.at`."""
        weight, mask = self._scaled.at(count)
        # What the method leaves alone stays to the last bit.
        return torch.where(weight == self._scaled.weight, self.weight, (weight / self._rows).to(weight.dtype)), mask

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
        counts, errors = self._scaled._knots
        return counts, self.unit * errors
