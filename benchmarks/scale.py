"""What grows with what: seconds and bytes over inputs, layers, images, processes; what a huge network would take.

python benchmarks/scale.py [--output reports/scale.md]

Times are core seconds (of one thread), which other programs on the machine do not stretch. Every curve is measured at
three or four sizes, its exponent fitted, and the extrapolation uses these fits alone.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pandas import DataFrame
from torch import nn

import lobs
from lobs.solvers import make
from lobs_paper.files import write_table, write_text
from lobs_paper.report.markdown import markdown

INPUTS = (256, 512, 1024)
LAYERS = (1, 2, 4, 8)
IMAGES = (1024, 2048, 4096, 8192)
DEVICES = (1, 2, 4)
UNITS = 4  # a layer of n inputs has n / 4 units
WIDTH, BATCH = 512, 256
DENSITY = 0.5
SOLVERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SparseGPT": ("sparsegpt", {}),
    "L-OBS, kept weights solved for anew": ("lobs", {"resolve": True}),
    "exact OBS, in groups of 512 inputs": ("exact_obs", {"group_size": 512}),
}
# The network to extrapolate to: 1,000 layers of 10,000 x 10,000 weights, 256 sequences of 1,024 tokens.
HUGE_LAYERS, HUGE_WIDTH, HUGE_SAMPLES = 1000, 10_000, 256 * 1024


def core_seconds(work: Callable[[], object]) -> float:
    """The shortest of two runs, in seconds of a core."""
    found = []
    for _ in range(2):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def network(layers: int, width: int, rows: int | None = None) -> nn.Module:
    """Linear layers with ReLUs between them."""
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for _ in range(layers):
        modules += [nn.Linear(width, rows or width, bias=False), nn.ReLU()]
    return nn.Sequential(*modules)


def batches(images: int, width: int) -> list[torch.Tensor]:
    """Inputs of a network."""
    torch.manual_seed(1)
    return list(torch.randn(images, width).split(BATCH))


def measure() -> list[dict[str, Any]]:
    """All curves: what grows (`curve`), with what (`over`), at which size, how much."""
    rows: list[dict[str, Any]] = []

    def note(over: str, size: int, curve: str, value: float) -> None:
        rows.append({"over": over, "size": size, "curve": curve, "value": value})
        print(rows[-1], flush=True)

    for size in INPUTS:
        data = batches(2048, size)
        model = network(1, size, size // UNITS)
        statistics = lobs.collect_statistics(model, data)
        note("inputs", size, "statistics, bytes", statistics["0"].second_moment.nbytes)
        taken = core_seconds(lambda model=model, data=data: lobs.collect_statistics(model, data))
        note("inputs", size, "collect, core seconds per 1,000 samples", taken / 2.048)
        for name, (solver, options) in SOLVERS.items():
            layer = (size // UNITS, size)
            taken = core_seconds(partial(solve, solver, options, statistics["0"], layer))
            note("inputs", size, f"{name}: core seconds for n / {UNITS} units", taken)
    for count in LAYERS:
        model, data = network(count, WIDTH), batches(1024, WIDTH)
        statistics = lobs.collect_statistics(model, data)
        note("layers", count, "statistics, bytes", sum(layer.second_moment.nbytes for layer in statistics.values()))
        taken = core_seconds(lambda m=model, s=statistics: lobs.prune(m, s, method="sparsegpt", density=DENSITY))
        note("layers", count, "prune, core seconds", taken)
    for count in IMAGES:
        model, data = network(1, WIDTH, 16), batches(count, WIDTH)
        statistics = lobs.collect_statistics(model, data)
        note("images", count, "statistics, bytes", statistics["0"].second_moment.nbytes)
        taken = core_seconds(lambda m=model, d=data: lobs.collect_statistics(m, d))
        note("images", count, "collect, core seconds", taken)
    for count in DEVICES:
        model, share = network(1, WIDTH, 16), batches(IMAGES[-1], WIDTH)[::count]
        taken = core_seconds(partial(lobs.collect_statistics, model, share))
        note("devices", count, "collect, core seconds of one device's share", taken)
    return rows


def solve(solver: str, options: dict[str, Any], statistics: lobs.LayerStatistics, shape: tuple[int, int]) -> None:
    """Prune a layer."""
    torch.manual_seed(2)
    path = make(solver, **options)(torch.randn(shape), statistics)
    path.at(round((1 - DENSITY) * path.removable))


def fitted(table: DataFrame, curve: str, over: str) -> tuple[float, float]:
    """Exponent and factor of value = factor * size^exponent, least squares of the logarithms."""
    rows = table[(table["curve"] == curve) & (table["over"] == over)]
    exponent, log_factor = np.polyfit(np.log(rows["size"].astype(float)), np.log(rows["value"].astype(float)), 1)
    return float(exponent), float(np.exp(log_factor))


def growth(table: DataFrame) -> DataFrame:
    """Every curve: its values, and the exponent that fits them."""
    lines = []
    for (over, curve), rows in table.groupby(["over", "curve"], sort=False):
        sizes = ", ".join(f"{size:,}: {value:.3g}" for size, value in zip(rows["size"], rows["value"], strict=True))
        lines.append(
            {"over": over, "what": curve, "measured": sizes, "exponent": f"{fitted(table, curve, over)[0]:.2f}"}
        )
    return DataFrame(lines)


def extrapolated(table: DataFrame) -> tuple[DataFrame, float]:
    """The huge network by the fits over inputs: a line per step, and the bytes of a second moment."""

    def at(curve: str) -> float:
        exponent, factor = fitted(table, curve, "inputs")
        return factor * HUGE_WIDTH**exponent

    steps = {"statistics": HUGE_SAMPLES / 1000 * at("collect, core seconds per 1,000 samples")}
    for name in SOLVERS:
        steps[name] = UNITS * at(f"{name}: core seconds for n / {UNITS} units")
    return DataFrame(
        {
            "step": name,
            "core hours per layer": f"{seconds / 3600:.3g}",
            f"all {HUGE_LAYERS:,}": f"{HUGE_LAYERS * seconds / 3600:,.0f}",
        }
        for name, seconds in steps.items()
    ), at("statistics, bytes")


def main() -> None:
    """Measure, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("reports/scale.md"))
    output = parser.parse_args().output
    torch.set_num_threads(1)
    table = DataFrame(measure())
    write_table(output.with_suffix(".csv"), table)
    huge, moment = extrapolated(table)
    weights = HUGE_LAYERS * HUGE_WIDTH**2
    write_text(
        output,
        f"""# What grows with what

Written by `benchmarks/scale.py`; seconds are those of one core of the machine at hand. An exponent of 1 doubles what
the size doubles, 2 makes it four times as much, 0 leaves it alone. Layers are {WIDTH} inputs wide where nothing else is
said, and pruned to a density of {DENSITY}.

{markdown(growth(table))}

Layers do not depend on each other: `lobs factorise -m +sweep=layers` with a launcher (joblib, Slurm, Ray) does them
side by side: on a core for each of {HUGE_LAYERS:,} layers the column per layer below is the time of all. Devices
share the images out and add up their sums, a second moment per layer; that addition is not among the seconds.

## Extrapolated: {HUGE_LAYERS:,} layers, {weights / 1e9:,.0f} billion weights

By the fits above, nothing of it was run: layers of {HUGE_WIDTH:,} x {HUGE_WIDTH:,}, {UNITS} times what those of as many
inputs and a quarter of the units take, and {HUGE_SAMPLES:,} samples (tokens).
A layer's second moment takes {moment / 2**30:.2g} GiB, all of them {HUGE_LAYERS * moment / 2**40:.2g} TiB, which
`memory=` and `folder=` keep on disk or collect in groups of layers that fit; forward passes come on top. The fits end
at {INPUTS[-1]:,} inputs, so these are orders of magnitude, and too low where a cube takes over beyond them
(SparseGPT's inverse).

{markdown(huge)}
""",
    )
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
