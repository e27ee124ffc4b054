"""Walks a network: statistics -> paths -> allocation -> new weights -> correction."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from torch import Tensor, nn

from lobs.allocation import allocate, counts_for
from lobs.bounds import bound_from_weights
from lobs.budgets import Budget, Limits
from lobs.correction import correct as correct_network
from lobs.layers import Prunable, prunable_layers, set_weight_matrix, weight_matrix
from lobs.registry import CORRECTIONS, METHODS, unknown_name
from lobs.sequential import Step, prune_in_sequence
from lobs.solvers import PruningPath, Solver, make
from lobs.solvers.path import layer_error
from lobs.statistics import LayerStatistics, Statistics, collect_statistics
from lobs.units import drop_columns, readers, unit_counts
from lobs.walk import require_repeatable

# Calibration inputs that the measuring allocations look at, rounded up to whole batches.
MEASURED_IMAGES = 2000


@dataclass(frozen=True)
class LayerRecord:
    """What happened to one layer.

    Attributes:
        name: of the module.
        shape: of its weight.
        density: share of its weights kept (biases are not counted).
        kept: weights kept.
        removed: weights removed.
        error: E = ||Z_hat - Z||_F^2 / n on the dense network's inputs, measured on the weights found. After sequential
            pruning Z_hat comes from the pruned network's inputs (Z stays the dense network's output), so that E counts
            what the layers before did, too. A correction comes later and is not in it.
        relative_error: E over ||Z||_F^2 / n, the share of the layer's output that was lost.
        sensitivity_threshold: the largest L_q removed, None for methods without sensitivities.
        bound_contribution: the layer's term in Theorem 3.2, for the final weights.
        seconds: spent on it.
        damping: lambda added to Psi's diagonal, 0 for methods without.
    """

    name: str
    shape: tuple[int, ...]
    density: float
    kept: int
    removed: int
    error: float
    relative_error: float
    sensitivity_threshold: float | None
    bound_contribution: float
    seconds: float
    damping: float


@dataclass(frozen=True)
class PruneResult:
    """A pruned network and how it came about.

    Attributes:
        model: the pruned network.
        masks: per layer a bool tensor in the shape of its weight, True where a weight is kept.
        density: share of weights kept over all pruned layers.
        layers: one record per layer.
        correction: which correction was made (`lobs.correct`), ``none`` without.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    density: float
    layers: list[LayerRecord]
    correction: str = "none"


def methods() -> dict[str, str]:
    """The pruning methods by name, with one line each."""
    return {name: method.line for name, method in METHODS.items()}


def layer_paths(
    model: nn.Module,
    statistics: Statistics,
    method: str | Solver = "lobs",
    layers: Iterable[str] | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> dict[str, PruningPath]:
    """The pruning path of every layer, to be used for many budgets (``prune(..., paths=paths)``).

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
    solver = make(method) if isinstance(method, str) else method
    modules = _modules(model, statistics, layers)
    paths = {}
    for name in modules if progress is None else progress(list(modules)):
        weight = weight_matrix(modules[name])
        weight = weight.float() if weight.dtype.itemsize < 4 else weight
        paths[name] = _path_of(solver, name, weight, statistics[name].to(weight.device))
    return paths


def prune(
    model: nn.Module,
    statistics: Statistics | None = None,
    method: str | Solver = "lobs",
    *,
    density: float | None = None,
    tolerance: float | None = None,
    densities: Mapping[str, float] | None = None,
    flops: float | None = None,
    size: int | None = None,
    allocation: str = "uniform",
    limits: Limits | None = None,
    tolerance_rule: str = "error",
    layers: Iterable[str] | None = None,
    exclude: Iterable[str] = (),
    paths: Mapping[str, PruningPath] | None = None,
    sequential: bool = False,
    batches: Iterable | None = None,
    keep_samples: int | None = None,
    correct: str = "none",
    in_place: bool = False,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> PruneResult:
    """Prune a network's Linear and Conv2d layers from calibration data, without retraining.

    Args:
        model: the trained network; left untouched unless ``in_place``.
        statistics: from `collect_statistics` on the same network; None collects them from ``batches``.
        method: a name from `methods` or a solver object (`lobs.solvers.make(name, **options)`).
        density: share of weights kept, 0 to 1; exactly one of density, tolerance, densities, flops and size is given.
        tolerance: the paper's epsilon, per layer. In sequence it counts what the layer's own removals add.
        densities: a density for each layer by name.
        flops: share of the layers' multiply-adds kept, 0 to 1 (`lobs.budgets.Budget`).
        size: bytes of a sparse file, biases included (likewise).
        allocation: how density, flops or size are shared out between layers (`lobs.registry.ALLOCATIONS`); on the dense
            network, in sequence too. Those that measure use the first `MEASURED_IMAGES` of ``batches``.
        limits: (least, most) density by layer name or pattern: ``{"fc3": (0.05, 1.0)}`` keeps at least 5% of it.
        tolerance_rule: ``"error"``: the accumulated sqrt(E) stays <= tolerance; ``"sensitivity"``: every removed
            weight's sqrt(L_q) does, as in Algorithm 1.
        layers: names or patterns of the layers to prune; None takes all that have statistics.
        exclude: names or patterns of layers among them that stay dense; they do not count in the budget.
        paths: from `layer_paths`, to reuse one factorisation for many budgets; ``method`` is then ignored. In sequence
            they only share the budget out.
        sequential: front to back, each layer's inputs from the network pruned so far and the dense network's outputs
            as target (`lobs.sequential`).
        batches: calibration inputs, or tuples that start with them, for whatever measures the network; must start anew
            each time they are iterated.
        keep_samples: input vectors to keep per layer where this call collects them (Net-Trim needs some); None: as
            many as ``statistics`` hold.
        correct: a correction after pruning (`lobs.correct`): ``none``, ``bias``, ``batch_norm``, ``both``, ``auto``.
        in_place: change the model itself, to save memory (sequential pruning and corrections still need a copy).
        progress: wraps the iterable of layer names.

    Returns:
        The pruned network, its masks and a record per layer.

    Raises:
        ValueError: not exactly one budget, a value out of range, an unknown name, statistics that do not fit, or
            batches that are missing, empty or used up.
        TypeError: ``model`` is not a module or ``statistics`` not `Statistics`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    budget = _Budget(density, tolerance, densities, flops, size, allocation, limits, tolerance_rule, batches)
    if correct not in CORRECTIONS:
        raise ValueError(unknown_name("correction", correct, CORRECTIONS))
    if sequential or correct != "none":
        batches = require_repeatable(batches, "sequential=True" if sequential else f"correct={correct!r}")
    if statistics is None:
        statistics = _collect(model, batches, keep_samples or 0)
    if not isinstance(statistics, Mapping):
        raise TypeError(f"statistics must come from lobs.collect_statistics, got {type(statistics).__name__}")
    layers = _without(model, layers, exclude, statistics)
    beside = sequential or correct != "none"  # the dense network is needed beside the pruned one
    pruned = model if in_place and not beside else copy.deepcopy(model)
    walk = _Walk(model, pruned, statistics, method, budget, layers, paths, progress)
    records, masks, dense = [], {}, {}
    for step in walk.in_sequence(cast("Iterable", batches), keep_samples) if sequential else walk.at_once():
        name, module = step.name, prunable_layers(model)[step.name]
        dense[name] = weight_matrix(module) if sequential else step.path.weight
        masks[name] = step.mask[:, : step.path.statistics.features].reshape(module.weight.shape)
        records.append(_record(step, masks[name]))
    correction = correct_network(model, pruned, cast("Iterable", batches), correct)
    bound = bound_from_weights(dense, pruned, statistics)
    if in_place and beside:
        model.load_state_dict(pruned.state_dict())
        pruned = model
    records = [replace(record, bound_contribution=bound.layers[record.name]) for record in records]
    kept = sum(record.kept for record in records)
    return PruneResult(pruned, masks, kept / sum(r.kept + r.removed for r in records), records, correction)


@dataclass(frozen=True)
class _Budget:
    """How much to remove: exactly one of density, tolerance and densities."""

    density: float | None
    tolerance: float | None
    densities: Mapping[str, float] | None
    flops: float | None
    size: int | None
    allocation: str
    limits: Limits | None
    rule: str
    batches: Iterable | None

    def __post_init__(self) -> None:
        names = ("density", "tolerance", "densities", "flops", "size")
        budgets = [f"{key}={value!r}" for key in names if (value := getattr(self, key)) is not None]
        if len(budgets) != 1:
            raise ValueError(f"give exactly one of {', '.join(names)}; got {' and '.join(budgets) or 'none'}")
        if self.limits and (self.tolerance is not None or self.densities is not None):
            raise ValueError(f"limits={dict(self.limits)!r} go with density, flops or size; got {budgets[0]}")

    @property
    def shared(self) -> bool:
        """Whether what a layer loses depends on the other layers."""
        return (self.tolerance is None and self.densities is None and self.allocation != "uniform") or bool(self.limits)

    def counts(
        self, model: nn.Module, paths: Mapping[str, PruningPath], links: Mapping[str, tuple[str, int]]
    ) -> dict[str, int]:
        """How many weights each layer loses."""
        if links:
            if self.density is None or self.limits:
                raise ValueError("a method that removes whole units takes a density alone: no other budget, no limits")
            return unit_counts(paths, links, self.density)
        if self.tolerance is None and self.densities is None:
            images = None if self.batches is None else _first(self.batches, MEASURED_IMAGES)
            budget = Budget(density=self.density, flops=self.flops, size=self.size)
            return allocate(paths, budget, self.allocation, limits=self.limits, model=model, batches=images)
        if self.densities is not None:
            return counts_for(self.densities, paths)
        return {name: path.within(cast("float", self.tolerance), self.rule) for name, path in paths.items()}

    def of_layer(self, name: str) -> _Budget:
        """The same for one layer alone, which must not be `shared`."""
        return self if self.densities is None else replace(self, densities={name: self.densities[name]})

    def check_names(self, names: Iterable[str]) -> None:
        """Refuse densities of other layers, before the first layer is pruned."""
        different = set() if self.densities is None else self.densities.keys() ^ set(names)
        if different:
            raise ValueError(
                f"densities must name exactly the pruned layers {', '.join(names)}; missing or unknown: "
                f"{', '.join(sorted(different))}"
            )


@dataclass(frozen=True)
class _Walk:
    """One network's way from dense to pruned; the two must be different objects to go in sequence."""

    dense: nn.Module
    pruned: nn.Module
    statistics: Statistics
    method: str | Solver
    budget: _Budget
    layers: Iterable[str] | None
    paths: Mapping[str, PruningPath] | None
    progress: Callable[[Iterable], Iterable] | None

    def at_once(self) -> list[Step]:
        """Every layer from the dense network's inputs."""
        seconds: dict[str, float] = {}
        paths = self.paths
        if paths is None:
            timed = _timed(seconds, self.progress)
            paths = layer_paths(self.dense, self.statistics, self.method, self.layers, timed)
        found = prunable_layers(self.pruned)
        modules = {name: found[name] for name in paths}
        links = readers(modules) if all(path.removes_units for path in paths.values()) else {}
        counts = self.budget.counts(self.dense, paths, links)
        weights, masks = {}, {}
        for name, path in paths.items():
            start = time.perf_counter()
            weights[name], masks[name] = path.at(counts[name])
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
        drop_columns(weights, masks, links)
        for name, module in modules.items():
            set_weight_matrix(module, weights[name])
        return [Step(name, paths[name], counts[name], weights[name], masks[name], seconds[name]) for name in paths]

    def in_sequence(self, batches: Iterable, keep_samples: int | None) -> Iterator[Step]:
        """Front to back; what a shared budget leaves to each layer is decided on the dense network first."""
        solver = make(self.method) if isinstance(self.method, str) else self.method
        names = list(self.paths or _modules(self.dense, self.statistics, self.layers))
        self.budget.check_names(names)
        counts: dict[str, int] = {}
        if self.budget.shared:
            paths = self.paths or layer_paths(self.dense, self.statistics, solver, names, self.progress)
            counts = self.budget.counts(self.dense, paths, {})

        def choose(name: str, path: PruningPath) -> int:
            return counts[name] if counts else self.budget.of_layer(name).counts(self.dense, {name: path}, {})[name]

        yield from prune_in_sequence(
            self.dense,
            self.pruned,
            self.statistics,
            names,
            solver,
            partial(_path_of, solver),
            choose,
            batches,
            keep_samples,
            self.progress,
        )


def _without(
    model: nn.Module, layers: Iterable[str] | None, exclude: Iterable[str], statistics: Statistics
) -> Iterable[str] | None:
    if isinstance(exclude, str):
        raise TypeError(f"exclude must be a list of names, got the single string {exclude!r}")
    left_out = prunable_layers(model, exclude) if (exclude := list(exclude)) else {}
    if not left_out:
        return layers
    return [name for name in prunable_layers(model, layers or list(statistics)) if name not in left_out]


def _first(batches: Iterable, images: int) -> list:
    """The batches that hold the first so many inputs."""
    taken, count = [], 0
    for batch in batches:
        taken.append(batch)
        count += len(batch[0] if isinstance(batch, (tuple, list)) else batch)
        if count >= images:
            break
    return taken


def _collect(model: nn.Module, batches: Iterable | None, keep_samples: int) -> Statistics:
    if batches is None:
        raise ValueError("give statistics (from lobs.collect_statistics) or batches to collect them from; got neither")
    return collect_statistics(model, batches, keep_samples=keep_samples)


def _path_of(solver: Solver, name: str, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
    try:
        return solver(weight, statistics)
    except ValueError as error:
        raise type(error)(f"layer {name!r}: {error}") from error


def _record(step: Step, mask: Tensor) -> LayerRecord:
    path, layer = step.path, step.path.statistics
    if layer.target_power is None:
        error, output = path.measured_error(step.weight), layer_error(path.weight, layer.second_moment)
    else:
        error, output = layer.target_error(step.weight), layer.target_power
    kept = int(mask.sum())
    return LayerRecord(
        name=step.name,
        shape=tuple(mask.shape),
        density=kept / path.removable,
        kept=kept,
        removed=path.removable - kept,
        error=error,
        relative_error=error / output if output else 0.0,
        sensitivity_threshold=path.sensitivity_threshold(step.count),
        bound_contribution=0.0,  # known when the whole network is pruned
        seconds=step.seconds,
        damping=path.damping,
    )


def _modules(model: nn.Module, statistics: Statistics, layers: Iterable[str] | None) -> dict[str, Prunable]:
    modules = prunable_layers(model, layers)
    if layers is None:
        absent = [name for name in statistics if name not in modules]
        if absent:
            raise ValueError(f"the statistics hold layer {absent[0]!r}; the network has {', '.join(modules)}")
    for name in modules if layers is not None else ():
        if name not in statistics:
            raise ValueError(f"no statistics of layer {name!r}; there are those of {', '.join(statistics)}")
    return {name: modules[name] for name in statistics if name in modules}


def _timed(seconds: dict[str, float], progress: Callable[[Iterable], Iterable] | None) -> Callable:
    """A progress wrapper that also notes how long each layer took."""

    def wrap(names: Iterable[str]) -> Iterable[str]:
        for name in names if progress is None else progress(names):
            start = time.perf_counter()
            yield name
            seconds[name] = time.perf_counter() - start

    return wrap
