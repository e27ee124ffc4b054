"""Magnitude pruning: the criterion of LWC (Han et al. 2015), without its retraining."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lobs.calibration.statistics import LayerStatistics
from lobs.solvers.base import Solver
from lobs.solvers.path import PruningPath, RankedPath
from lobs.solvers.ranking import Pattern, rank_by_score


@dataclass(frozen=True)
class Magnitude(Solver):
    """Remove the smallest |w| of the layer first; the others keep their values.

    Args:
        pattern: N:M, kept of consecutive inputs; in a network's convolutions of consecutive channels.
    """

    line: ClassVar[str] = "smallest absolute weights first, no compensation: the criterion of LWC (Han et al. 2015)"
    by_group: ClassVar[bool] = False
    pattern: str | Pattern | None = None

    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """The order of |w|."""
        values = weight[:, : statistics.features].abs()
        rank, total = rank_by_score(values, values == 0, self.pattern)
        return RankedPath(weight, statistics, rank, total)
