"""Stage prune: one factorisation per layer, one pruned network, and the curves that the same paths give for free."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

import lobs
from lobs.calibration.statistics import Statistics, layer_error
from lobs.layers.matrix import set_weight_matrix
from lobs.layers.network import prunable_layers
from lobs.registry import METHODS
from lobs.result import PruneResult
from lobs.solvers import make
from lobs.solvers.path import PruningPath
from lobs.solvers.recomputed import whole
from lobs_paper.config.requested import excluded, needs_curvature, requested
from lobs_paper.data.splits import Split, load_training_data
from lobs_paper.files import save_tensors, write_csv, write_json
from lobs_paper.progress import Phases, progress
from lobs_paper.stages.calibration import inputs_for_pruning, with_curvature
from lobs_paper.stages.correction_errors import corrections
from lobs_paper.stages.environment import ceiling_bytes, prepare
from lobs_paper.stages.folders import Folders, writable
from lobs_paper.stages.network_files import load_network, save_network
from lobs_paper.stages.partial_results import forget, partial_folder
from lobs_paper.stages.stopwatch import Stopwatch
from lobs_paper.stages.thresholds import threshold_densities
from lobs_paper.training.evaluation import DenseOutputs, error_percent, errors

# Densities of the error curves: every half percent below 10%, where the paper works, every two percent above.
PATH_DENSITIES = [step / 200 for step in range(20)] + [step / 50 for step in range(5, 51)]
# Densities at which the network with only its first layer pruned is tested (Figure 2).
CURVE_DENSITIES = [0.0, 0.01, 0.02, 0.03, 0.05, 0.07] + [step / 20 for step in range(2, 21)]
# Densities at which the whole network is tested without retraining. Where every point takes new work (sequential
# pruning, Net-Trim) there are fewer.
BUDGETS = [0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.035, 0.03, 0.02, 0.015, 0.009]
CURVE_IMAGES = 5000  # training images on which the distance of outputs is measured along it
AFTER_REFIT = ("test_error_after_refit_percent", "output_error_after_refit")  # columns of the density curve
# Curves that the paths give for free, and their columns.
CURVES = {
    "paths.csv": ["layer", "density", "error", "relative_error", "sensitivity_threshold"],
    "first_layer_curve.csv": ["density", "test_accuracy_percent"],
    "density_curve.csv": ["density", "test_error_percent", "test_top5_error_percent", "output_error", *AFTER_REFIT],
}
COSTLY_BUDGETS = {
    "sequential": [0.07, 0.05, 0.035, 0.03, 0.02, 0.015, 0.009],
    "refitted": [0.05, 0.035, 0.02, 0.015, 0.009],
    "solved": [0.1, 0.05],
}
# Sensitivities below 1e-20 are counted with the first bin: they belong to inputs that are always zero.
LOWEST_LOG10 = -20
BINS_PER_DECADE = 4


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Prune the dense network to the budget and write it with its masks, records and curves.

    Args:
        config: what `STAGE_KEYS["prune"]` lists.

    Returns:
        The metrics written.
    """
    folders, watch = Folders(config), Stopwatch()
    shown = Phases("factorising", watch.each)
    plan, partial, (train, measured) = planned(config, folders, shown)
    _ = plan.paths  # under the bar that is named for them
    shown.next("pruning")
    result = prune_to(plan, config["method"], requested(config))
    shown.next(None)  # the curves have bars of their own
    for record in result.layers:
        watch.layers[record.name] += record.seconds
    timings = watch.result(config, next(plan.model.parameters()).device)

    metrics = _metrics(config, plan.model, result, measured)
    if result.uncorrected:
        metrics["corrections"] = corrections(plan.model, result, cast("Iterable", plan.batches), measured)
    curves = _curves(plan, config, (train, measured), result)
    with folders.result("prune", metrics) as folder:
        save_network(config, folder / "model.safetensors", result.model)
        save_tensors(folder / "masks.safetensors", result.masks)
        write_json(folder / "layers.json", layer_rows(result))
        for name, (rows, columns) in curves.items():
            write_csv(folder / name, rows, columns)
        write_json(folder / "sensitivities.json", sensitivity_histogram(*_first(plan)))
        write_json(folder / "timings.json", timings)
    forget(partial)
    return metrics


def planned(
    config: dict[str, Any], folders: Folders, shown: Callable[[Iterable], Iterable]
) -> tuple[lobs.Plan, Path, tuple[Split, Split]]:
    """The dense network with its statistics and the method, and where finished parts are kept.

    Args:
        config: of stage prune.
        folders: of it.
        shown: wraps the layers that are factorised.

    Returns:
        The plan, the folder of finished parts, and the images to learn from and to measure on.
    """
    device, method = prepare(config), config["method"]
    trained = folders.input("train", "model.safetensors")
    collected = folders.input("collect", "statistics.safetensors")
    dense = load_network(config, trained, folders.command("train")).to(device)
    writable(folders.output("prune"))
    statistics = Statistics.load(collected, lazy=True)
    # Read last: where the network is missing, too, the message is about that.
    train, measured = load_training_data(config["folders"]["data"], **config["data"])
    batches, held_out = inputs_for_pruning(method, train, config.get("collect", {}))
    if batches is not None and held_out is not None:
        statistics = lobs.collect_statistics(
            dense,
            batches,
            progress=progress("statistics"),
            keep_samples=config["collect"]["kept_samples"] if "inputs_sample" in METHODS[method["solver"]].needs else 0,
            memory=ceiling_bytes(config),
            exclude=excluded(config),
        )
    if needs_curvature(method):
        statistics = with_curvature(dense, statistics, train, config["collect"], progress("the loss's curvature"))
    partial = partial_folder(folders.output("prune"), config, [trained, collected])
    plan = lobs.plan(
        dense,
        statistics,
        make(method["solver"], **method["options"]),
        exclude=excluded(config),
        batches=batches,
        held_out=held_out,
        execution=lobs.Execution(ceiling_bytes(config), partial, shown),
    )
    return plan, partial, (train, measured)


def _first(plan: lobs.Plan) -> tuple[str, PruningPath]:
    """The first layer's name and path."""
    name = next(iter(plan.paths))
    return name, whole(plan.paths[name])


def _curves(
    plan: lobs.Plan, config: Mapping[str, Any], splits: tuple[Split, Split], result: PruneResult
) -> dict[str, tuple[list[dict[str, Any]], list[str]]]:
    """What the same paths say about other budgets: rows and columns of every curve, by the file's name."""
    method, budget, (train, measured) = config["method"], requested(config), splits
    dense, paths = plan.model, plan.paths
    grid = config["density_grid"]
    rows = {
        "paths.csv": [row for name, path in paths.items() for row in error_curve(name, path)],
        "first_layer_curve.csv": first_layer_curve(dense, *_first(plan), measured, grid or CURVE_DENSITIES),
        "density_curve.csv": density_curve(
            lambda density: result if budget == {"density": density} else prune_to(plan, method, {"density": density}),
            grid or budgets(method, paths),
            dense,
            train.part(0, CURVE_IMAGES),
            measured,
        ),
    }
    return {name: (each, CURVES[name]) for name, each in rows.items()}


def prune_to(plan: lobs.Plan, method: Mapping[str, Any], budget: Mapping[str, Any]) -> PruneResult:
    """The network at one budget, shared out by thresholds where the method has them.

    Args:
        plan: of the dense network.
        method: group `method`.
        budget: its name and value.

    Returns:
        What `lobs.prune` gives.
    """
    densities = threshold_densities(plan.model, method, budget["density"]) if "density" in budget else None
    return plan.prune(
        **({"densities": densities} if densities else {**budget, "limits": method["limits"]}),
        allocation="uniform" if densities else method["allocation"],
        sequential=method["sequential"],
        stages=_stages(method["stages"], budget),
        correct=method["correct"],
        refit=method["refit"],
    )


def _stages(stages: int | Sequence[float], budget: Mapping[str, Any]) -> int | Sequence[float]:
    """Of the shares that the method goes through, those above a budget: a curve's other points need fewer."""
    return (
        stages if isinstance(stages, int) else [share for share in stages if share > next(iter(budget.values()))] or 1
    )


def layer_rows(result: PruneResult) -> list[dict[str, Any]]:
    """The layers' records without their durations, which must not reach a file that other stages depend on."""
    rows = [asdict(record) for record in result.layers]
    for row in rows:
        del row["seconds"]
    return rows


def error_curve(name: str, path: PruningPath) -> list[dict[str, Any]]:
    """A layer's error E along its path, at every density that the path reaches."""
    path = whole(path)
    output = layer_error(path.weight, path.statistics.second_moment)
    rows = []
    for density in PATH_DENSITIES:
        count = round((1 - density) * path.removable)
        if count <= path.total:
            error = path.layer_error(count)
            rows.append(
                {
                    "layer": name,
                    "density": density,
                    "error": error,
                    "relative_error": error / output if output else 0.0,
                    "sensitivity_threshold": path.sensitivity_threshold(count),
                }
            )
    return rows


def first_layer_curve(
    dense: nn.Module, name: str, path: PruningPath, measured: Split, densities: Sequence[float]
) -> list[dict[str, Any]]:
    """Accuracy of the network while only one layer is pruned (the paper's Figure 2)."""
    network = copy.deepcopy(dense)
    module = prunable_layers(network)[name]
    rows = []
    counts = path.solved_counts() or [round((1 - density) * path.removable) for density in densities]
    for count in progress("first layer alone")(sorted(counts, reverse=True)):
        if count <= path.total:
            set_weight_matrix(module, path.at(count)[0], path.statistics.bias)
            density = round(1 - count / path.removable, 6)
            rows.append({"density": density, "test_accuracy_percent": 100 - error_percent(network, measured)})
    return rows


def budgets(method: Mapping[str, Any], paths: Mapping[str, PruningPath]) -> list[float]:
    """The densities of `density_curve` for a method where the configuration names none."""
    if any(path.solved_counts() is not None for path in paths.values()):
        return COSTLY_BUDGETS["solved"]
    if method["refit"]:
        return COSTLY_BUDGETS["refitted"]
    return COSTLY_BUDGETS["sequential"] if method["sequential"] else BUDGETS


def density_curve(
    prune_to: Callable[[float], PruneResult],
    densities: Sequence[float],
    dense: nn.Module,
    calibration: Split,
    measured: Split,
) -> list[dict[str, Any]]:
    """Error of the whole network over densities, without retraining, all from the same paths."""
    outputs = DenseOutputs(dense, calibration)
    rows = []
    for density in progress("densities")(densities):
        try:
            result = prune_to(density)
        except ValueError:
            continue  # fewer than one unit per layer, or thresholds that cannot go so low
        network = before_refit(result)
        row = {
            "density": result.density,
            **errors(network, measured).named("test_error_percent"),
            "output_error": outputs.error(network),
        }
        if result.refit:
            refitted = errors(result.model, measured)
            row |= dict(zip(AFTER_REFIT, (refitted.top1, outputs.error(result.model)), strict=True))
        rows.append(row)
    return rows


def before_refit(result: PruneResult) -> nn.Module:
    """The network as pruning and corrections left it."""
    if not result.refit:
        return result.model
    network = copy.deepcopy(result.model)
    network.load_state_dict(result.before_refit, strict=False)
    return network


def _refit(result: PruneResult) -> dict[str, Any] | None:
    """What the refit did, without its duration."""
    if result.refit is None:
        return None
    return {key: value for key, value in asdict(result.refit).items() if key != "seconds"}


def sensitivity_histogram(name: str, path: PruningPath) -> dict[str, Any]:
    """How the sensitivities L_q of a layer are distributed over decades (Figure 3); empty where there are none."""
    if path.sensitivities is None:
        return {}
    values = path.sensitivities.double().flatten().cpu()
    logs = values.clamp_min(10.0**LOWEST_LOG10).log10()
    low, high = int(logs.min().floor()), int(logs.max().floor()) + 1
    bins = (high - low) * BINS_PER_DECADE
    return {
        "layer": name,
        "log10_edges": [low + step / BINS_PER_DECADE for step in range(bins + 1)],
        "counts": [int(count) for count in torch.histc(logs, bins, low, high)],
        "share_below_0.001": float((values < 1e-3).double().mean()),
    }


def _metrics(config: Mapping[str, Any], dense: nn.Module, result: PruneResult, measured: Split) -> dict[str, Any]:
    kept = sum(record.kept for record in result.layers)
    return {
        "experiment": config["name"],
        "method": config["method"]["name"],
        "seed": config["seed"],
        "data": measured.title,
        "solver": config["method"]["solver"],
        "requested": requested(config),
        "allocation": config["method"]["allocation"],
        "density": result.density,
        "correction": result.correction,
        "removable_weights": kept + sum(record.removed for record in result.layers),
        "kept_weights": kept,
        "network_density": result.network_density,
        "unpruned_share": result.unpruned_share,
        "unpruned": [asdict(entry) for entry in result.unpruned],
        "notes": result.notes,
        "shared_by": result.shared_by,
        "distance": result.distance,
        "compared_allocations": result.compared_allocations,
        "held_out": result.held_out,
        "stages": result.stages,
        "refit": _refit(result),
        **errors(dense, measured).named("error_before_percent"),
        **errors(before_refit(result), measured).named("error_after_pruning_percent"),
        **(errors(result.model, measured).named("error_after_refit_percent") if result.refit else {}),
        "layer_error_sum": sum(record.error for record in result.layers),
    }
