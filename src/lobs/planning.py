"""A network, its statistics and a method, to be asked for many budgets: paths and losses are computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lobs.allocation.budget import Budget, budget_of, most_kept
from lobs.allocation.density_curve import DENSITIES, CurvePoint, curve_point
from lobs.allocation.knapsack import Curve
from lobs.allocation.loss_curves import loss_curves
from lobs.allocation.output_distance import OutputDistance
from lobs.allocation.sharing import MEASURED_IMAGES, Sharing
from lobs.base.arguments import check_names
from lobs.base.execution import Execution
from lobs.base.fingerprint import claim_folder, digest, network_digest
from lobs.base.modes import copy_buffers, outside_modes, same_buffers
from lobs.base.warning import warn
from lobs.calibration.batches import CalibrationBatches
from lobs.calibration.layerwise import first_input, require_repeatable
from lobs.calibration.output_fisher import Sensitivity, output_sensitivity
from lobs.calibration.outputs import output_tensors
from lobs.calibration.statistics import Statistics
from lobs.layers.checks import check_chain, check_layers, independent_copy, lost_any, read_back
from lobs.layers.consumers import Consumer, consumers_of
from lobs.layers.coverage import WORTH_A_WARNING, shown, unpruned_weights, weight_count
from lobs.layers.evaluation import evaluation_mode
from lobs.layers.network import prunable_layers
from lobs.plots import curve_figure
from lobs.registry import CORRECTIONS, GLOBAL_CANDIDATES, unknown_name
from lobs.result import PruneResult
from lobs.schedule.job import Job
from lobs.schedule.paths import PathMaker, check_network
from lobs.schedule.run import refitted
from lobs.schedule.stages import run_in_stages, stage_budgets
from lobs.schedule.way import Way
from lobs.solvers import PruningPath, Solver

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OF_ANOTHER = (
    "the statistics were collected from another network, or from this one before it changed (weights, buffers, modules)"
)


@dataclass(frozen=True)
class Plan:
    """One network to be pruned by one method, to any budget; made by `lobs.plan`.

    Attributes:
        model: the dense network; never changed, unless `prune` is told ``in_place``.
        statistics: of its layers.
        solver: the method.
        names: of the layers to prune, in the order of their calls.
        excluded: of the layers that the caller left out.
        batches: calibration inputs, for what measures the network.
        held_out: others, that the statistics have not seen, for what is compared.
        keep_samples: input vectors kept per layer in sequence; None: as many as the statistics hold.
        execution: how it is carried out; every budget gets a folder of its own in the folder.
    """

    model: nn.Module
    statistics: Statistics
    solver: Solver
    names: list[str]
    excluded: set[str]
    batches: CalibrationBatches | None = None
    held_out: CalibrationBatches | None = None
    keep_samples: int | None = None
    execution: Execution = field(default_factory=Execution)
    _losses: dict[str, Mapping[str, Curve]] = field(default_factory=dict, repr=False)
    _found: list[tuple[str, list[int]]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        check_network(self.model, self.names, self.statistics)
        self._found.append(_state(self.model))
        if self._of_another:
            warn(OF_ANOTHER)

    @property
    def _network(self) -> str:
        """A digest of the model as it was when the plan was made, before anything is pruned in place."""
        return self._found[0][0]

    @property
    def _of_another(self) -> bool:
        """Whether the statistics are known to be another network's."""
        return self.statistics.calls.network not in (None, self._network)

    @cached_property
    @outside_modes
    def paths(self) -> dict[str, PruningPath]:
        """The layers' paths, computed when they are first needed."""
        return self._maker.paths(self.names)

    @outside_modes
    def factorise(self, layers: Iterable[str]) -> int:
        """Compute some layers' paths and keep in the folder what took long: other processes compute the others' there.

        The same plan, made anew anywhere that sees the folder, then reads them.

        Args:
            layers: names or patterns.

        Returns:
            How many of them the folder holds; a method that takes no time keeps nothing.

        Raises:
            ValueError: the plan has no folder, or no such layer.
        """
        if self.execution.place is None:
            raise ValueError("paths are kept in a folder: make the plan with execution=lobs.Execution(folder=...)")
        asked = prunable_layers(self.model, check_names("layers", layers))
        maker, names = self._maker, [name for name in self.names if name in asked]
        for name in self.execution.shown(names):
            maker.path(name)
        return sum(map(maker.holds, names))

    @property
    def _maker(self) -> PathMaker:
        execution = self.execution.inside("paths")
        if execution.place is not None:
            claim_folder(execution.place, {**self._made_from, "method": self.solver, "layers": self.names})
        return PathMaker(self.model, self.statistics, self.solver, execution)

    @cached_property
    @outside_modes
    def sensitivities(self) -> dict[str, Sensitivity]:
        """What an error of every unit costs the network, on the first batches (`output_sensitivity`)."""
        self._check_unchanged()
        if self.batches is None:
            raise ValueError("sensitivities are measured on calibration inputs: give batches=")
        images = cast("Iterable", Sharing(Budget(density=1.0), batches=self.batches).seen_backwards)
        with same_buffers(self.model):
            return output_sensitivity(self.model, images, self.names, progress=self.execution.progress)

    @outside_modes
    def losses(self, allocation: str) -> Mapping[str, Curve]:
        """What every layer's removals cost, as an allocation sees it; computed once, whatever the budget.

        Args:
            allocation: a name in `lobs.registry.ALLOCATIONS` other than ``uniform``.

        Returns:
            Removals and losses by layer.

        Raises:
            ValueError: the allocation has no losses, or needs batches.
        """
        self._check_unchanged()
        if allocation not in self._losses:
            sharing = Sharing(Budget(density=1.0), batches=self.batches)
            images = sharing.seen_backwards if allocation in GLOBAL_CANDIDATES else sharing.images
            with same_buffers(self.model):
                self._losses[allocation] = loss_curves(
                    self.paths, allocation, model=self.model, batches=images, progress=self.execution.progress
                )
        return self._losses[allocation]

    def _with_measured(self, sharing: Sharing) -> Sharing:
        """A shared budget with what is measured once for all budgets."""
        if not sharing.together or all(path.removes_units for path in self.paths.values()):
            return sharing
        if sharing.allocation in ("global", *GLOBAL_CANDIDATES) and self.batches is not None:
            try:
                return replace(sharing, sensitivities=self.sensitivities)
            except ValueError:
                if sharing.allocation != "global":  # which can do without, and says so
                    raise
                return sharing
        return sharing if sharing.allocation == "uniform" else replace(sharing, losses=self.losses(sharing.allocation))

    @outside_modes
    def prune(
        self,
        budget: Budget | None = None,
        *,
        allocation: str = "uniform",
        sequential: bool = False,
        stages: int | Sequence[float] = 1,
        correct: str = "none",
        refit: bool | int = False,
        in_place: bool = False,
        **asked: Any,
    ) -> PruneResult:
        """Prune to one budget; the arguments mean what they mean to `lobs.prune`.

        Args:
            budget: what is left of the network; or its fields as keywords: ``density=0.05``, ``flops=0.3``,
                ``size=50_000``, ``tolerance=0.1``, ``densities={...}``, with ``limits=`` and ``tolerance_rule=``.
            allocation: how it is shared out between the layers.
            sequential: front to back; the plan's paths then only share the budget out.
            stages: how many, or the shares before the last one.
            correct: a correction after pruning.
            refit: of the kept weights, to the dense network's outputs.
            in_place: change the plan's model itself; the plan is then used up.
            asked: the budget's fields.

        Returns:
            As `lobs.prune`; a layer's seconds do not count its path's, which all budgets share.

        Raises:
            ValueError: as `lobs.prune`.
            TypeError: both a budget and fields of one, or a field that no budget has.
        """
        self._check_unchanged()
        sharing = self._with_measured(Sharing(budget_of(budget, asked), allocation, self.batches, self.held_out))
        job = self.job(sharing, Way(sequential, stages, correct, refit), in_place)
        if sharing.together or not sequential:
            job = replace(job, paths=self.paths)
        if job.execution.place is not None:
            call = self.call(job)
            kind = next(iter(sharing.budget.asked))
            job = replace(job, execution=job.execution.inside(f"{kind}-{digest([call])[:12]}"))
            claim_folder(cast("Path", job.execution.place), call)
        return self.carry_out(job, in_place)

    @outside_modes
    def curve(self, densities: Iterable[float] | None = None, allocation: str = "uniform") -> list[CurvePoint]:
        """What densities cost, from the paths alone; with batches also how far the outputs move.

        Args:
            densities: to look at; None: some between 50% and 1%, those that the method can reach.
            allocation: how each is shared out between the layers.

        Returns:
            A point per density, in their order.

        Raises:
            ValueError: a density that was named is out of reach, or the model has changed.
            TypeError: the densities are no list.
        """
        if not (densities is None or isinstance(densities, Iterable)):
            raise TypeError(f"densities must be a list of numbers between 0 and 1, got {densities!r}")
        self._check_unchanged()
        consumers = self._consumers()
        measure = None
        if self.batches is not None:
            measure = OutputDistance(self.model, self.batches.first_images(MEASURED_IMAGES))
        points = []
        for density in self.execution.shown(DENSITIES if densities is None else list(densities)):
            sharing = self._with_measured(Sharing(Budget(density=density), allocation, self.batches, self.held_out))
            try:
                with same_buffers(self.model):
                    decision = sharing.decision(self.model, self.paths, consumers)
            except ValueError:
                if densities is not None:
                    raise
                continue
            points.append(curve_point(self.paths, decision, consumers, measure))
        return points

    def plot(self, densities: Iterable[float] | None = None, allocation: str = "uniform") -> Figure:
        """Error against density, from `curve`.

        Args:
            densities: as for `curve`.
            allocation: as for `curve`.

        Returns:
            A figure of matplotlib: the layers' mean relative error, and with batches the distance of the outputs.

        Raises:
            ImportError: matplotlib is not installed (``pip install 'lobs[plots]'``).
            ValueError: as `curve`.
            TypeError: as `curve`.
        """
        return curve_figure(self.curve(densities, allocation))

    def _check_unchanged(self) -> None:
        if self._found != [_state(self.model)]:
            raise ValueError(
                "this plan's model has changed since (in_place=True, training): its paths are those of the weights "
                "that it had, make a new plan"
            )

    def _consumers(self) -> dict[str, Consumer]:
        modules = prunable_layers(self.model)
        units = all(path.removes_units for path in self.paths.values())
        return consumers_of({name: modules[name] for name in self.names}) if units else {}

    def job(self, sharing: Sharing, way: Way, in_place: bool) -> Job:
        """What is to be done for one budget."""
        if way.correct not in CORRECTIONS:
            raise ValueError(unknown_name("correction", way.correct, CORRECTIONS))
        stages = stage_budgets(sharing.budget, way.stages)
        reason = way.reads_again(len(stages))
        if reason:
            require_repeatable(self.batches, reason)
        if len(stages) > 1 and "loss_curvature" in self.solver.needs:
            raise ValueError(
                f"stages={way.stages!r} measure the network anew without labels, and {type(self.solver).__name__} "
                f"needs the loss's curvature"
            )
        pruned = self.model if in_place and not reason else independent_copy(self.model)
        return Job(
            self.model,
            pruned,
            self.statistics,
            self.solver,
            self.names,
            sharing,
            self.execution,
            sequential=way.sequential,
            stages=stages,
            correct=way.correct,
            refit=way.refit,
            keep_samples=self.keep_samples,
        )

    def carry_out(self, job: Job, in_place: bool) -> PruneResult:
        """Run a job and account for its result."""
        with same_buffers(self.model), same_buffers(job.pruned, but=_BatchNorm):
            if self.solver.units and self.batches is not None:
                check_chain(self.model, first_input(self.model, self.batches), self._consumers())
            result = refitted(job, run_in_stages(job, job.stages))
        if result.model is not self.model:
            copy_buffers(self.model, result.model, but=_BatchNorm)
        if in_place and job.beside:
            self.model.load_state_dict(result.model.state_dict())
            result = replace(result, model=self.model)
        return self._accounted(job, result)

    def call(self, job: Job) -> dict[str, object]:
        """Everything that a job's result depends on, in digests: its folder belongs to that."""
        call = {
            **self._made_from,
            "method": self.solver,
            "layers": self.names,
            "sequential": job.sequential,
            "stages": [str(budget) for budget in job.stages],
            "correct": job.correct,
            "refit": job.refit,
            "keep_samples": self.keep_samples,
            **job.sharing.budget.asked,
            "allocation": job.sharing.allocation,
            # In sequence they only share the budget out, and the method makes its own.
            "paths": None if job.sequential or job.paths is None else _paths_digest(job.paths),
            "losses": digest(part for pair in (job.sharing.losses or {}).values() for part in pair),
        }
        if self.batches is not None and (job.beside or job.sharing.together):
            call["batches"] = self.batches.fingerprint()
            if self.held_out is not None:
                call["held_out"] = self.held_out.fingerprint()
            with torch.no_grad(), evaluation_mode(self.model), same_buffers(self.model):
                call["outputs"] = digest(output_tensors(first_input(self.model, self.batches).run(self.model)))
        return call

    @cached_property
    def _made_from(self) -> dict[str, object]:
        kinds = ("second_moment", "samples", "loss_curvature", "inputs_sample", "zero_fraction")
        layers = [[getattr(layer, kind) for kind in kinds] for layer in self.statistics.values()]
        return {
            "network": self._network,
            "statistics": digest(part for parts in layers for part in parts),
        }

    def _accounted(self, job: Job, result: PruneResult) -> PruneResult:
        """The result with what was left alone and what was decided, once its network is known to be right."""
        zeros = read_back(result.model, result.masks)
        if self.batches is not None:
            with same_buffers(result.model):
                check_layers(result.model, first_input(result.model, self.batches), self.names)
            read_back(result.model, result.masks)  # a forward pass of its own may write to weights
        left = unpruned_weights(result.model, self.names, self.excluded, self.statistics.calls)
        notes = [f"layer {name!r}: {count} of the kept weights are zero" for name, count in zeros.items()]
        if self.solver.units and self.batches is None:
            notes.append(
                "that nothing reads beside the units before it (branches) was not checked, for want of batches"
            )
        asked = job.sharing.budget.density
        if asked and result.density > asked and any(record.kept == 1 for record in result.layers):
            notes.append(f"{result.density:.4g} of the weights are kept, more than {asked:.4g}: every layer keeps one")
        # What was pruned in place has lost them already.
        fewer = asked and result.density < asked and result.model is not self.model
        limits = job.sharing.budget.limits
        sizes = {name: mask.numel() for name, mask in result.masks.items()}
        if asked and fewer and limits and (most := most_kept(limits, sizes)) < int(asked * sum(sizes.values())):
            share = f"{most / sum(sizes.values()):.4g}"
            notes.append(f"the limits allow to keep {share} of the weights, less than the budget of {asked:.4g}")
        if fewer and not lost_any(self.model, result.masks):
            notes.append(f"nothing was removed: only {result.density:.4g} of the weights were not zero before")
        # Whole units, say, or layers of which less was left before; every layer rounds down by less than a weight.
        elif asked and not limits and (asked - result.density) * sum(sizes.values()) > len(sizes) and fewer:
            notes.append(f"{result.density:.4g} of the weights are kept, less than the budget of {asked:.4g}")
        notes = [*([OF_ANOTHER] if self._of_another else []), *result.notes, *notes]
        result = replace(result, unpruned=left, weights=weight_count(result.model), notes=notes)
        if len(job.stages) > 1:
            result = replace(result, stages=[str(budget) for budget in job.stages])
        if job.sharing.together:
            last = job.decisions[-1]
            result = replace(
                result, shared_by=last.shared_by, distance=last.distance, compared_allocations=last.compared
            )
        if self.held_out is not None and (result.compared_allocations or result.refit):
            result = replace(result, held_out=sum(self.held_out.input_counts()))
        unasked = sum(entry.weights for entry in left if not entry.by_choice)
        if unasked > WORTH_A_WARNING * result.weights:
            warn(
                f"{100 * unasked / result.weights:.1f}% of the network's weights were not pruned: "
                f"{shown(entry for entry in left if not entry.by_choice)}; the whole network keeps "
                f"{result.network_density:.4g} of its weights"
            )
        return result


def _state(model: nn.Module) -> tuple[str, list[int]]:
    """Changes when a weight is replaced or written to, also past autograd (``.data``), or a buffer or a module is."""
    weights = [*model.parameters(), *(module.weight for module in prunable_layers(model).values())]
    return network_digest(model), [weight.data_ptr() for weight in weights]


def _paths_digest(paths: Mapping[str, PruningPath]) -> str:
    return digest(
        part
        for name, path in paths.items()
        for part in (name, type(path).__name__, path.total, path.damping, path.weight, path.rank)
    )
