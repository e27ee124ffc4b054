"""Pruning a network: what the caller asks for becomes a plan and a job, and the job is carried out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from lobs.allocation.budget import Budget, Limits
from lobs.allocation.knapsack import Curve
from lobs.allocation.sharing import Sharing
from lobs.base.arguments import check_module, check_names, check_number
from lobs.base.execution import Execution
from lobs.base.fingerprint import claim_folder
from lobs.base.modes import outside_modes
from lobs.base.network_inputs import Call, Output
from lobs.calibration.batches import calibration_batches, called_batches, whole_where_dependent
from lobs.calibration.collect import collect_statistics
from lobs.calibration.layerwise import require_repeatable
from lobs.calibration.statistics import Statistics
from lobs.planning import Plan
from lobs.registry import CORRECTIONS, METHODS, unknown_name
from lobs.result import LayerRecord, PruneResult
from lobs.schedule.paths import PathMaker, layers_with_statistics, selected
from lobs.schedule.stages import STAGES, stage_budgets
from lobs.schedule.way import Way
from lobs.solvers import PruningPath, Solver, make
from lobs.solvers.exact_obs import ExactOBS

__all__ = ["LayerRecord", "PruneResult", "layer_paths", "methods", "plan", "prune"]

# The method where none is said: the least error that a layer can be left with by removing one weight after another.
BEST = ExactOBS(group_size="auto")


def methods() -> dict[str, str]:
    """The pruning methods by name, with one line each."""
    return {name: method.line for name, method in METHODS.items()}


@outside_modes
def prune(
    model: nn.Module,
    statistics: Statistics | None = None,
    method: str | Solver | None = None,
    *,
    density: float | None = None,
    tolerance: float | None = None,
    densities: Mapping[str, float] | None = None,
    flops: float | None = None,
    size: int | None = None,
    allocation: str | None = None,
    limits: Limits | None = None,
    tolerance_rule: str = "error",
    layers: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    paths: Mapping[str, PruningPath] | None = None,
    losses: Mapping[str, Curve] | None = None,
    sequential: bool | None = None,
    stages: int | Sequence[float] | None = None,
    batches: Iterable | None = None,
    held_out: Iterable | None = None,
    keep_samples: int | None = None,
    correct: str = "none",
    refit: bool | int | None = None,
    in_place: bool = False,
    progress: Callable[[Iterable], Iterable] | None = None,
    memory: float | None = None,
    folder: str | Path | None = None,
    call: Call | None = None,
    output: Output | None = None,
) -> PruneResult:
    """Prune a network's layers from calibration data, without labels and without retraining.

    Without a ``method`` it is done as well as we know: ``exact_obs``, ``allocation="global"`` (without batches that is
    ``relative``) and, where there are batches that can be read again, in sequence, in stages and with a refit. What is
    said stands; whatever had to be left out is in the result's notes. With a ``method`` that alone is done: what is
    not said is ``uniform`` and off.

    Args:
        model: the trained network; left untouched unless ``in_place``.
        statistics: from `collect_statistics` on the same network; None collects them from ``batches``.
        method: a name from `methods` or a solver object (`lobs.solvers.make(name, **options)`); None: the best, and
            with it the best of everything that is not said. Layers too wide for ``exact_obs`` are done in groups.
        density: share of weights kept, 0 to 1; exactly one of density, tolerance, densities, flops and size is given.
        tolerance: the paper's epsilon, per layer. In sequence it counts what the layer's own removals add.
        densities: a density for each layer by name.
        flops: share of the layers' multiply-adds kept, 0 to 1 (`lobs.Budget`).
        size: bytes of a sparse file, biases included (likewise).
        allocation: how density, flops or size are shared out between layers (`lobs.registry.ALLOCATIONS`); on the dense
            network, in sequence too. Those that measure use the first 2,000 of ``batches``. ``global``
            chooses from ``fisher``, ``fisher_summed``, ``fisher_units`` and ``uniform`` by the outputs on held-out
            inputs, with a warning where that is ``uniform``.
        limits: (least, most) density by layer name or pattern: ``{"fc3": (0.05, 1.0)}`` keeps at least 5% of it. A
            layer that no limit names keeps at least one weight, unless the budget itself is 0.
        tolerance_rule: ``"error"``: the accumulated sqrt(E) stays <= tolerance; ``"sensitivity"``: every removed
            weight's sqrt(L_q) does, as in Algorithm 1.
        layers: names or patterns of the layers to prune; None takes all that have statistics.
        exclude: names or patterns of layers among them that stay dense; they do not count in the budget.
        paths: from `layer_paths`, to reuse one factorisation for many budgets; ``method`` is then ignored. In sequence
            they only share the budget out.
        losses: of these paths, from `lobs.allocation.loss_curves.loss_curves` for this allocation, to share out many
            budgets by them.
        sequential: front to back, each layer's inputs from the network pruned so far and the dense network's outputs
            as target (`lobs.schedule.sequential`).
        stages: prune to the budget over looser ones, measuring the network anew each time
            (`lobs.schedule.stages`): how many, each twice as loose as the next (those of 1 and more fall away), or the
            shares before the last one. With a density or flops.
        batches: of calibration inputs, of the kinds that `collect_statistics` takes, for whatever measures the network.
            They are read once and kept where they fit into memory; else they must be the same each time they are
            iterated, which is checked.
        held_out: more of them, which ``statistics`` have not seen: what ``global`` chooses from is compared by them,
            and a refit stops by them. None: where this call collects the statistics, a sixth of ``batches``
            where one of both is wanted; else what is compared has been seen.
        keep_samples: input vectors to keep per layer where this call collects them (Net-Trim needs some); None: as
            many as ``statistics`` hold.
        correct: a correction after pruning (`lobs.correct`): ``none``, ``bias``, ``batch_norm``, ``both``, ``auto``.
        refit: afterwards move the kept weights, so that the outputs are nearer to the dense network's (`lobs.refit`);
            a number: in so many minibatches.
        in_place: change the model itself, to save memory (sequential pruning and corrections still need a copy). Where
            a layer cannot be pruned, those before it are already.
        progress: wraps the iterable of layer names.
        memory: ceiling in bytes on what is kept of many layers at once; None: what is available, less a margin. It
            covers the paths that a shared budget looks at together (their second moments, factors and weights: those
            that do not fit are computed twice), the statistics that this call collects, and in sequence the inputs that
            wait before a layer (where they do not fit, every layer is reached from the network's start; a note says
            so). One layer's own matrices always have to fit; without a shared budget layers go one by one. Results
            do not depend on it, but for ``global``, which compares nothing where paths do not fit, and notes it.
        folder: what took long (a path's order, a budget's shares, a layer pruned in sequence) is written here as soon
            as it is finished, and read where it lies here already: the same call made again after an interruption
            goes on where it stopped. A folder belongs to one call: another one's is refused.
        call: for batches of any other kind: a function of the network and a batch (moved to the network's device),
            which gives the outputs. Such batches stay whole: what is held out are the last ones.
        output: what of the outputs is compared: a function of them, a key or attribute's name, or an index; None: all
            tensors of floating point in them.

    Returns:
        The pruned network, its masks, a record per layer, and an account of what was left alone. A weight that is zero
        in ``model`` was removed before: it stays zero and counts as removed.

    Raises:
        ValueError: not exactly one budget, a value out of range, an unknown name, statistics that do not fit, batches
            that are missing, empty or used up, a folder of another call, or a network that cannot be pruned right: a
            layer whose weight is computed from others, shared in another way or not all it computes with.
        TypeError: ``model`` is not a module or ``statistics`` not `Statistics`.
    """
    check_module(model)
    budget = Budget(density, tolerance, densities, flops, size, limits, tolerance_rule)
    execution = Execution(memory, folder, progress)
    if correct not in CORRECTIONS:
        raise ValueError(unknown_name("correction", correct, CORRECTIONS))
    batches, held_out = (called_batches(given, model, call, output) for given in (batches, held_out))
    best = method is None and paths is None
    if held_out is not None and batches is None:
        raise ValueError("held_out= are further inputs beside batches=, and there are none")
    again = best and batches is not None and not isinstance(batches, Iterator)
    staged = again and budget.divisible and budget.size is None
    way = Way(
        sequential=again if sequential is None else sequential,
        stages=(STAGES if staged else 1) if stages is None else stages,
        correct=correct,
        refit=(None if again else False) if refit is None else refit,
    )
    sharing = Sharing(budget, ("global" if best else "uniform") if allocation is None else allocation, losses=losses)
    reason = way.reads_again(len(stage_budgets(budget, way.stages)))
    if reason:
        batches = require_repeatable(batches, reason, memory)
    compares = (sharing.allocation == "global" and sharing.together) or way.refit is not False
    # Statistics alone take one reading, of which nothing but the first batch is kept.
    several = reason is not None or sharing.together or folder is not None
    planned = _planned(
        model,
        statistics,
        BEST if method is None else method,
        layers if paths is None else list(paths),
        exclude,
        batches,
        keep_samples,
        execution,
        several,
        compares if held_out is None else held_out,
    )
    job = planned.job(replace(sharing, batches=planned.batches, held_out=planned.held_out), way, in_place)
    job = replace(job, paths=None if paths is None else {name: paths[name] for name in planned.names})
    if execution.place is not None:
        claim_folder(execution.place, planned.call(job))
    result = planned.carry_out(job, in_place)
    left_out = []
    if best and not again:
        without = "batches" if batches is None else "batches that can be read again"
        left_out.append(f"without {without}: one shot, in one stage, not refitted")
    elif best and not staged and stages is None:
        left_out.append(f"in one stage: stages go with a density or flops, not with {budget}")
    if several and planned.batches is not None and planned.batches.whole:
        left_out.append(
            "the outputs for a batch's last inputs are others without the rest of it (time along the first axis, or "
            "statistics of the batch): batches stay whole, and what is held out are the last ones"
        )
    return replace(result, notes=[*result.notes, *left_out])


@outside_modes
def plan(
    model: nn.Module,
    statistics: Statistics | None = None,
    method: str | Solver = BEST,
    *,
    layers: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    batches: Iterable | None = None,
    held_out: Iterable | bool | None = None,
    keep_samples: int | None = None,
    execution: Execution | None = None,
    call: Call | None = None,
    output: Output | None = None,
) -> Plan:
    """Look at a network once, to prune it to many budgets: ``plan(...).prune(density=0.05)``, ``.curve()``.

    Args:
        model: the trained network; it must stay as it is while the plan is used.
        statistics: from `collect_statistics` on the same network; None collects them from ``batches``.
        method: a name from `methods` or a solver object (`lobs.solvers.make(name, **options)`).
        layers: names or patterns of the layers to prune; None takes all that have statistics.
        exclude: names or patterns of layers among them that stay dense; they do not count in the budget.
        batches: of calibration inputs, see `prune`.
        held_out: more of them, which ``statistics`` have not seen, for what is compared; True: a sixth of
            ``batches``, where the statistics are collected here; None: what is compared has been seen.
        keep_samples: input vectors to keep per layer where this call collects them (Net-Trim needs some).
        execution: memory, folder and progress.
        call: runs the network on a batch, see `prune`.
        output: what of the outputs is compared, see `prune`.

    Returns:
        The plan; paths are computed when they are first needed.

    Raises:
        ValueError: as `prune`.
        TypeError: as `prune`.
    """
    if not (execution is None or isinstance(execution, Execution)):
        raise TypeError(f"execution must be a lobs.Execution, got {execution!r}")
    execution = Execution() if execution is None else execution
    batches = called_batches(batches, model, call, output)
    held_out = held_out if isinstance(held_out, bool) else called_batches(held_out, model, call, output)
    return _planned(model, statistics, method, layers, exclude, batches, keep_samples, execution, True, held_out)


# What both of the above have in common takes what the caller may give: more than six arguments, all of them named.
def _planned(
    model: nn.Module,
    statistics: Statistics | None,
    method: str | Solver,
    layers: Iterable[str] | None,
    exclude: Iterable[str],
    batches: Iterable | None,
    keep_samples: int | None,
    execution: Execution,
    several: bool,
    held_out: Iterable | bool | None,
) -> Plan:
    """A plan; ``several``: whether batches are read more than once. ``held_out``: True takes them from the batches."""
    check_module(model)
    check_number("keep_samples", keep_samples, "how many input vectors are kept")
    if keep_samples is not None and not (keep_samples >= 0 and keep_samples == int(keep_samples)):
        raise ValueError(f"keep_samples must be a whole number, 0 or more; got {keep_samples}")
    solver = _solver(method)
    layers = None if layers is None else check_names("layers", layers)
    exclude = check_names("exclude", exclude)
    readings = None if batches is None else calibration_batches(batches, execution.memory if several else 0)
    if readings is not None and several:
        readings = whole_where_dependent(readings, model)
    if statistics is None:
        if readings is None:
            raise ValueError(
                "give statistics (from lobs.collect_statistics) or batches to collect them from; got neither"
            )
        if held_out is True and (parts := readings.divided()):
            readings, held_out = parts
        statistics = collect_statistics(
            model, readings, layers, keep_samples=keep_samples or 0, memory=execution.memory, exclude=exclude
        )
    if not isinstance(statistics, Statistics):
        raise TypeError(f"statistics must come from lobs.collect_statistics, got {type(statistics).__name__}")
    others = None if held_out is None or isinstance(held_out, bool) else calibration_batches(held_out, execution.memory)
    if others is not None and not sum(others.input_counts()):
        raise ValueError("held_out is empty: give inputs that the statistics have not seen")
    names, excluded = selected(model, statistics, layers, exclude)
    return Plan(model, statistics, solver, names, excluded, readings, others, keep_samples, execution)


def _solver(method: str | Solver) -> Solver:
    if not isinstance(method, (str, Solver)):
        raise TypeError(f"method must be a name of lobs.methods() or a solver object, got {method!r}")
    return make(method) if isinstance(method, str) else method


def layer_paths(
    model: nn.Module,
    statistics: Statistics,
    method: str | Solver = BEST,
    layers: Iterable[str] | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> dict[str, PruningPath]:
    """The pruning path of every layer, to be looked at, or to be used for many budgets (``prune(..., paths=paths)``).

    Args:
        model: the dense network; not changed.
        statistics: of its layers.
        method: a name from `methods` or a solver object.
        layers: names or patterns; None takes all layers that have statistics.
        progress: wraps the iterable of layer names.

    Returns:
        A path per layer, in the order of the network's calls.

    Raises:
        ValueError: an unknown method, a layer without statistics, or statistics that do not fit the layer.
    """
    maker = PathMaker(model, statistics, _solver(method))
    names = layers_with_statistics(model, statistics, layers)
    return {name: maker.path(name) for name in Execution(progress=progress).shown(list(names))}
