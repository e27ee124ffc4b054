"""Walks a network: statistics -> paths -> allocation -> new weights."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from lobs.allocation import allocate, counts_for
from lobs.bounds import bound_from_weights
from lobs.layers import Prunable, prunable_layers, set_weight_matrix, weight_matrix
from lobs.registry import METHODS
from lobs.solvers import PruningPath, Solver, make
from lobs.solvers.path import layer_error
from lobs.statistics import Statistics
from lobs.units import drop_columns, readers, unit_counts


@dataclass(frozen=True)
class LayerRecord:
    """What happened to one layer.

    Attributes:
        name: of the module.
        shape: of its weight.
        density: share of its weights kept (biases are not counted).
        kept: weights kept.
        removed: weights removed.
        error: E = ||Z_hat - Z||_F^2 / n on the dense network's inputs, measured on the final weights.
        relative_error: E over ||Z||_F^2 / n, the share of the layer's output that was lost.
        sensitivity_threshold: the largest L_q removed, None for methods without sensitivities.
        bound_contribution: the layer's term in Theorem 3.2.
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
    """

    model: nn.Module
    masks: dict[str, Tensor]
    density: float
    layers: list[LayerRecord]


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
        module = modules[name]
        weight = weight_matrix(module)
        layer = statistics[name]
        if layer.groups > 1:
            raise ValueError(
                f"layer {name!r} is a convolution with {layer.groups} groups, which no method prunes yet: "
                f"name the other layers with layers=[...]"
            )
        layer = layer.to(weight.device)
        try:
            paths[name] = solver(weight.float() if weight.dtype.itemsize < 4 else weight, layer)
        except ValueError as error:
            raise type(error)(f"layer {name!r}: {error}") from error
    return paths


def prune(
    model: nn.Module,
    statistics: Statistics,
    method: str | Solver = "lobs",
    *,
    density: float | None = None,
    tolerance: float | None = None,
    densities: Mapping[str, float] | None = None,
    allocation: str = "uniform",
    tolerance_rule: str = "error",
    layers: Iterable[str] | None = None,
    paths: Mapping[str, PruningPath] | None = None,
    in_place: bool = False,
    progress: Callable[[Iterable], Iterable] | None = None,
) -> PruneResult:
    """Prune a network's Linear and Conv2d layers from calibration statistics, without retraining.

    Args:
        model: the trained network; left untouched unless ``in_place``.
        statistics: from `collect_statistics` on the same network.
        method: a name from `methods` or a solver object (`lobs.solvers.make(name, **options)`).
        density: share of weights kept, 0 to 1; exactly one of density, tolerance and densities is given.
        tolerance: the paper's epsilon, per layer.
        densities: a density for each layer by name.
        allocation: how ``density`` is shared out between layers.
        tolerance_rule: ``"error"``: the accumulated sqrt(E) stays <= tolerance; ``"sensitivity"``: every removed
            weight's sqrt(L_q) does, as in Algorithm 1.
        layers: names or patterns of the layers to prune; None takes all that have statistics.
        paths: from `layer_paths`, to reuse one factorisation for many budgets; ``method`` is then ignored.
        in_place: change the model itself, to save memory.
        progress: wraps the iterable of layer names.

    Returns:
        The pruned network, its masks and a record per layer.

    Raises:
        ValueError: not exactly one budget, a value out of range, an unknown name, or statistics that do not fit.
        TypeError: ``model`` is not a module or ``statistics`` not `Statistics`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(statistics, Mapping):
        raise TypeError(f"statistics must come from lobs.collect_statistics, got {type(statistics).__name__}")
    given = {"density": density, "tolerance": tolerance, "densities": densities}
    budgets = [f"{key}={value!r}" for key, value in given.items() if value is not None]
    if len(budgets) != 1:
        raise ValueError(f"give exactly one of density, tolerance and densities; got {' and '.join(budgets) or 'none'}")
    seconds: dict[str, float] = {}
    if paths is None:
        paths = layer_paths(model, statistics, method, layers, _timed(seconds, progress))
    pruned = model if in_place else copy.deepcopy(model)
    modules = {name: module for name, module in prunable_layers(pruned).items() if name in paths}
    modules = {name: modules[name] for name in paths}
    links = readers(modules) if all(path.removes_units for path in paths.values()) else {}
    if tolerance is not None:
        counts = {name: path.within(tolerance, tolerance_rule) for name, path in paths.items()}
    elif densities is not None:
        counts = counts_for(densities, paths)
    else:
        counts = _shared_out(float(density or 0.0), paths, allocation, links)
    weights, masks = {}, {}
    for name, path in paths.items():
        start = time.perf_counter()
        weights[name], masks[name] = path.at(counts[name])
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
    drop_columns(weights, masks, links)
    for name, module in modules.items():
        set_weight_matrix(module, weights[name])
    dense = {name: path.weight for name, path in paths.items()}
    bound = bound_from_weights(dense, pruned, statistics)
    records = []
    for name, path in paths.items():
        masks[name] = masks[name][:, : path.statistics.features].reshape(modules[name].weight.shape)
        threshold = path.sensitivity_threshold(counts[name])
        records.append(
            _record(name, path, weights[name], masks[name], threshold, bound.layers[name], seconds.get(name, 0.0))
        )
    kept = sum(record.kept for record in records)
    return PruneResult(pruned, masks, kept / sum(path.removable for path in paths.values()), records)


def _shared_out(
    density: float, paths: Mapping[str, PruningPath], allocation: str, links: Mapping[str, tuple[str, int]]
) -> dict[str, int]:
    return unit_counts(paths, links, density) if links else allocate(paths, density, allocation)


def _record(
    name: str,
    path: PruningPath,
    weight: Tensor,
    mask: Tensor,
    threshold: float | None,
    contribution: float,
    seconds: float,
) -> LayerRecord:
    error = path.measured_error(weight)
    output = layer_error(path.weight, path.statistics.second_moment)
    kept = int(mask.sum())
    return LayerRecord(
        name=name,
        shape=tuple(mask.shape),
        density=kept / path.removable,
        kept=kept,
        removed=path.removable - kept,
        error=error,
        relative_error=error / output if output else 0.0,
        sensitivity_threshold=threshold,
        bound_contribution=contribution,
        seconds=seconds,
        damping=path.damping,
    )


def _modules(model: nn.Module, statistics: Statistics, layers: Iterable[str] | None) -> dict[str, Prunable]:
    modules = prunable_layers(model, layers)
    if layers is None:
        absent = [name for name in statistics if name not in modules]
        if absent:
            raise ValueError(f"the statistics hold layer {absent[0]!r}; the network has {', '.join(modules)}")
        return {name: modules[name] for name in statistics}
    for name in modules:
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
