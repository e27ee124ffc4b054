"""Writes small folders of runs, shaped as the stages write them, with numbers that the tests know."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

LAYERS = (("fc1", (300, 784)), ("fc2", (100, 300)), ("fc3", (10, 100)))
# Per method: solver, density, error after pruning and after retraining, iterations and those to the original error.
METHODS: dict[str, tuple[str, float, float, float, int, int | None]] = {
    "lobs": ("lobs", 0.07, 3.3, 1.85, 510, 400),
    "magnitude": ("magnitude", 0.08, 57.0, 2.6, 4000, None),
}


def write_runs(root: Path, experiment: str = "lenet300", seeds: tuple[int, ...] = (0,)) -> Path:
    """Writes all stages of both methods; seed k adds k points to every error after pruning and 10 k iterations."""
    for seed in seeds:
        folder = root / experiment / f"seed{seed}"
        write_train(folder, experiment, seed)
        for method in METHODS:
            write_method(folder, experiment, seed, method)
    return root


def write_train(folder: Path, experiment: str, seed: int) -> None:
    metrics = {"experiment": experiment, "seed": seed, "test_error_percent": 1.7, "train_error_percent": 0.01}
    write_json(folder / "train/metrics.json", {**metrics, "epochs": 2, "parameters": 266610, "device": "cpu"})
    rows = [(1, 0.2, 2.5), (2, 0.1, 1.7)]
    write_csv(folder / "train/curve.csv", ("epoch", "train_loss", "test_error_percent"), rows)
    write_json(folder / "train/timings.json", timings(12.5))


def write_method(folder: Path, experiment: str, seed: int, method: str) -> None:
    solver, density, pruned, retrained, iterations, to_original = METHODS[method]
    pruned += seed
    iterations += 10 * seed
    target = folder / method
    place = {"experiment": experiment, "method": method, "seed": seed}
    errors = {"error_before_percent": 1.7, "error_after_pruning_percent": pruned}
    asked = {"solver": solver, "requested_density": density, "requested_tolerance": None, "allocation": "uniform"}
    counts = {"density": density, "removable_weights": 266200, "kept_weights": round(266200 * density)}
    write_json(target / "prune/metrics.json", {**place, **asked, **counts, **errors, "layer_error_sum": 60.0})
    write_json(target / "prune/layers.json", [layer(i, method, density) for i in range(len(LAYERS))])
    write_paths(target, method)
    write_json(target / "prune/timings.json", timings(3.0, {"fc1": 2.5, "fc2": 0.4, "fc3": 0.1}))
    last = {"density": density, "error_after_pruning_percent": pruned, "error_after_retraining_percent": retrained}
    outcome = {**errors, "error_after_retraining_percent": retrained, "iterations": iterations}
    outcome |= {"iterations_to_original": to_original, "density": density, "masks_exact": True}
    rounds = [{"round": 1, **last, "iterations": iterations}]
    write_json(target / "retrain/metrics.json", {**place, **outcome, "rounds": rounds})
    curve = [(1, step, 0.1 if step else "", error) for step, error in decay(pruned, retrained, iterations)]
    write_csv(target / "retrain/curve.csv", ("round", "iteration", "train_loss", "test_error_percent"), curve)
    write_json(target / "retrain/timings.json", timings(8.0))
    evaluated = {"test_error_percent": pruned, "density": density, "output_error": 4.0 + seed, "bound": 400.0}
    evaluated |= {"layers": [layer(i, method, density) for i in range(len(LAYERS))]}
    after = {"test_error_percent": retrained, "density": density}
    write_json(
        target / "evaluate/metrics.json",
        {**place, "dense": {"test_error_percent": 1.7}, "pruned": evaluated, "retrained": after},
    )


def layer(index: int, method: str, density: float) -> dict[str, Any]:
    name, shape = LAYERS[index]
    weights = shape[0] * shape[1]
    record = {"name": name, "shape": list(shape), "density": density, "kept": round(weights * density)}
    record |= {"removed": weights - round(weights * density), "error": 50.0 / 10**index, "relative_error": 0.125}
    threshold = 0.002 if method == "lobs" else None
    damping = 1e-6 if method == "lobs" else 0.0
    return {**record, "sensitivity_threshold": threshold, "bound_contribution": 100.0 * (index + 1), "damping": damping}


def write_paths(target: Path, method: str) -> None:
    """Curves of the shape that real ones have: flat at first, steep near 100%."""
    hardness = 8.0 if method == "lobs" else 4.0
    points = []
    for index, (name, _) in enumerate(LAYERS):
        for step in range(33):
            density = 1 - step / 32
            share = (1 - density) ** hardness
            threshold = 0.01 * share if method == "lobs" else ""
            points.append((name, density, 500.0 / 10**index * share, share, threshold))
    columns = ("layer", "density", "error", "relative_error", "sensitivity_threshold")
    write_csv(target / "prune/paths.csv", columns, points)
    accuracy = [(1 - k / 24, 98.3 - 88.3 * (k / 24) ** (4 * hardness)) for k in range(25)]
    write_csv(target / "prune/first_layer_curve.csv", ("density", "test_accuracy_percent"), accuracy)
    sensitivities: dict[str, Any] = {}
    if method == "lobs":
        edges = [-10 + 0.25 * k for k in range(37)]
        counts = [round(9000 * math.exp(-((edge + 5) ** 2) / 2)) for edge in edges[:-1]]
        below = sum(count for count, edge in zip(counts, edges, strict=False) if edge < -3) / sum(counts)
        sensitivities = {"layer": "fc1", "log10_edges": edges, "counts": counts, "share_below_0.001": below}
    write_json(target / "prune/sensitivities.json", sensitivities)


def decay(start: float, end: float, iterations: int) -> list[tuple[int, float]]:
    """A retraining curve from one error to the other."""
    steps = range(0, iterations + 1, 10)
    return [(step, end + (start - end) * math.exp(-8 * step / iterations)) for step in steps]


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
