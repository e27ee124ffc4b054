"""How the figures of benchmarks/ are drawn: the Hessian's shape, memory over samples, error and seconds of solvers.

Each benchmark writes a file into the report's folder, from which its figure is drawn.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pandas as pd
import seaborn
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from pandas import DataFrame

from lobs_paper.report.drawing import canvas, legend, plain_log
from lobs_paper.report.methods import style_of

# The paper's headline for LeNet-300-100.
_DENSITY = 0.07


def _read(path: Path, *numbers: str) -> DataFrame:
    """A CSV file, no rows without it; the columns in `numbers` as such."""
    try:
        return pd.read_csv(path, dtype=dict.fromkeys(numbers, float)) if path.exists() else DataFrame()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_hessian(_: Any, folder: Path) -> DataFrame:
    """Read what benchmarks/hessian.py wrote, a row per entry of the matrices."""
    return _read(folder / "figure1.csv", "row", "column", "unit", "hessian", "inverse")


def read_memory(_: Any, folder: Path) -> DataFrame:
    """Read what benchmarks/memory.py wrote, a row per method and number of samples."""
    return _read(folder / "memory.csv", "samples", "needed_mib")


def read_solvers(_: Any, folder: Path) -> DataFrame:
    """Read what benchmarks/solvers.py wrote, a row per solver at one density; what all rows share are its `attrs`."""
    path = folder / "solvers.json"
    if not path.exists():
        return DataFrame()
    measured = json.loads(path.read_text(encoding="utf-8"))
    rows = DataFrame(measured.pop("rows"))
    rows = rows[rows["density"] == _DENSITY].assign(seconds=rows["path_seconds"] + rows["count_seconds"])
    rows.attrs = measured
    return rows[["solver", "density", "seconds", "error", "relative_error"]]


def hessian(_: Any, data: DataFrame) -> tuple[Figure, str]:
    """Figure 1: the Hessian of a small layer's error and its inverse.

    Args:
        data: an entry of both per row; weight `row` is input `row % inputs` of a unit.

    Returns:
        The figure and its caption.

    Raises:
        ValueError: these are not all entries of a square matrix.
    """
    size, units = 1 + int(data["row"].max()), 1 + int(data["unit"].max())
    if len(data) != size**2 or data.duplicated(["row", "column"]).any():
        raise ValueError(f"figure1.csv: {size} rows need {size**2} entries, got {len(data)}")
    width = size // units
    figure, panels = canvas(2, (4.2, 4.2))
    for axes, name, title in zip(panels, ("hessian", "inverse"), ("H", "H⁻¹"), strict=True):
        matrix = data.pivot(index="row", columns="column", values=name)
        largest = matrix.abs().to_numpy().max()
        norm = SymLogNorm(linthresh=largest / 30, vmin=-largest, vmax=largest)
        axes.imshow(matrix, cmap="RdBu_r", norm=norm, interpolation="nearest")
        for border in range(width, size, width):
            axes.axhline(border - 0.5, color="black", linewidth=0.8)
            axes.axvline(border - 0.5, color="black", linewidth=0.8)
        ticks, names = numpy.arange(units) * width + (width - 1) / 2, [f"unit {unit + 1}" for unit in range(units)]
        axes.set(title=title, xticks=ticks, yticks=ticks, xticklabels=names, yticklabels=names)
        axes.grid(visible=False)
    own = data["row"] // width == data["column"] // width
    blocks = data[own].groupby([data["row"] % width, data["column"] % width])["hessian"]
    same = (blocks.max() - blocks.min()).max() / data["hessian"].abs().max()
    caption = (
        f"The Hessian of a layer's error E in all its weights ({units} units with {width} inputs each), by "
        "autograd, and its inverse as a whole. Red: positive, blue: negative, white: zero. Outside the diagonal blocks "
        f"the largest entry is {data.loc[~own, 'hessian'].abs().max():.2g}; the blocks differ from each other by at "
        f"most {same:.2g} of the largest entry. So one inverse of size inputs x inputs serves the whole layer. "
        "Computed by `python benchmarks/hessian.py`."
    )
    return figure, caption


def memory(_: Any, data: DataFrame) -> tuple[Figure, str]:
    """Figure 6 (b): the memory that L-OBS and Net-Trim need against the number of samples."""
    figure, (axes,) = canvas()
    ends = []
    for method, rows in data.sort_values("samples").groupby("method"):
        style = style_of(method)
        seaborn.lineplot(rows, x="samples", y="needed_mib", ax=axes, errorbar=None, legend=False, **style.plot)
        first, last = rows.iloc[0], rows.iloc[-1]
        ends.append(
            f"{style.label} needs {first['needed_mib']:,.0f} MiB with {first['samples']:,.0f} samples and "
            f"{last['needed_mib']:,.0f} MiB with {last['samples']:,.0f}"
        )
    axes.set(xlabel="samples", ylabel="peak memory (MiB)")
    plain_log(axes, "x", sorted(data["samples"].unique()), "{x:,.0f}")
    plain_log(axes, "y", [digit * 10**power for power in range(6) for digit in (1, 2, 5)], "{x:,.0f}")
    legend(figure)
    caption = (
        "LeNet-300-100's first layer: L-OBS collects its statistics and prunes along its path; Net-Trim keeps that "
        "many input vectors and solves its program for one epsilon. Peak resident memory of a fresh process, less that "
        f"of one that only loads the network; logarithmic axes. {'; '.join(ends)}. Measured once, by "
        "`python benchmarks/memory.py`."
    )
    return figure, caption


def solvers(_: Any, data: DataFrame) -> tuple[Figure, str]:
    """Layer error against seconds for every solver, whose names stand in a column: marks may lie close together."""
    figure, (axes,) = canvas(size=(7.6, 4.6))
    line: Any = {"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.8, "relpos": (0, 0.5)}
    for index, row in enumerate(data.sort_values("error", ascending=False, kind="stable").itertuples()):
        look = style_of(row.solver.split(" ")[0].rstrip(","))
        axes.plot(row.seconds, row.error, marker=look.marker, color=look.color, markersize=8, linestyle="none")
        place: Any = {"xytext": (1.03, 1 - (index + 0.5) / len(data)), "textcoords": "axes fraction"}
        axes.annotate(row.solver, (row.seconds, row.error), va="center", arrowprops=line, **place)
    axes.set(xscale="log", yscale="log", xlabel="seconds for the path and the weights", ylabel="layer error E")
    shape = " x ".join(map(str, data.attrs["shape"]))
    caption = (
        f"Layer {data.attrs['layer']} ({shape}) of LeNet-300-100 with {100 * _DENSITY:g}% of its weights kept, on "
        f"{data.attrs['threads']} threads; logarithmic axes, lower and further to the left is better. Measured once, "
        "by `python benchmarks/solvers.py`; all densities: [solvers.md](solvers.md)."
    )
    return figure, caption
