"""Draws layer error against seconds for every solver, from what benchmarks/solvers.py wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

from lobs_paper.report.drawing import SETTINGS, Drawing, canvas
from lobs_paper.report.methods import style_of
from lobs_paper.report.records import load_object

STEM = "error-seconds"
TITLE = "Layer error against seconds, for every solver"
SOURCE = "solvers.json"
# The paper's headline for LeNet-300-100.
_DENSITY = 0.07
_COLUMNS = ("solver", "density", "seconds", "error", "relative_error")


@dataclass(frozen=True)
class SolverRow:
    """A solver at one density: seconds for its whole path, and for the weights at that count."""

    solver: str
    density: float
    error: float
    relative_error: float
    path_seconds: float
    count_seconds: float


@dataclass(frozen=True)
class Solvers:
    """The benchmark's file."""

    layer: str
    shape: tuple[int, ...]
    threads: int
    rows: tuple[SolverRow, ...]


def draw_solvers(reports_dir: Path) -> Drawing | None:
    """Draw the figure from `<reports_dir>/solvers.json`.

    Args:
        reports_dir: where the benchmark wrote to.

    Returns:
        The drawing; None without the file.
    """
    measured = load_object(reports_dir / SOURCE, Solvers)
    rows = [row for row in measured.rows if row.density == _DENSITY] if measured else []
    if measured is None or not rows:
        return None
    with matplotlib.rc_context(SETTINGS):
        figure, (axes,) = canvas()
        figure.set_size_inches(7.6, 4.6)
        # The names stand in a column of their own, in the order of the errors: marks may lie close together.
        line: Any = {"arrowstyle": "-", "color": "#BBBBBB", "linewidth": 0.8, "relpos": (0, 0.5)}
        for index, row in enumerate(sorted(rows, key=lambda row: -row.error)):
            seconds, look = row.path_seconds + row.count_seconds, style_of(row.solver.split(" ")[0].rstrip(","))
            axes.plot(seconds, row.error, marker=look.marker, color=look.color, markersize=8, linestyle="none")
            height = 1 - (index + 0.5) / len(rows)
            place: Any = {"xytext": (1.03, height), "textcoords": "axes fraction", "va": "center", "arrowprops": line}
            axes.annotate(row.solver, (seconds, row.error), **place)
        axes.set(xscale="log", yscale="log", xlabel="seconds for the path and the weights", ylabel="layer error E")
    records = [
        dict(
            zip(
                _COLUMNS,
                (row.solver, row.density, row.path_seconds + row.count_seconds, row.error, row.relative_error),
                strict=True,
            )
        )
        for row in rows
    ]
    shape = " x ".join(map(str, measured.shape))
    caption = (
        f"Layer {measured.layer} ({shape}) of LeNet-300-100 with {100 * _DENSITY:g}% of its weights kept, on "
        f"{measured.threads} threads; logarithmic axes, lower and further to the left is better. Measured once, by "
        "`python benchmarks/solvers.py`; all densities: [solvers.md](solvers.md)."
    )
    return Drawing(STEM, TITLE, caption, figure, _COLUMNS, records)
