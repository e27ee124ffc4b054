"""ApoZ, network trimming (Hu, Peng, Tai & Tang 2016): whole units leave, those first that are most often zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lobs.calibration.statistics import LayerStatistics
from lobs.solvers.base import Solver
from lobs.solvers.path import PruningPath, RankedPath


@dataclass(frozen=True)
class ApoZ(Solver):
    """Remove the units (a convolution's output channels) with the highest average percentage of zeros.

    ApoZ_i is the share of samples (and positions) at which unit i's output is zero after the ReLU. A unit leaves with
    all its weights and its bias, so that it is zero everywhere; `lobs.prune` then also removes the weights that read it
    in the next layer. The network's last layer has no ReLU: none of its units can leave.
    """

    line: ClassVar[str] = (
        "whole units by their share of zero activations, with the weights that read them (Hu et al. 2016)"
    )
    by_group: ClassVar[bool] = False
    units: ClassVar[bool] = True

    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """The order of the units; weights of a unit leave from the first input to the last.

        Returns:
            The path.

        Raises:
            ValueError: the statistics hold no zero fractions.
        """
        zeros = statistics.zero_fraction
        if zeros is None:
            raise ValueError(
                "apoz needs the units' shares of zeros: collect_statistics keeps them, from_samples does not"
            )
        features = statistics.features
        # Units without weights come first: others may be zero everywhere as well, and a removed one must not return.
        gone = ~weight[:, :features].any(1)
        order = zeros.masked_fill(gone, 2.0).argsort(descending=True, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        rank = place[:, None] * features + torch.arange(features, device=order.device)
        total = 0 if statistics.last else weight.shape[0] * features
        return RankedPath(weight, statistics, rank.int(), total, removes_units=True)
