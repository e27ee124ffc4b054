"""Optimal brain damage (LeCun, Denker & Solla 1990): the diagonal of the training loss's Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lobs.calibration.statistics import LayerStatistics
from lobs.solvers.base import Solver
from lobs.solvers.path import PruningPath, RankedPath
from lobs.solvers.ranking import Pattern, rank_by_score


@dataclass(frozen=True)
class OBD(Solver):
    """Remove the smallest saliencies h_qq w_q^2 / 2 first; the others keep their values.

    h_qq is the second derivative of the mean training loss in weight q; at a minimum of the loss the saliency is its
    increase, if the Hessian were diagonal.

    Args:
        pattern: N:M, kept of consecutive inputs; in a network's convolutions of consecutive channels.
    """

    line: ClassVar[str] = (
        "optimal brain damage: the loss's second derivative times the squared weight (LeCun et al. 1990)"
    )
    needs: ClassVar[tuple[str, ...]] = ("loss_curvature",)
    by_group: ClassVar[bool] = False
    pattern: str | Pattern | None = None

    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """The order of the saliencies.

        Returns:
            The path.

        Raises:
            ValueError: the statistics hold no curvature of the loss, or one of another shape.
        """
        curvature = statistics.loss_curvature
        if curvature is None:
            raise ValueError("obd needs the loss's curvature: collect_statistics(model, batches, loss='cross_entropy')")
        if curvature.shape != weight.shape:
            raise ValueError(f"a curvature {tuple(curvature.shape)} does not fit a weight {tuple(weight.shape)}")
        saliency = curvature * weight.double().square() / 2
        features = statistics.features
        rank, total = rank_by_score(saliency[:, :features], weight[:, :features] == 0, self.pattern)
        return RankedPath(weight, statistics, rank, total)
