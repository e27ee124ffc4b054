"""Wanda (Sun et al. 2023): magnitudes weighted by the norm of their inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lobs.calibration.statistics import LayerStatistics
from lobs.solvers.base import Solver
from lobs.solvers.path import PruningPath, RankedPath
from lobs.solvers.ranking import Pattern, rank_by_score


@dataclass(frozen=True)
class Wanda(Solver):
    """Remove the smallest |w_ij| sqrt(Psi_jj) first, the same number from every output unit; no compensation.

    sqrt(Psi_jj) is the root mean square of input j; Wanda's norm is that times sqrt(n), the same order.

    Args:
        pattern: N:M, kept of consecutive inputs; in a network's convolutions of consecutive channels.
    """

    line: ClassVar[str] = (
        "|weight| times the input's norm, compared within each output, no compensation (Sun et al. 2023)"
    )
    by_group: ClassVar[bool] = False
    pattern: str | Pattern | None = None

    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """The order of the scores within each row, rows in step."""
        features = statistics.features
        norm = statistics.second_moment.diagonal(dim1=-2, dim2=-1)[..., :features].sqrt()
        if statistics.groups > 1:
            norm = norm.repeat_interleave(len(weight) // statistics.groups, dim=0)
        values = weight[:, :features].abs()
        rank, total = rank_by_score(values * norm, values == 0, self.pattern, per_row=True)
        return RankedPath(weight, statistics, rank, total)
