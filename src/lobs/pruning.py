"""Walks a network: statistics -> paths -> allocation -> new weights -> correction."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from lobs.bounds import bound_from_weights
from lobs.budgets import Limits
from lobs.correction import correct as correct_network
from lobs.correction import correctable
from lobs.layers import prunable_layers
from lobs.registry import CORRECTIONS, METHODS, unknown_name
from lobs.scheme import Request, Scheme, layer_paths
from lobs.sharing import Curve
from lobs.solvers import PruningPath, Solver
from lobs.statistics import Statistics, collect_statistics
from lobs.steps import Step
from lobs.walk import require_repeatable

__all__ = ["LayerRecord", "PruneResult", "layer_paths", "methods", "prune"]


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
        uncorrected: the biases and batch-norm statistics as they were before a correction was asked for, by the names
            that `state_dict` gives them; empty where none was.
    """

    model: nn.Module
    masks: dict[str, Tensor]
    density: float
    layers: list[LayerRecord]
    correction: str = "none"
    uncorrected: dict[str, Tensor] = field(default_factory=dict)


def methods() -> dict[str, str]:
    """The pruning methods by name, with one line each."""
    return {name: method.line for name, method in METHODS.items()}


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
    losses: Mapping[str, Curve] | None = None,
    sequential: bool = False,
    batches: Iterable | None = None,
    keep_samples: int | None = None,
    correct: str = "none",
    in_place: bool = False,
    progress: Callable[[Iterable], Iterable] | None = None,
    memory: float | None = None,
    folder: str | Path | None = None,
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
        losses: of these paths, from `lobs.losses.loss_curves` for this allocation, to share out many budgets by them.
        sequential: front to back, each layer's inputs from the network pruned so far and the dense network's outputs
            as target (`lobs.sequential`).
        batches: calibration inputs, or tuples that start with them, for whatever measures the network; must start anew
            each time they are iterated.
        keep_samples: input vectors to keep per layer where this call collects them (Net-Trim needs some); None: as
            many as ``statistics`` hold.
        correct: a correction after pruning (`lobs.correct`): ``none``, ``bias``, ``batch_norm``, ``both``, ``auto``.
        in_place: change the model itself, to save memory (sequential pruning and corrections still need a copy). Where
            a layer cannot be pruned, those before it are already.
        progress: wraps the iterable of layer names.
        memory: ceiling in bytes on what is kept of many layers at once; None: what is available, less a margin. It
            covers the paths that a shared budget looks at together (their second moments, factors and weights: those
            that do not fit are computed twice) and the statistics that this call collects. One layer's own matrices
            always have to fit; without a shared budget layers go one by one. Results do not depend on it.
        folder: what took long (a path's order, a budget's shares, a layer pruned in sequence) is written here as soon
            as it is finished, and read where it lies here already: the same call made again after an interruption
            goes on where it stopped. A folder belongs to one call and all of its arguments.

    Returns:
        The pruned network, its masks and a record per layer.

    Raises:
        ValueError: not exactly one budget, a value out of range, an unknown name, statistics that do not fit, or
            batches that are missing, empty or used up.
        TypeError: ``model`` is not a module or ``statistics`` not `Statistics`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    request = Request(density, tolerance, densities, flops, size, allocation, limits, tolerance_rule, batches, losses)
    if correct not in CORRECTIONS:
        raise ValueError(unknown_name("correction", correct, CORRECTIONS))
    if sequential or correct != "none":
        batches = require_repeatable(batches, "sequential=True" if sequential else f"correct={correct!r}")
    if statistics is None:
        statistics = _collect(model, batches, keep_samples or 0, memory)
    if not isinstance(statistics, Mapping):
        raise TypeError(f"statistics must come from lobs.collect_statistics, got {type(statistics).__name__}")
    layers = _without(model, layers, exclude, statistics)
    beside = sequential or correct != "none"  # the dense network is needed beside the pruned one
    pruned = model if in_place and not beside else copy.deepcopy(model)
    folder = None if folder is None else Path(folder)
    scheme = Scheme(model, pruned, statistics, method, request, layers, paths, progress, memory, folder)
    records, masks, dense = [], {}, {}
    for step in scheme.in_sequence(cast("Iterable", batches), keep_samples) if sequential else scheme.at_once():
        name = step.name
        dense[name] = step.trained
        masks[name] = step.mask[:, : step.features].reshape(prunable_layers(model)[name].weight.shape)
        records.append(_record(step, masks[name]))
    uncorrected = {} if correct == "none" else correctable(pruned)
    correction = correct_network(model, pruned, cast("Iterable", batches), correct)
    bound = bound_from_weights(dense, pruned, statistics)
    if in_place and beside:
        model.load_state_dict(pruned.state_dict())
        pruned = model
    records = [replace(record, bound_contribution=bound.layers[record.name]) for record in records]
    kept = sum(record.kept for record in records)
    return PruneResult(pruned, masks, kept / sum(r.kept + r.removed for r in records), records, correction, uncorrected)


def _without(
    model: nn.Module, layers: Iterable[str] | None, exclude: Iterable[str], statistics: Statistics
) -> Iterable[str] | None:
    if isinstance(exclude, str):
        raise TypeError(f"exclude must be a list of names, got the single string {exclude!r}")
    left_out = prunable_layers(model, exclude) if (exclude := list(exclude)) else {}
    if not left_out:
        return layers
    return [name for name in prunable_layers(model, layers or list(statistics)) if name not in left_out]


def _collect(model: nn.Module, batches: Iterable | None, keep_samples: int, memory: float | None) -> Statistics:
    if batches is None:
        raise ValueError("give statistics (from lobs.collect_statistics) or batches to collect them from; got neither")
    return collect_statistics(model, batches, keep_samples=keep_samples, memory=memory)


def _record(step: Step, mask: Tensor) -> LayerRecord:
    kept = int(mask.sum())
    return LayerRecord(
        name=step.name,
        shape=tuple(mask.shape),
        density=kept / step.removable,
        kept=kept,
        removed=step.removable - kept,
        error=step.error,
        relative_error=step.relative_error,
        sensitivity_threshold=step.sensitivity_threshold,
        bound_contribution=0.0,  # known when the whole network is pruned
        seconds=step.seconds,
        damping=step.damping,
    )
