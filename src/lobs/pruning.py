"""Walks a network: statistics -> paths -> allocation -> new weights -> correction."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lobs.allocation.budget import Limits
from lobs.allocation.knapsack import Curve
from lobs.allocation.loss_curves import resolved
from lobs.allocation.output_distance import OutputDistance
from lobs.base.arguments import check_by_layer, check_names, check_number
from lobs.base.evaluation_mode import evaluation_mode, outside_modes, same_buffers
from lobs.base.fingerprint import claim_folder, digest
from lobs.bounds import bound_from_weights
from lobs.calibration.batches import CalibrationBatches, calibration_batches
from lobs.calibration.collect import collect_statistics
from lobs.calibration.layerwise import first_input, require_repeatable
from lobs.calibration.outputs import fitting_distance, output_tensors
from lobs.calibration.statistics import Statistics
from lobs.layers.checks import check_layers, check_owners, check_plain, independent_copy, read_back
from lobs.layers.coverage import WORTH_A_WARNING, shown, unpruned_weights, weight_count
from lobs.layers.network import prunable_layers
from lobs.registry import CORRECTIONS, MEASURING_ALLOCATIONS, METHODS, unknown_name
from lobs.repair.correction import correct as correct_network
from lobs.repair.correction import correctable
from lobs.result import LayerRecord, PruneResult
from lobs.schedule.checkpoint import Step
from lobs.schedule.one_shot import MEASURED_IMAGES, Request, Scheme, gave_way, layer_paths, layers_with_statistics
from lobs.solvers import PruningPath, Solver

__all__ = ["LayerRecord", "PruneResult", "layer_paths", "methods", "prune"]


def methods() -> dict[str, str]:
    """The pruning methods by name, with one line each."""
    return {name: method.line for name, method in METHODS.items()}


@outside_modes
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
        flops: share of the layers' multiply-adds kept, 0 to 1 (`lobs.allocation.budget.Budget`).
        size: bytes of a sparse file, biases included (likewise).
        allocation: how density, flops or size are shared out between layers (`lobs.registry.ALLOCATIONS`); on the dense
            network, in sequence too. Those that measure use the first `MEASURED_IMAGES` of ``batches``. ``global``
            is compared with ``uniform`` on these images and gives way to it, with a warning, where it is no better.
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
        batches: calibration inputs, or tuples that start with them, for whatever measures the network. They are read
            once and kept where they fit into memory; else they must be the same each time they are iterated, which is
            checked.
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
            goes on where it stopped. A folder belongs to one call: another one's is refused.

    Returns:
        The pruned network, its masks, a record per layer, and an account of what was left alone. A weight that is zero
        in ``model`` was removed before: it stays zero and counts as removed.

    Raises:
        ValueError: not exactly one budget, a value out of range, an unknown name, statistics that do not fit, batches
            that are missing, empty or used up, a folder of another call, or a network that cannot be pruned right: a
            layer whose weight is computed from others, shared in another way or not all it computes with.
        TypeError: ``model`` is not a module or ``statistics`` not `Statistics`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, value, meant in (
        ("density", density, "the share of weights kept"),
        ("tolerance", tolerance, "the error allowed per layer"),
        ("flops", flops, "the share of multiply-adds kept"),
        ("size", size, "the bytes of the sparse file"),
        ("memory", memory, "a ceiling in bytes"),
        ("keep_samples", keep_samples, "how many input vectors are kept"),
    ):
        check_number(name, value, meant)
    check_by_layer("densities", densities, pairs=False)
    check_by_layer("limits", limits, pairs=True)
    if not isinstance(method, (str, Solver)):
        raise TypeError(f"method must be a name of lobs.methods() or a solver object, got {method!r}")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function that wraps an iterable (tqdm, say), got {progress!r}")
    if correct not in CORRECTIONS:
        raise ValueError(unknown_name("correction", correct, CORRECTIONS))
    what = "sequential=True" if sequential else f"correct={correct!r}"
    beside = sequential or correct != "none"  # the dense network is needed beside the pruned one
    if beside:
        batches = require_repeatable(batches, what, memory)
    request = Request(density, tolerance, densities, flops, size, allocation, limits, tolerance_rule, None, losses)
    # Statistics alone take one reading, of which nothing but the first batch is kept.
    room = memory if beside or request.shared or folder is not None else 0
    readings = None if batches is None else calibration_batches(batches, room)
    request = replace(request, batches=readings)
    exclude = check_names("exclude", exclude)
    layers = None if layers is None else check_names("layers", layers)
    if statistics is None:
        if readings is None:
            raise ValueError(
                "give statistics (from lobs.collect_statistics) or batches to collect them from; got neither"
            )
        statistics = collect_statistics(
            model, readings, layers, keep_samples=keep_samples or 0, memory=memory, exclude=exclude
        )
    if not isinstance(statistics, Mapping):
        raise TypeError(f"statistics must come from lobs.collect_statistics, got {type(statistics).__name__}")
    names = _names(model, layers, exclude, statistics)
    _check_network(model, names, statistics)
    if folder is not None:
        folder = Path(folder)
        options = {"method": method, "layers": names, "sequential": sequential, "correct": correct}
        _claim(folder, model, statistics, request, {**options, "keep_samples": keep_samples}, paths)
    pruned = model if in_place and not beside else independent_copy(model)
    scheme = Scheme(model, pruned, statistics, method, request, names, paths, progress, memory, folder)
    with same_buffers(model), same_buffers(pruned, but=_BatchNorm):
        result = _run(scheme, sequential, correct, keep_samples)
        if scheme.doubtful and beside:
            result = _better_of(scheme, result, sequential, correct, keep_samples)
    if in_place and beside:
        model.load_state_dict(result.model.state_dict())
        result = replace(result, model=model)
    zeros = read_back(result.model, result.masks)
    if readings is not None:
        with same_buffers(result.model):
            check_layers(result.model, first_input(result.model, readings), names)
    left = unpruned_weights(result.model, names, _left_out(model, layers, exclude), statistics.calls)
    notes = [*result.notes, *(f"layer {name!r}: {count} of the kept weights are zero" for name, count in zeros.items())]
    result = replace(result, unpruned=left, weights=weight_count(result.model), notes=notes)
    if request.shared:
        shared_by, distance = _decided(model, request, result)
        result = replace(result, shared_by=shared_by, distance=distance)
    unasked = sum(entry.weights for entry in left if not entry.by_choice)
    if unasked > WORTH_A_WARNING * result.weights:
        warnings.warn(
            f"{100 * unasked / result.weights:.1f}% of the network's weights were not pruned: "
            f"{shown(entry for entry in left if not entry.by_choice)}; the whole network keeps "
            f"{result.network_density:.4g} of its weights",
            stacklevel=3,
        )
    return result


def _decided(model: nn.Module, request: Request, result: PruneResult) -> tuple[str, str | None]:
    """What shared the budget out, and by which distance of the outputs, where it looked at them."""
    shared_by = resolved(request.allocation, request.batches is not None)
    if any("gave way" in note for note in result.notes):
        shared_by = "uniform"
    measured = request.allocation == "global" or shared_by in MEASURING_ALLOCATIONS
    distance = None
    if request.batches is not None and measured:
        with torch.no_grad(), evaluation_mode(model), same_buffers(model):
            distance = fitting_distance(model(first_input(model, request.batches)), request.batches.first())
    return shared_by, distance


def _run(scheme: Scheme, sequential: bool, correct: str, keep_samples: int | None) -> PruneResult:
    """Prune and correct the scheme's copy of the network."""
    model, pruned, batches = scheme.dense, scheme.pruned, scheme.request.batches
    records, masks, dense = [], {}, {}
    for step in scheme.in_sequence(_given(batches), keep_samples) if sequential else scheme.at_once():
        name = step.name
        dense[name] = step.trained
        # What was zero before counts as removed, even where a pattern would keep it.
        mask = step.mask[:, : step.features] & (step.trained[:, : step.features] != 0)
        masks[name] = mask.reshape(prunable_layers(model)[name].weight.shape)
        records.append(_record(step, masks[name]))
    uncorrected = {} if correct == "none" else correctable(pruned)
    correction = correct if correct == "none" else correct_network(model, pruned, _given(batches), correct)
    bound = bound_from_weights(dense, pruned, scheme.statistics)
    records = [replace(record, bound_contribution=bound.layers[record.name]) for record in records]
    kept = sum(record.kept for record in records)
    density = kept / sum(record.kept + record.removed for record in records)
    return PruneResult(pruned, masks, density, records, correction, uncorrected, notes=list(scheme.notes))


def _better_of(
    scheme: Scheme, result: PruneResult, sequential: bool, correct: str, keep_samples: int | None
) -> PruneResult:
    """Where `global` hardly helps on the dense network's inputs, the network that `uniform` gives is made, too."""
    request = replace(scheme.request, allocation="uniform", losses=None)
    plain = replace(scheme, pruned=independent_copy(scheme.dense), request=request, folder=None, notes=[], doubts=[])
    rival = _run(plain, sequential, correct, keep_samples)
    images = _given(scheme.request.batches).first_images(MEASURED_IMAGES)
    measure = OutputDistance(scheme.dense, images)
    ours, theirs = (measure.of_network(network) for network in (result.model, rival.model))
    if ours <= theirs:
        return result
    note = gave_way(ours, theirs)
    warnings.warn(note, stacklevel=4)
    return replace(rival, notes=[*rival.notes, note])


def _given(batches: CalibrationBatches | None) -> CalibrationBatches:
    assert batches is not None
    return batches


def _names(model: nn.Module, layers: list[str] | None, exclude: list[str], statistics: Statistics) -> list[str]:
    """The layers to prune, in the order of their calls; at least one."""
    found = layers_with_statistics(model, statistics, layers)
    left_out = prunable_layers(model, exclude) if exclude else {}
    names = [name for name in found if name not in left_out]
    if not names:
        asked = f"exclude={exclude!r} leaves" if exclude else f"layers={layers!r} leave"
        raise ValueError(f"{asked} no layer to prune; those with statistics are {', '.join(statistics) or 'none'}")
    return names


def _left_out(model: nn.Module, layers: list[str] | None, exclude: list[str]) -> set[str]:
    """The layers that the caller did not want pruned."""
    left_out = set(prunable_layers(model, exclude)) if exclude else set()
    return left_out if layers is None else left_out | (prunable_layers(model).keys() - prunable_layers(model, layers))


def _check_network(model: nn.Module, names: list[str], statistics: Statistics) -> None:
    modules = prunable_layers(model)
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "model was made in torch.inference_mode, which forbids to change its weights: make or load it outside of "
            "that mode, or give copy.deepcopy(model) made outside"
        )
    check_plain({name: modules[name] for name in names})
    check_owners(model, names)
    functional = statistics.calls.functional
    for name in names:
        if name in functional:
            raise ValueError(
                f"layer {name!r}: its weight or bias is used outside of it, too, by {functional[name]}, whose inputs "
                f"are not looked at: leave it out with exclude=[{name!r}]"
            )


def _claim(
    folder: Path,
    model: nn.Module,
    statistics: Statistics,
    request: Request,
    options: Mapping[str, object],
    paths: Mapping[str, PruningPath] | None,
) -> None:
    """Tie the folder to everything that the result depends on."""
    given = paths or {}
    layers = [(layer.second_moment, layer.samples, layer.loss_curvature) for layer in statistics.values()]
    call = {
        **options,
        **request.asked,
        "network": digest(part for pair in model.state_dict().items() for part in pair),
        "statistics": digest(part for parts in layers for part in parts),
        # In sequence they only share the budget out, and the method makes its own.
        "paths": None if options["sequential"] else digest((n, type(p), p.total, p.damping) for n, p in given.items()),
        "losses": digest(part for pair in (request.losses or {}).values() for part in pair),
    }
    measured = options["sequential"] or options["correct"] != "none" or request.shared
    if request.batches is not None and measured:
        call["batches"] = request.batches.fingerprint()
        with torch.no_grad(), evaluation_mode(model):
            call["outputs"] = digest(output_tensors(model(first_input(model, request.batches))))
    claim_folder(folder, call)


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
