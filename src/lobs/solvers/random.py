"""Random pruning, the paper's weakest baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lobs.base.arguments import check_count
from lobs.calibration.statistics import LayerStatistics
from lobs.solvers.base import Solver
from lobs.solvers.path import PruningPath, RankedPath
from lobs.solvers.ranking import Pattern, rank_by_score


@dataclass(frozen=True)
class Random(Solver):
    """Remove weights in an order drawn from a seed; the others keep their values.

    Args:
        seed: of the order. Layers of different shapes draw different orders from the same seed.
        pattern: N:M, kept of consecutive inputs; in a network's convolutions of consecutive channels.
    """

    line: ClassVar[str] = "weights removed in random order, no compensation"
    by_group: ClassVar[bool] = False
    seed: int = 0
    pattern: str | Pattern | None = None

    def __post_init__(self) -> None:
        check_count("seed", self.seed, 0)

    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """A random order, the same on every device."""
        generator = torch.Generator().manual_seed(self.seed)
        zeros = weight[:, : statistics.features] == 0
        scores = torch.rand(zeros.shape, generator=generator, dtype=torch.float64)
        rank, total = rank_by_score(scores.to(weight.device), zeros, self.pattern)
        return RankedPath(weight, statistics, rank, total)
