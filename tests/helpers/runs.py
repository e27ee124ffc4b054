"""Writes small folders of runs, shaped as the stages write them, with numbers that the tests know."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any, NamedTuple

LAYERS = (("fc1", (300, 784)), ("fc2", (100, 300)), ("fc3", (10, 100)))
LAYERS_OF = {
    "lenet5": (("conv1", (20, 1, 5, 5)), ("conv2", (50, 20, 5, 5)), ("fc1", (500, 800)), ("fc2", (10, 500))),
}
# Densities at which the whole network is pruned without retraining, as the prune stage has them.
BUDGETS = (0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.035, 0.03, 0.02, 0.015, 0.009)
FEWER_BUDGETS = {"exact_obs_sequential": BUDGETS[5:], "net_trim": (0.1, 0.05), "net_trim_cascade": (0.1, 0.05)}


class Method(NamedTuple):
    """What a method's runs show."""

    solver: str
    density: float
    pruned: float
    retrained: float
    iterations: int
    to_original: int | None
    hardness: float = 4.0
    rounds: int = 1
    noise: float = 0.0
    refit: float | None = None  # what a refit leaves of every error


# The two that most tests use: solver, density, errors after pruning and retraining, iterations, those to the original.
METHODS: dict[str, Method] = {
    "lobs": Method("lobs", 0.07, 3.3, 1.85, 510, 400, hardness=8.0),
    "magnitude": Method("magnitude", 0.08, 57.0, 2.6, 4000, None),
}
# Every method of the project, with noisy curves: for figures that must stay legible.
EVERY: dict[str, Method] = {
    "lobs": Method("lobs", 0.07, 3.3, 1.85, 510, 400, 8.0, noise=0.1),
    "lobs_resolve": Method("lobs", 0.07, 2.6, 1.8, 510, 300, 9.0, noise=0.1),
    "lobs_iterative": Method("lobs", 0.015, 4.0, 1.95, 640, None, 8.0, 4, noise=0.1),
    "exact_obs": Method("exact_obs", 0.07, 1.9, 1.65, 510, 100, 12.0, noise=0.1),
    "exact_obs_sequential": Method("exact_obs", 0.07, 1.8, 1.6, 510, 90, 12.0, noise=0.1),
    "exact_obs_staged": Method("exact_obs", 0.07, 2.0, 1.6, 510, 80, 13.0, noise=0.1, refit=0.5),
    "exact_obs_iterative": Method("exact_obs", 0.015, 2.2, 1.75, 640, None, 12.0, 4, noise=0.1),
    "magnitude": Method("magnitude", 0.08, 5.0, 1.75, 4000, None, 6.0, noise=0.15),
    "lwc": Method("magnitude", 0.08, 2.5, 1.7, 6000, 3000, 6.0, 4, noise=0.15),
    "dns": Method("magnitude", 0.018, 9.0, 1.9, 7000, None, 6.5, noise=0.2),
    "obd": Method("obd", 0.08, 6.0, 1.8, 4000, None, 5.0, noise=0.15),
    "apoz": Method("apoz", 0.08, 40.0, 3.0, 4000, None, 1.5, 3, noise=0.2),
    "random": Method("random", 0.08, 88.0, 3.6, 4000, None, 2.0, noise=0.2),
    "net_trim": Method("net_trim", 0.07, 12.0, 2.1, 510, None, 7.0, noise=0.1),
    "net_trim_cascade": Method("net_trim", 0.07, 9.0, 2.0, 510, None, 7.4, noise=0.1),
}
SECOND_ORDER = ("lobs", "exact_obs")
# The methods that are run with two more seeds.
SEVERAL_SEEDS = ("lobs", "lobs_iterative", "exact_obs_sequential", "exact_obs_iterative", "lwc", "dns")


def write_runs(
    root: Path,
    experiment: str = "lenet300",
    seeds: tuple[int, ...] = (0,),
    methods: dict[str, Method] = METHODS,
) -> Path:
    """Writes all stages of the methods; seed k adds k points to every error after pruning and 10 k iterations."""
    for seed in seeds:
        folder = root / experiment / f"seed{seed}"
        write_train(folder, experiment, seed)
        for name, method in methods.items():
            write_method(folder, experiment, seed, name, method)
    return root


def write_every(root: Path, experiment: str = "lenet300") -> Path:
    """Writes every method with the seeds that the project runs it with."""
    write_runs(root, experiment, (0,), EVERY)
    return write_runs(root, experiment, (1, 2), {name: EVERY[name] for name in SEVERAL_SEEDS})


def write_train(folder: Path, experiment: str, seed: int) -> None:
    metrics = {"experiment": experiment, "seed": seed, "test_error_percent": 1.7, "train_error_percent": 0.01}
    write_json(folder / "train/metrics.json", {**metrics, "epochs": 2, "parameters": 266610, "device": "cpu"})
    rows = [(1, 0.2, 2.5), (2, 0.1, 1.7)]
    write_csv(folder / "train/curve.csv", ("epoch", "train_loss", "test_error_percent"), rows)
    write_json(folder / "train/timings.json", timings(12.5))
    write_json(folder / "collect/metrics.json", {"experiment": experiment, "seed": seed, "images": 60000})
    write_json(folder / "collect/timings.json", {**timings(2.0), "peak_memory_mib": 700.0})


def write_method(folder: Path, experiment: str, seed: int, name: str, method: Method) -> None:
    density, retrained = method.density, method.retrained
    pruned = method.pruned + seed
    iterations = method.iterations + (10 * seed if method.rounds == 1 else 0)
    target = folder / name
    place = {"experiment": experiment, "method": name, "seed": seed}
    errors = {"error_before_percent": 1.7, "error_after_pruning_percent": pruned}
    asked = {"solver": method.solver, "requested": {"density": density}}
    asked |= {"allocation": "uniform"}
    counts: dict[str, Any] = {"density": density, "removable_weights": 266200, "kept_weights": round(266200 * density)}
    counts |= {"stages": [], "refit": None, "compared_allocations": {"global": 0.5}, "shared_by": None}
    if method.refit:
        counts["stages"] = ["density=0.26", "density=0.07"]
        counts["refit"] = {"distance": "kl", "before": 0.2, "after": 0.1, "steps": 570, "held_out": 5000}
        counts["error_after_refit_percent"] = method.refit * pruned
    write_json(target / "prune/metrics.json", {**place, **asked, **counts, **errors, "layer_error_sum": 60.0})
    if method.refit:  # retraining goes on from there
        errors["error_after_pruning_percent"] = pruned = method.refit * pruned
    layers = [layer(index, *entry, method) for index, entry in enumerate(LAYERS_OF.get(experiment, LAYERS))]
    write_json(target / "prune/layers.json", layers)
    write_paths(target, method, [entry["name"] for entry in layers])
    write_density_curve(target, name, method, seed)
    write_json(target / "prune/timings.json", timings(3.0, {"fc1": 2.5, "fc2": 0.4, "fc3": 0.1}))
    rounds, curve = retraining(method, seed, pruned, iterations)
    outcome = {**errors, "error_after_retraining_percent": retrained, "iterations": iterations}
    outcome |= {"iterations_to_original": method.to_original, "density": density, "masks_exact": True}
    write_json(target / "retrain/metrics.json", {**place, **outcome, "rounds": rounds})
    write_csv(target / "retrain/curve.csv", ("round", "iteration", "train_loss", "test_error_percent"), curve)
    write_json(target / "retrain/timings.json", timings(8.0))
    evaluated = {"test_error_percent": pruned, "density": density, "output_error": 4.0 + seed, "bound": 400.0}
    evaluated |= {"layers": layers, "storage": storage(density, 2, seed)}
    after = {"test_error_percent": retrained, "density": density, "storage": storage(density, 3, seed)}
    write_json(
        target / "evaluate/metrics.json",
        {**place, "dense": {"test_error_percent": 1.7}, "pruned": evaluated, "retrained": after},
    )
    write_json(target / "evaluate/timings.json", {**timings(1.5), "latency": latency(seed)})


def retraining(
    method: Method, seed: int, pruned: float, iterations: int
) -> tuple[list[dict[str, Any]], list[tuple[Any, ...]]]:
    """The rounds, densities halving down to the last one, and the curve over all of them."""
    rounds, curve = [], []
    each = iterations // method.rounds
    noise = random.Random(seed)
    for number in range(1, method.rounds + 1):
        density = method.density * 2 ** (method.rounds - number)
        spent = each if number < method.rounds else iterations - each * (method.rounds - 1)
        errors = {"error_after_pruning_percent": pruned, "error_after_retraining_percent": method.retrained}
        rounds.append({"round": number, "density": density, **errors, "iterations": spent})
        for step, error in decay(pruned, method.retrained, spent):
            shaken = error * (1 + method.noise * noise.uniform(-1, 1)) if method.noise else error
            curve.append((number, (number - 1) * each + step, 0.1 if step else "", shaken))
    return rounds, curve


def layer(index: int, name: str, shape: tuple[int, ...], method: Method) -> dict[str, Any]:
    weights, density = math.prod(shape), method.density
    record = {"name": name, "shape": list(shape), "density": density, "kept": round(weights * density)}
    record |= {"removed": weights - round(weights * density), "error": 50.0 / 10**index, "relative_error": 0.125}
    threshold = 0.002 if method.solver in SECOND_ORDER else None
    damping = 1e-6 if method.solver in SECOND_ORDER else 0.0
    return {**record, "sensitivity_threshold": threshold, "bound_contribution": 100.0 * (index + 1), "damping": damping}


def write_density_curve(target: Path, name: str, method: Method, seed: int) -> None:
    """From 1.7% at full density towards 90% at none; the sequential method does a little better than its like."""
    hardness = method.hardness * (1.2 if name in FEWER_BUDGETS else 0.8 if name == "dns" else 1)
    errors = [
        (share, 1.7 + 88.3 * (1 - share) ** (40 * share * hardness)) for share in FEWER_BUDGETS.get(name, BUDGETS)
    ]
    columns: tuple[str, ...] = ("density", "test_error_percent", "output_error")
    points: list[tuple[Any, ...]] = [(share, error * (1 + 0.05 * seed), 0.2 * error) for share, error in errors]
    if method.refit:
        columns += ("test_error_after_refit_percent", "output_error_after_refit")
        points = [(*point, method.refit * point[1], method.refit * point[2]) for point in points]
    write_csv(target / "prune/density_curve.csv", columns, points)


def write_paths(target: Path, method: Method, layers: list[str]) -> None:
    """Curves of the shape that real ones have: flat at first, steep near 100%."""
    hardness, second_order = method.hardness, method.solver in SECOND_ORDER
    points = []
    for index, name in enumerate(layers):
        for step in range(33):
            density = 1 - step / 32
            share = (1 - density) ** hardness
            threshold = 0.01 * share if second_order else ""
            points.append((name, density, 500.0 / 10**index * share, share, threshold))
    columns = ("layer", "density", "error", "relative_error", "sensitivity_threshold")
    write_csv(target / "prune/paths.csv", columns, points)
    accuracy = [(1 - k / 24, 98.3 - 88.3 * (k / 24) ** (4 * hardness)) for k in range(25)]
    write_csv(target / "prune/first_layer_curve.csv", ("density", "test_accuracy_percent"), accuracy)
    sensitivities: dict[str, Any] = {}
    if second_order:
        edges = [-10 + 0.25 * k for k in range(37)]
        counts = [round(9000 * math.exp(-((edge + 13 - hardness) ** 2) / 2)) for edge in edges[:-1]]
        below = sum(count for count, edge in zip(counts, edges, strict=False) if edge < -3) / sum(counts)
        sensitivities = {"layer": layers[0], "log10_edges": edges, "counts": counts, "share_below_0.001": below}
    write_json(target / "prune/sensitivities.json", sensitivities)


def decay(start: float, end: float, iterations: int) -> list[tuple[int, float]]:
    """A retraining curve from one error to the other."""
    steps = range(0, iterations + 1, 10 if iterations < 1000 else 50)
    return [(step, end + (start - end) * math.exp(-8 * step / iterations)) for step in steps]


def storage(density: float, removed: int, seed: int) -> dict[str, Any]:
    """As of LeNet-300-100; every seed removes one unit more of the first layer."""
    units = {"fc1": removed + seed, "fc2": 1, "fc3": 0}
    files = {"dense_bytes": 1_066_880, "sparse_bytes": round(5_300_000 * density), "compact_bytes": 1_000_000}
    counts = {"parameters": 266_610, "compact_parameters": 250_000, "removed_units": units}
    return {**files, **counts, "compact_difference": 1e-7, "not_compacted": None}


def latency(seed: int) -> list[dict[str, Any]]:
    """The retrained network is twice as fast after compaction, and every seed a little slower."""
    times = [
        ("pruned", 1, 0.2, 0.1),
        ("pruned", 256, 4.0, 3.0),
        ("retrained", 1, 0.1, 0.05),
        ("retrained", 256, 4.0, 2.0),
    ]
    rows = [dict(zip(("network", "batch", "before_ms", "after_ms"), entry, strict=True)) for entry in times]
    return [{**row, "before_ms": row["before_ms"] + 0.1 * seed} for row in rows]


def timings(total: float, layers: dict[str, float] | None = None) -> dict[str, Any]:
    extra = {"layers": layers} if layers else {}
    return {**extra, "total": total, "peak_memory_mib": 600.0, "device": "cpu", "threads": 2}


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([columns, *rows])
