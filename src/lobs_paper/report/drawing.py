"""What every figure shares: the settings, the canvas, lines with their bands over seeds, and writing the files.

What is drawn, and in which panel, is decided in selection.py.

A figure is written as SVG and PNG that are the same bytes for the same metrics. Over several seeds a line is the mean,
and its thin band reaches from the least to the largest value.
"""

from __future__ import annotations

import io
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from lobs_paper.report.methods import style_of
from lobs_paper.report.output import write_bytes, write_csv
from lobs_paper.report.results import MethodRuns

# A fixed salt makes the identifiers inside an SVG, and so the whole file, reproducible.
SETTINGS: Any = {
    "svg.hashsalt": "lobs",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}
# Panels in a row, where there is one for every layer.
COLUMNS = 4
_PNG_DPI = 150
_BAND: Any = {"alpha": 0.15, "linewidth": 0}
# Markers on a line whose axis is logarithmic.
_MARKERS = 12
# Inches of a legend's entry.
_ENTRY = 2.2
# Ticks of test errors: those for many decades, and more of them where the largest is less than so many times the least.
ERROR_TICKS = (0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)
_MORE_TICKS = (0.4, 0.6, 0.8, 0.9, 1.2, 2.5, 4, 6, 8)
_NARROW = 8


@dataclass(frozen=True)
class Drawing:
    """A finished figure, the numbers behind it, and the words for the page.

    Without columns the numbers are not the figure's to write: they stand in `<stem>.csv` already.
    """

    stem: str
    title: str
    caption: str
    figure: Figure
    columns: tuple[str, ...]
    records: list[dict[str, Any]]

    def write(self, folder: Path) -> list[Path]:
        """Write the figure and its numbers.

        Args:
            folder: where to.

        Returns:
            The paths of `<stem>.svg`, `<stem>.png` and, where the figure has columns, `<stem>.csv`.
        """
        paths = []
        with matplotlib.rc_context(SETTINGS):
            for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
                buffer = io.BytesIO()
                self.figure.savefig(buffer, format=suffix, dpi=_PNG_DPI, metadata=metadata)
                paths.append(write_bytes(folder / f"{self.stem}.{suffix}", buffer.getvalue()))
        if self.columns:
            paths.append(write_csv(folder / f"{self.stem}.csv", self.records, self.columns))
        return paths


@dataclass(frozen=True)
class Point:
    """Mean, least and largest value over the seeds at one key."""

    key: Any
    mean: float
    low: float
    high: float


def average(curves: Sequence[Sequence[tuple[Hashable, float]]]) -> list[Point]:
    """Average curves of (key, value) over the seeds.

    Args:
        curves: one per seed; empty ones are left out.

    Returns:
        A point at every key that all curves hold, in the first one's order.
    """
    seeds = [dict(curve) for curve in curves if curve]
    if not seeds:
        return []
    shared = [key for key in seeds[0] if all(key in seed for seed in seeds)]
    values = {key: [seed[key] for seed in seeds] for key in shared}
    return [Point(key, math.fsum(v) / len(v), min(v), max(v)) for key, v in values.items()]


def average_or_first(curves: Sequence[Sequence[tuple[Hashable, float]]]) -> tuple[list[Point], bool]:
    """`average`, unless it would leave out most of what was measured.

    Args:
        curves: one per seed; empty ones are left out.

    Returns:
        points: the average's; the first seed's where the seeds share less than half of its keys (Net-Trim's are the
            densities at which its weight was solved).
        alone: whether they are the first seed's.
    """
    seeds = [curve for curve in curves if curve]
    points = average(seeds)
    alone = bool(seeds) and 2 * len(points) < len(seeds[0])
    return (average(seeds[:1]) if alone else points), alone


def draw_line(
    axes: Axes,
    runs: MethodRuns,
    places: Sequence[float],
    points: Sequence[Point],
    across: str = "x",
    log_from: float | None = None,
    marked: float | list[int] = 0.08,
) -> None:
    """Draw one method's line with its band over the seeds; nothing where it has no points.

    Args:
        axes: to draw on.
        runs: of the method, for its style.
        places: where the points lie on the axis that is named by ``across``.
        points: their values.
        across: the axis of the places, ``"x"`` or ``"y"``; the values lie on the other one.
        log_from: where the places' axis turns logarithmic. Markers are then set by place alone; otherwise at equal
            distances along the line, which a noisy line would fill with them.
        marked: which points have a marker without ``log_from``, as Matplotlib's `markevery`.
    """
    if not points:
        return
    style = style_of(runs.method, runs.folder)
    means = [point.mean for point in points]
    marked = marked if log_from is None else _spaced(places, log_from)
    low, high = [point.low for point in points], [point.high for point in points]
    if across == "x":
        axes.plot(places, means, markevery=marked, **style.plot)
        axes.fill_between(places, low, high, color=style.color, **_BAND)
    else:
        axes.plot(means, places, markevery=marked, **style.plot)
        axes.fill_betweenx(places, low, high, color=style.color, **_BAND)


def _spaced(places: Sequence[float], log_from: float) -> list[int]:
    """Indices of places that lie apart by a share of the way to the last one, as a symmetric logarithm sees it."""
    positions = [place / log_from if place <= log_from else 1 + math.log10(place / log_from) for place in places]
    step = max(positions) / _MARKERS
    chosen = [0]
    for index, position in enumerate(positions):
        if position >= positions[chosen[-1]] + step:
            chosen.append(index)
    return chosen


def mark_error(axes: Axes, percent: float | None, name: str) -> None:
    """Mark the dense network's error by a horizontal line; nothing where it has no place on a logarithmic axis."""
    if percent:
        axes.axhline(percent, color="black", linewidth=1, linestyle=":", label=f"{name} ({percent:.2f}%)")


def error_axis(panels: Sequence[Axes]) -> None:
    """Make the vertical axes those of test errors: logarithmic, with plain numbers, over the data's range."""
    for axes in panels:
        axes.set_yscale("log")
        limits = axes.get_ylim()
        axes.set_yticks(sorted(ERROR_TICKS + (_MORE_TICKS if limits[1] < _NARROW * limits[0] else ())))
        axes.set_ylim(limits)  # which the ticks have widened
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("test error (%)")


def legend(figure: Figure, *panels: Axes) -> None:
    """One legend for some panels above them, where it hides no line; an entry that several have comes once."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = max(2, int(figure.get_figwidth() / _ENTRY))
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns, markerscale=1.3)


def canvas(
    panels: int = 1, width: float = 3.6, height: float = 4.0, one_scale: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side, further ones in the next row, without any window or global state.

    Args:
        panels: how many.
        width: of one of several panels, inches.
        height: likewise.
        one_scale: whether all panels have the same vertical axis.

    Returns:
        The figure and its panels.
    """
    rows, columns = math.ceil(panels / COLUMNS), min(panels, COLUMNS)
    figure = Figure(figsize=(6.4, 4.4) if panels == 1 else (width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharey=one_scale, squeeze=False).flat
    for unused in grid[panels:]:
        unused.remove()
    return figure, list(grid[:panels])
