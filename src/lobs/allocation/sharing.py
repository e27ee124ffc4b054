"""One call's budget and how it is divided: what each layer loses, and whether measuring has helped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from typing import cast

import torch
from torch import Tensor, nn

from lobs.allocation.allocate import allocate
from lobs.allocation.budget import Budget
from lobs.allocation.knapsack import Curve
from lobs.allocation.loss_curves import fisher, fisher_units, resolved
from lobs.allocation.output_distance import OutputDistance
from lobs.allocation.unit_budget import unit_counts
from lobs.base.modes import same_buffers
from lobs.calibration.batches import CalibrationBatches
from lobs.calibration.inputs import answer
from lobs.calibration.layerwise import first_input
from lobs.calibration.output_fisher import Sensitivity, output_sensitivity, sensitivity_note
from lobs.calibration.outputs import fitting_distance
from lobs.layers.consumers import Consumer, drop_columns
from lobs.layers.evaluation import evaluation_mode
from lobs.registry import ALLOCATIONS, GLOBAL_CANDIDATES, MEASURING_ALLOCATIONS, unknown_name
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
        shared_by: the allocation that gave them; never ``global``.
        distance: of the outputs that it looked at: ``kl`` or ``relative``; None where it looked at none.
        unit_weights: what every unit's error counts, by layer, where that orders the weights within the layers.
        compared: distances of the outputs with what ``global`` chose from.
        note: what was decided, where that is worth saying.
        gave_way: whether ``uniform`` took the place of what was asked for.
        uniform: what ``uniform`` would remove within the same budget, where that was compared.
    """

    counts: dict[str, int]
    shared_by: str = "uniform"
    distance: str | None = None
    unit_weights: dict[str, list[float]] | None = None
    compared: dict[str, float] = field(default_factory=dict)
    note: str | None = None
    gave_way: bool = False
    uniform: dict[str, int] = field(default_factory=dict)

    @property
    def doubtful(self) -> bool:
        """Whether what was chosen is barely better than ``uniform``."""
        best = self.compared.get(self.shared_by)
        return best is not None and best > DOUBTFUL * self.compared["uniform"]

    def same_as(self, other: Decision) -> bool:
        """Whether the same weights are removed."""
        return self.counts == other.counts and self.unit_weights == other.unit_weights

    def weighted(self, name: str, path: PruningPath) -> PruningPath:
        """A layer's path in the currency of the decision."""
        if self.unit_weights is None:
            return path
        return path.weighted(torch.tensor(self.unit_weights[name], dtype=torch.float64))


@dataclass(frozen=True)
class Sharing:
    """A budget and how it is divided.

    Attributes:
        budget: what is left of the network.
        allocation: a name in `lobs.registry.ALLOCATIONS`.
        batches: calibration inputs, for allocations that measure.
        held_out: others, to compare what was found on those by; None: these.
        losses: of the layers' paths for this allocation, where they are known already.
        sensitivities: of the layers' units, likewise.

    Raises:
        ValueError: an unknown allocation.
    """

    budget: Budget
    allocation: str = "uniform"
    batches: CalibrationBatches | None = None
    held_out: CalibrationBatches | None = None
    losses: Mapping[str, Curve] | None = None
    sensitivities: Mapping[str, Sensitivity] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.allocation, str) or self.allocation not in ALLOCATIONS:
            raise ValueError(unknown_name("allocation", self.allocation, ALLOCATIONS))
        if self.losses is not None and self.allocation in ("global", "fisher_units"):
            raise ValueError(f"losses= belong to one order of the weights, and {self.allocation!r} looks at others")

    @property
    def together(self) -> bool:
        """Whether what a layer loses depends on the other layers."""
        budget = self.budget
        return budget.divisible and (budget.density is None or self.allocation != "uniform" or bool(budget.limits))

    @cached_property
    def images(self) -> CalibrationBatches | None:
        """The calibration inputs that are measured on."""
        return None if self.batches is None else self.batches.first_images(MEASURED_IMAGES)

    @cached_property
    def seen_backwards(self) -> CalibrationBatches | None:
        """The inputs whose gradients are taken: half of them, so that sharing out costs no more than collecting."""
        if self.batches is None:
            return None
        return self.batches.first_images(min(MEASURED_IMAGES, sum(self.batches.input_counts()) // 2))

    @cached_property
    def compared_on(self) -> CalibrationBatches | None:
        """The inputs by which candidates are compared."""
        return self.images if self.held_out is None else self.held_out.first_images(MEASURED_IMAGES)

    def count(self, name: str, path: PruningPath) -> int:
        """How many weights one layer loses where that does not depend on the others."""
        return allocate({name: path}, self.budget.of_layer(name))[name]

    def decision(
        self,
        model: nn.Module,
        paths: Mapping[str, PruningPath],
        consumers: Mapping[str, Consumer],
        progress: Callable[[Iterable], Iterable] | None = None,
        dense: nn.Module | None = None,
    ) -> Decision:
        """How many weights each layer loses.

        Args:
            model: the network that the paths start from.
            paths: of all layers.
            consumers: of the layers' units, where whole units are removed; empty where weights are.
            progress: wraps the iterable of what takes long.
            dense: the network whose outputs count; None: ``model``.

        Returns:
            The counts; with batches ``global`` has compared what it chose from.

        Raises:
            ValueError: whole units are removed and the budget is no density alone, or what `allocate` raises.
        """
        if consumers:
            if self.budget.density is None or self.budget.limits:
                raise ValueError("a method that removes whole units takes a density alone: no other budget, no limits")
            return Decision(unit_counts(paths, consumers, self.budget.density))
        if not self.together:
            return self._by("uniform", model, paths)[0]
        if self.allocation == "global" and self.batches is not None:
            return self._best(model, paths, model if dense is None else dense)
        decision, _ = self._by(resolved(self.allocation, self.batches is not None), model, paths, progress)
        if decision.shared_by in MEASURING_ALLOCATIONS and self.images is not None:
            return replace(decision, distance=outputs_distance(model, self.images))
        return decision

    def _by(
        self,
        allocation: str,
        model: nn.Module,
        paths: Mapping[str, PruningPath],
        progress: Callable[[Iterable], Iterable] | None = None,
    ) -> tuple[Decision, Mapping[str, PruningPath]]:
        """The decision of one allocation, and the paths that it is about."""
        unit_weights = note = None
        losses = self.losses if allocation == self.allocation else None
        if allocation in GLOBAL_CANDIDATES and self.images is not None and losses is None:
            seen = cast("Iterable", self.seen_backwards)
            found = self.sensitivities or output_sensitivity(model, seen, list(paths))
            note = sensitivity_note(found)
            if allocation == "fisher_units":
                unit_weights = {name: found[name].together.tolist() for name in paths}
                paths = {name: path.weighted(found[name].together) for name, path in paths.items()}
            losses = fisher_units(paths) if unit_weights else fisher(paths, found, allocation == "fisher_summed")
        images = None if allocation == "uniform" else self.images
        counts = allocate(paths, self.budget, allocation, losses=losses, model=model, batches=images, progress=progress)
        return Decision(counts, allocation, unit_weights=unit_weights, note=note), paths

    def _best(self, model: nn.Module, paths: Mapping[str, PruningPath], dense: nn.Module) -> Decision:
        """The candidate whose network, pruned in one go, has the outputs nearest to the dense one's."""
        candidates: tuple[str, ...] = GLOBAL_CANDIDATES
        sharing, notes = self, list[str]()
        if self.sensitivities is None:
            try:
                found = output_sensitivity(model, cast("Iterable", self.seen_backwards), list(paths))
                sharing = replace(self, sensitivities=found)
            except ValueError as error:
                candidates = ("relative",)
                notes.append(f"allocation='global' knew no gradients: {error}")
        tried = {name: sharing._by(name, model, paths) for name in (*candidates, "uniform")}
        first, _ = tried[candidates[0]]
        notes += [first.note] if first.note else []
        if any(isinstance(path, RecomputedPath) for path in paths.values()):
            unseen = f"allocation='global' took {first.shared_by!r} unseen: the paths do not fit into memory"
            distance = outputs_distance(model, cast("CalibrationBatches", self.images))
            return replace(first, distance=distance, note="; ".join([unseen, *notes]))
        measure = OutputDistance(dense, cast("CalibrationBatches", self.compared_on))
        compared: dict[str, float] = {}
        for name, (decision, chosen) in tried.items():
            same = next((other for other in compared if tried[other][0].same_as(decision)), None)
            if same is not None:
                compared[name] = compared[same]
                continue
            weights = {layer: path.at(decision.counts[layer])[0] for layer, path in chosen.items()}
            compared[name] = measure.with_weights(weights)
        best = min(tried, key=compared.__getitem__)
        gave_way = best == "uniform"
        if gave_way:
            notes.insert(0, fallback_note(min(compared[name] for name in candidates), compared[best]))
        if not isfinite(compared[best]):
            notes.insert(0, f"allocation='global' took {best!r} unseen: every candidate's outputs are infinitely far")
        return replace(
            tried[best][0],
            distance=measure.distance,
            compared=compared,
            note="; ".join(notes) or None,
            gave_way=gave_way,
            uniform=tried["uniform"][0].counts,
        )


def outputs_distance(model: nn.Module, batches: CalibrationBatches) -> str:
    """The distance that fits a network's outputs (`lobs.calibration.outputs.fitting_distance`)."""
    with torch.no_grad(), evaluation_mode(model), same_buffers(model):
        return fitting_distance(answer(model, first_input(model, batches), "a batch"), batches.first())


def fallback_note(ours: float, theirs: float) -> str:
    """The note where measured shares are no better than uniform ones."""
    return f"allocation='global' gave way to 'uniform': distance of the outputs {ours:.3g}, with uniform {theirs:.3g}"


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
