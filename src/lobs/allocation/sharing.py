"""One call's budget and how it is divided: what each layer loses, and whether measuring has helped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from lobs.allocation.allocate import allocate
from lobs.allocation.budget import Budget
from lobs.allocation.knapsack import Curve
from lobs.allocation.loss_curves import loss_curves, resolved
from lobs.allocation.output_distance import OutputDistance
from lobs.allocation.unit_budget import unit_counts
from lobs.base.evaluation_mode import evaluation_mode, same_buffers
from lobs.calibration.batches import CalibrationBatches
from lobs.calibration.layerwise import first_input
from lobs.calibration.outputs import fitting_distance
from lobs.layers.consumers import Consumer, drop_columns
from lobs.registry import ALLOCATIONS, MEASURING_ALLOCATIONS, unknown_name
from lobs.solvers.path import PruningPath
from lobs.solvers.recomputed import RecomputedPath, whole

# Calibration inputs that the measuring allocations look at, rounded up to whole batches.
MEASURED_IMAGES = 2000
# Shares that bring the outputs no nearer than by this factor on the dense network's inputs may do harm in sequence.
DOUBTFUL = 0.5


@dataclass(frozen=True)
class Decision:
    """How many weights each layer loses, and how that was decided.

    Attributes:
        counts: removals by layer.
        ratio: of the distances of the outputs, those with ``global`` over those with ``uniform``; None where nothing
            was compared.
        note: what was decided, where that is worth saying.
        gave_way: whether ``uniform`` took the place of ``global``.
    """

    counts: dict[str, int]
    ratio: float | None = None
    note: str | None = None
    gave_way: bool = False

    @property
    def doubtful(self) -> bool:
        """Whether the measured allocation is barely better than the uniform one."""
        return self.ratio is not None and self.ratio > DOUBTFUL


@dataclass(frozen=True)
class Sharing:
    """A budget and how it is divided.

    Attributes:
        budget: what is left of the network.
        allocation: a name in `lobs.registry.ALLOCATIONS`.
        batches: calibration inputs, for allocations that measure.
        losses: of the layers' paths for this allocation, where they are known already.

    Raises:
        ValueError: an unknown allocation.
    """

    budget: Budget
    allocation: str = "uniform"
    batches: CalibrationBatches | None = None
    losses: Mapping[str, Curve] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.allocation, str) or self.allocation not in ALLOCATIONS:
            raise ValueError(unknown_name("allocation", self.allocation, ALLOCATIONS))

    @property
    def together(self) -> bool:
        """Whether what a layer loses depends on the other layers."""
        budget = self.budget
        return budget.divisible and (budget.density is None or self.allocation != "uniform" or bool(budget.limits))

    @cached_property
    def images(self) -> CalibrationBatches | None:
        """The calibration inputs that are measured on."""
        return None if self.batches is None else self.batches.first_images(MEASURED_IMAGES)

    def count(self, name: str, path: PruningPath) -> int:
        """How many weights one layer loses where that does not depend on the others."""
        return allocate({name: path}, self.budget.of_layer(name))[name]

    def decision(
        self,
        model: nn.Module,
        paths: Mapping[str, PruningPath],
        consumers: Mapping[str, Consumer],
        progress: Callable[[Iterable], Iterable] | None = None,
    ) -> Decision:
        """How many weights each layer loses.

        Args:
            model: the dense network.
            paths: of all layers.
            consumers: of the layers' units, where whole units are removed; empty where weights are.
            progress: wraps the iterable of what takes long.

        Returns:
            The counts; those of ``global`` have been compared with those of ``uniform``.

        Raises:
            ValueError: whole units are removed and the budget is no density alone, or what `allocate` raises.
        """
        if consumers:
            if self.budget.density is None or self.budget.limits:
                raise ValueError("a method that removes whole units takes a density alone: no other budget, no limits")
            return Decision(unit_counts(paths, consumers, self.budget.density))
        counts = self._shared(model, paths, self.allocation, progress)
        return self._compared(model, paths, counts) if self.together else Decision(counts)

    def _shared(
        self,
        model: nn.Module,
        paths: Mapping[str, PruningPath],
        allocation: str,
        progress: Callable[[Iterable], Iterable] | None = None,
    ) -> dict[str, int]:
        measured = allocation != "uniform"
        return allocate(
            paths,
            self.budget,
            allocation,
            losses=self.losses if measured else None,
            model=model,
            batches=self.images if measured else None,
            progress=progress,
        )

    def _compared(self, model: nn.Module, paths: Mapping[str, PruningPath], counts: dict[str, int]) -> Decision:
        """The counts of ``global`` beside those of ``uniform``, both measured on the network pruned in one go."""
        if self.allocation != "global" or self.batches is None:
            return Decision(counts)
        if any(isinstance(path, RecomputedPath) for path in paths.values()):
            note = "allocation='global' was not compared with 'uniform': the paths do not fit into memory"
            return Decision(counts, note=note)
        even = self._shared(model, paths, "uniform")
        if even == counts:
            return Decision(counts, 1.0)
        measure = OutputDistance(model, cast("CalibrationBatches", self.images))
        ours, theirs = (
            measure.with_weights({name: path.at(chosen[name])[0] for name, path in paths.items()})
            for chosen in (counts, even)
        )
        if ours <= theirs:
            return Decision(counts, ours / theirs if theirs else 1.0)
        return Decision(even, 1.0, fallback_note(ours, theirs), gave_way=True)

    def chosen(self, model: nn.Module, gave_way: bool) -> tuple[str, str | None]:
        """What shared the budget out in the end, and by which distance of the outputs.

        Args:
            model: the dense network.
            gave_way: whether ``uniform`` took the place of ``global``.

        Returns:
            An allocation that is no alias, and ``kl``, ``relative`` or None.
        """
        shared_by = "uniform" if gave_way else resolved(self.allocation, self.batches is not None)
        if self.batches is None or not (self.allocation == "global" or shared_by in MEASURING_ALLOCATIONS):
            return shared_by, None
        with torch.no_grad(), evaluation_mode(model), same_buffers(model):
            return shared_by, fitting_distance(model(first_input(model, self.batches)), self.batches.first())


def fallback_note(ours: float, theirs: float) -> str:
    """The note where measured shares are no better than uniform ones."""
    return f"allocation='global' gave way to 'uniform': distance of the outputs {ours:.3g}, with uniform {theirs:.3g}"


def shared_losses(
    model: nn.Module,
    paths: Mapping[str, PruningPath],
    allocation: str,
    batches: CalibrationBatches | None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> dict[str, Curve] | None:
    """The layers' losses for an allocation, the same for every budget (`Sharing.losses`).

    Args:
        model: the dense network.
        paths: of all layers.
        allocation: a name in `lobs.registry.ALLOCATIONS`.
        batches: calibration inputs, of which the first `MEASURED_IMAGES` count; None: none are looked at.
        progress: wraps the iterable of the layers that are measured.

    Returns:
        Removals and losses by layer; None where no budget is shared out by them: ``uniform``, or whole units removed.
    """
    if allocation == "uniform" or all(path.removes_units for path in paths.values()):
        return None
    images = None if batches is None else batches.first_images(MEASURED_IMAGES)
    return loss_curves(paths, allocation, model=model, batches=images, progress=progress)


def solved(
    paths: Mapping[str, PruningPath], counts: Mapping[str, int], consumers: Mapping[str, Consumer]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Weight and mask of every layer at its count; what reads units that are gone leaves with them.

    Args:
        paths: of the layers.
        counts: removals by layer.
        consumers: of the layers' units; empty where single weights are removed.

    Returns:
        By layer.
    """
    found = {name: whole(path).at(counts[name]) for name, path in paths.items()}
    if consumers:
        weights, masks = ({name: pair[index] for name, pair in found.items()} for index in (0, 1))
        drop_columns(weights, masks, consumers)
    return found
