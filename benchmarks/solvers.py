"""Layer error and seconds of every solver at 20%, 10%, 7% and 4% density, written to reports/solvers.{csv,md,json}.

    python benchmarks/solvers.py [--run runs/lenet300/seed0] [--out reports]

E is measured on the final weights with the layer's calibration statistics, without damping, as is its share of the
layer's output energy. Seconds are those of a whole path (the shortest of three runs) and of one count on it, weights
included.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from common import arguments, load_layer, seconds

from lobs.calibration.statistics import layer_error
from lobs.solvers import make
from lobs_paper.files import write_csv, write_json, write_text

DENSITIES = (0.20, 0.10, 0.07, 0.04)
SOLVERS = {
    "exact_obs + refine": ("exact_obs", {"refine": True}),
    "exact_obs": ("exact_obs", {}),
    "exact_obs, float32": ("exact_obs", {"precision": "float32"}),
    "exact_obs, groups of 128": ("exact_obs", {"group_size": 128}),
    "lobs, resolve": ("lobs", {"resolve": True}),
    "lobs": ("lobs", {}),
    "sparsegpt": ("sparsegpt", {}),
    "wanda": ("wanda", {}),
    "magnitude": ("magnitude", {}),
    "random": ("random", {}),
}
COLUMNS = ("solver", "density", "error", "relative_error", "path_seconds", "count_seconds")


def main() -> None:
    """Measure, print and write."""
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder to write to")
    options = parser.parse_args()
    weight, statistics = load_layer(options.run, options.layer)
    energy = layer_error(weight, statistics.second_moment)
    rows = []
    for label, (name, chosen) in SOLVERS.items():
        solver = make(name, **chosen)
        solver(weight[:2], statistics).at(weight.shape[1])  # compiled, caches warm
        path_seconds = seconds(partial(solver, weight, statistics))
        for density in DENSITIES:
            path = solver(weight, statistics)  # a fresh one: some remember what the first count had to solve
            count = path.count_for(density)
            start = time.perf_counter()
            pruned, _ = path.at(count)
            spent = time.perf_counter() - start
            error = layer_error(pruned - weight, statistics.second_moment)
            rows.append(dict(zip(COLUMNS, (label, density, error, error / energy, path_seconds, spent), strict=True)))
            print(
                f"{label:26s} {density:4.0%}  E {error:10.4f}  path {path_seconds:6.2f} s  count {spent:6.2f} s",
                flush=True,
            )
    gains = refine_gains(rows)
    for density, gain in gains.items():
        print(f"refine lowers E by {gain:.1%} at {density}")
    shape = [weight.shape[0], statistics.features]
    write_csv(options.out / "solvers.csv", rows, COLUMNS)
    record = {"layer": options.layer, "shape": shape, "threads": torch.get_num_threads(), "refine_gain": gains}
    write_json(options.out / "solvers.json", {**record, "rows": rows})
    write_text(options.out / "solvers.md", markdown(rows, gains, options.layer, shape))


def refine_gains(rows: list[dict]) -> dict[str, float]:
    """By which share the swaps lower the error of exact greedy removal, per density."""
    errors = {(row["solver"], row["density"]): row["error"] for row in rows}
    return {
        f"{density:.0%}": 1 - errors["exact_obs + refine", density] / errors["exact_obs", density]
        for density in DENSITIES
    }


def markdown(rows: list[dict], gains: dict[str, float], layer: str, shape: list[int]) -> str:
    """The table, a solver per line."""
    heads = [f"E at {density:.0%}" for density in DENSITIES]
    lines = [
        f"# All solvers on {layer} ({shape[0]} x {shape[1]})",
        "",
        "Layer error E = ||Z_hat - Z||^2 / n on the calibration inputs, no retraining; seconds for a whole path, and",
        "for the weights at one count (the slowest of the four). Written by `python benchmarks/solvers.py`.",
        "",
        f"| solver | {' | '.join(heads)} | path, s | one count, s |",
        f"|---|{'---:|' * (len(heads) + 2)}",
    ]
    for label in dict.fromkeys(row["solver"] for row in rows):
        mine = [row for row in rows if row["solver"] == label]
        errors = " | ".join(f"{row['error']:.4g}" for row in mine)
        slowest = max(row["count_seconds"] for row in mine)
        lines.append(f"| {label} | {errors} | {mine[0]['path_seconds']:.2f} | {slowest:.2f} |")
    listed = ", ".join(f"{gain:.1%} at {density}" for density, gain in gains.items())
    return "\n".join([*lines, "", f"Swapping (`refine`) lowers the error of exact greedy removal by {listed}.", ""])


if __name__ == "__main__":
    main()
