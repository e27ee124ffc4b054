"""What every figure shares: the settings, the canvas, lines with their bands over seeds, axes, and writing the files.

A figure is written as SVG and PNG that are the same bytes for the same metrics. Over several seeds a line is the mean,
and its thin band reaches from the least to the largest value.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import seaborn
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from pandas import DataFrame, Series, concat

from lobs_paper.files import write_bytes, write_table
from lobs_paper.report.curves import NEAR
from lobs_paper.report.methods import style_of

SETTINGS: Any = {
    # A fixed salt makes the identifiers inside an SVG, and so the whole file, reproducible.
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
# Inches of a legend's entry.
_ENTRY = 2.2
# Ticks of test errors: those for many decades, and more of them where the largest is less than so many times the least.
ERROR_TICKS = (0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)
_MORE_TICKS = (0.4, 0.6, 0.8, 0.9, 1.2, 2.5, 4, 6, 8)
_NARROW = 8
# Room beside the first and the last density, as a factor.
_ROOM = 1.12


@dataclass(frozen=True)
class Drawing:
    """A finished figure, the numbers behind it, and the words for the page.

    Without data the numbers are not the figure's to write: they stand in `<stem>.csv` already.
    """

    stem: str
    title: str
    caption: str
    figure: Figure
    data: DataFrame | None

    def write(self, folder: Path) -> list[Path]:
        """Write `<stem>.svg`, `<stem>.png` and, where the figure has data, `<stem>.csv`; give their paths."""
        paths = []
        with matplotlib.rc_context(SETTINGS):
            for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
                buffer = io.BytesIO()
                self.figure.savefig(buffer, format=suffix, dpi=_PNG_DPI, metadata=metadata)
                paths.append(write_bytes(folder / f"{self.stem}.{suffix}", buffer.getvalue()))
        if self.data is not None:
            paths.append(write_table(folder / f"{self.stem}.csv", self.data))
        return paths


def canvas(
    panels: int = 1, size: tuple[float, float] = (6.4, 4.4), one_scale: bool = True
) -> tuple[Figure, list[Axes]]:
    """Give a figure with panels side by side, further ones in the next row, without any window or global state.

    Args:
        panels: how many.
        size: of one of them, inches.
        one_scale: whether all panels have the same vertical axis.

    Returns:
        The figure and its panels.
    """
    rows, columns = math.ceil(panels / COLUMNS), min(panels, COLUMNS)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharey=one_scale, squeeze=False).flat
    for unused in grid[panels:]:
        unused.remove()
    return figure, list(grid[:panels])


def draw_lines(
    axes: Axes, points: DataFrame, x: str, y: str, orient: str = "x", marked: Callable[[Any], Any] = lambda _: 1
) -> None:
    """Draw a line per method with its band over the seeds. Scales are set afterwards: the means are those of numbers.

    Args:
        axes: to draw on.
        points: of some methods and seeds.
        x: the column on the horizontal axis.
        y: that on the vertical one.
        orient: the axis on which the seeds share their places, ``"x"`` or ``"y"``.
        marked: gives which points of a line have a marker, as Matplotlib's `markevery`, from their places.
    """
    over_seeds: Any = {"estimator": "mean", "errorbar": ("pi", 100), "err_kws": {"alpha": 0.15, "linewidth": 0}}
    for (method, folder), rows in points.groupby(["method", "folder"], sort=False):
        statistics = over_seeds if rows["seed"].nunique() > 1 else {"estimator": None}
        look = style_of(method, folder).plot
        seaborn.lineplot(rows, x=x, y=y, ax=axes, orient=orient, legend=False, **statistics, **look)
        line = axes.lines[-1]
        line.set_markevery(marked(line.get_xdata()))


def shared(points: DataFrame, key: Sequence[str]) -> tuple[DataFrame, list[str]]:
    """Keep the points that all seeds of a method have, unless these are less than half of what was measured.

    Args:
        points: of some methods and seeds.
        key: the columns that a point is known by.

    Returns:
        points: what is kept; of a method whose seeds share less, the first seed's points.
        alone: the labels of such methods.
    """
    kept = {}
    alone = []
    for label, rows in points.groupby("label", sort=False):
        first = rows[rows["seed"] == rows["seed"].iloc[0]]
        common = rows[rows.groupby(list(key))["seed"].transform("nunique") == rows["seed"].nunique()]
        if 2 * len(common) < rows["seed"].nunique() * len(first):
            alone.append(label)
        kept[label] = first if label in alone else common
    return points.loc[[index for rows in kept.values() for index in rows.index]], alone


def at_shared_densities(curve: DataFrame) -> DataFrame:
    """Keep the densities above 0 that all seeds of a method have; those that differ a little become their mean."""
    found = []
    for _, rows in curve[curve["density"] > 0].groupby("label", sort=False):
        seeds = [part for _, part in rows.groupby("seed")]
        for density in seeds[0]["density"]:
            near = rows.loc[[(part["density"] - density).abs().idxmin() for part in seeds]]
            if ((near["density"] - density).abs() <= NEAR * density).all():
                found.append(near.assign(density=near["density"].mean(), kept=100 * near["density"].mean()))
    return concat(found) if found else curve.iloc[:0].assign(kept=0.0)


def mark_level(axes: Axes, percent: float | None, name: str, across: str = "y") -> None:
    """Mark a percentage by a dotted line with an entry in the legend; nothing where a logarithmic axis has no place."""
    if percent and percent > 0:
        mark = axes.axhline if across == "y" else axes.axvline
        mark(percent, color="black", linewidth=1, linestyle=":", label=name)


def plain_log(axes: Axes, which: str, ticks: Sequence[float], shown: str = "{x:g}") -> None:
    """Make an axis logarithmic with plain numbers.

    Args:
        axes: whose.
        which: ``"x"`` or ``"y"``.
        ticks: where, as far as they lie in the axis' range.
        shown: how.
    """
    axes.set(**{f"{which}scale": "log"})
    limits = sorted(getattr(axes, f"get_{which}lim")())
    axis = getattr(axes, f"{which}axis")
    axis.set_ticks([tick for tick in ticks if limits[0] <= tick <= limits[1]])
    axis.set_major_formatter(shown)
    axis.set_minor_locator(NullLocator())


def error_axis(panels: Sequence[Axes], which: str = "y") -> None:
    """Make the panels' axes those of test errors."""
    for axes in panels:
        axes.set(**{f"{which}scale": "log"})
        low, high = getattr(axes, f"get_{which}lim")()
        plain_log(axes, which, sorted(ERROR_TICKS + (_MORE_TICKS if high < _NARROW * low else ())))
        axes.set(**{f"{which}label": "test error (%)" if axes is panels[0] else ""})


def density_axis(axes: Axes, percent: Series) -> None:
    """Make the horizontal axis that of densities in percent, less to the right."""
    axes.set(xlabel="density (% of the weights kept)", xlim=(percent.max() * _ROOM, percent.min() / _ROOM))
    plain_log(axes, "x", ERROR_TICKS)


def legend(figure: Figure) -> None:
    """One legend for all panels above them, where it hides no line; an entry that several have comes once."""
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    columns = max(2, int(figure.get_figwidth() / _ENTRY))
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns, markerscale=1.3)
