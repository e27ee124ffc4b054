"""One path for all groups of a grouped convolution, which share nothing but the count.

The layer is block-diagonal: its error is the sum of the groups' errors, and every group has a path of its own. The
layer's order takes the group whose next removal is cheapest, as the method would on the block-diagonal matrix: by the
sensitivities L_q where it has them, else by what a removal adds to its group's error. Where costs do not rise along a
group's path, the largest so far counts. Weights that are zero already leave before all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from lobs.calibration.statistics import LayerStatistics
from lobs.solvers.curve import SOLVED_EVERYWHERE
from lobs.solvers.path import PruningPath
from lobs.solvers.ranking import ranks_of_order


class GroupedPath(PruningPath):
    """The paths of a layer's groups merged; `damping` is the mean of theirs.

    Args:
        weight: ``[out, d]``, the groups' rows one after the other.
        statistics: of the layer, with ``second_moment`` ``[groups, d, d]``.
        paths: of the groups, in their order.
    """

    def __init__(self, weight: Tensor, statistics: LayerStatistics, paths: Sequence[PruningPath]) -> None:
        self._paths = list(paths)
        self._totals = torch.tensor([path.total for path in paths])
        sensitivities = [path.sensitivities for path in paths if path.sensitivities is not None]
        super().__init__(
            weight,
            statistics,
            int(self._totals.sum()),
            sum(path.damping for path in paths) / len(paths),
            torch.cat(sensitivities) if len(sensitivities) == len(paths) else None,
        )
        self.note = next((path.note for path in paths if path.note), None)
        states = [path.state for path in paths if path.state is not None]
        if len(states) == len(paths):
            self.state = {f"{index}/{key}": state[key] for index, state in enumerate(states) for key in state}
        if all(path.rank is not None for path in paths):
            self.rank = self._merged_rank()

    def at(self, count: int) -> tuple[Tensor, Tensor]:
        """Weight and mask with exactly ``count`` weights removed, see `PruningPath.at`."""
        parts = [path.at(own) for path, own in zip(self._paths, self.group_counts(count), strict=True)]
        return torch.cat([weight for weight, _ in parts]), torch.cat([mask for _, mask in parts])

    def kept(self, count: int) -> Tensor:
        """The groups' masks, one after the other."""
        return torch.cat([path.kept(own) for path, own in zip(self._paths, self.group_counts(count), strict=True)])

    def group_counts(self, count: int) -> list[int]:
        """How many of the layer's first ``count`` removals fall to each group."""
        self._check(count)
        return torch.bincount(self._groups[:count], minlength=len(self._paths)).tolist()

    @cached_property
    def _order(self) -> Tensor:
        """The layer's order of all removals, as places in the groups' own orders laid end to end."""
        return torch.cat([_costs(path) for path in self._paths]).argsort(stable=True)

    @cached_property
    def _groups(self) -> Tensor:
        """The group that each of the layer's removals falls to."""
        return torch.repeat_interleave(self._totals)[self._order]

    def _merged_rank(self) -> Tensor:
        """The groups' ranks in the layer's order; weights that never leave come after all others."""
        places = ranks_of_order(self._order).split(self._totals.tolist())
        ranks, last = [], self.total
        for path, place in zip(self._paths, places, strict=True):
            assert path.rank is not None
            own = path.rank.flatten().cpu()
            stays = own >= path.total
            merged = own - path.total + last
            merged[~stays] = place[own[~stays].long()]
            last += int(stays.sum())
            ranks.append(merged.reshape(path.rank.shape))
        return torch.cat(ranks).int().to(self.weight.device)

    def _exact_curve(self) -> Tensor | None:
        """The sum of the groups' errors where these are known at every count, or few enough to be measured."""
        curves = []
        for path in self._paths:
            curve = path._exact_curve()
            if curve is None:
                if path.total > SOLVED_EVERYWHERE:
                    return None
                errors = [path.measured_error(path.at(count)[0]) for count in range(path.total + 1)]
                curve = torch.tensor(errors, dtype=torch.float64)
            curves.append(curve)
        increments = torch.cat([curve.diff() for curve in curves])[self._order]
        return torch.cat([increments.new_zeros(1), increments.cumsum(0)])


def _costs(path: PruningPath) -> Tensor:
    """What each removal of a path costs, non-decreasing, on the CPU; -1 where it costs nothing."""
    if path.sensitivities is None or path.rank is None:
        costs = path.layer_error().diff()
    else:
        order = path.rank.flatten().argsort()[: path.total]
        costs = path.sensitivities.flatten()[order].double().cpu()
    costs = costs.cummax(0).values if len(costs) else costs
    costs[: path.free] = -1.0
    return costs
