"""Draws Figure 1, the shape of the Hessian, from a small one that benchmarks/hessian.py computed by autograd."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.colors import SymLogNorm

from lobs_paper.report.drawing import SETTINGS, Drawing, canvas
from lobs_paper.report.records import load_rows

STEM = "figure1"
TITLE = "Figure 1: shape of the Hessian"


@dataclass(frozen=True)
class Entry:
    """One entry of the Hessian of E and of its inverse; weight `row` is input `row % inputs` of a unit."""

    row: float
    column: float
    unit: float
    hessian: float
    inverse: float


def draw_hessian(reports_dir: Path) -> Drawing | None:
    """Draw the figure from `<reports_dir>/figure1.csv`.

    Args:
        reports_dir: where the benchmark wrote to.

    Returns:
        The drawing, whose numbers stand in the file already; None without the file.

    Raises:
        ValueError: the file does not hold all entries of a square matrix.
    """
    entries = load_rows(reports_dir / f"{STEM}.csv", Entry)
    if not entries:
        return None
    size = 1 + int(max(entry.row for entry in entries))
    if len({(entry.row, entry.column) for entry in entries}) != size**2 or len(entries) != size**2:
        raise ValueError(f"{reports_dir / STEM}.csv: {size} rows need {size**2} entries, got {len(entries)}")
    units = 1 + int(max(entry.unit for entry in entries))
    with matplotlib.rc_context({**SETTINGS, "axes.grid": False}):
        figure, panels = canvas(2, width=4.2, height=4.2)
        for axes, name, title in zip(panels, ("hessian", "inverse"), ("H", "H⁻¹"), strict=True):
            matrix = [[0.0] * size for _ in range(size)]
            for entry in entries:
                matrix[int(entry.row)][int(entry.column)] = getattr(entry, name)
            largest = max(abs(value) for line in matrix for value in line)
            norm = SymLogNorm(linthresh=largest / 30, vmin=-largest, vmax=largest)
            axes.imshow(matrix, cmap="RdBu_r", norm=norm, interpolation="nearest")
            for unit in range(1, units):
                axes.axhline(unit * size / units - 0.5, color="black", linewidth=0.8)
                axes.axvline(unit * size / units - 0.5, color="black", linewidth=0.8)
            ticks = [(unit + 0.5) * size / units - 0.5 for unit in range(units)]
            axes.set(title=title, xticks=ticks, yticks=ticks)
            axes.set_xticklabels([f"unit {unit + 1}" for unit in range(units)])
            axes.set_yticklabels([f"unit {unit + 1}" for unit in range(units)])
    outside = max(abs(e.hessian) for e in entries if int(e.row) * units // size != int(e.column) * units // size)
    same = _deviation(entries, size, units)
    caption = (
        f"The Hessian of a layer's error E in all its weights ({units} units with {size // units} inputs each), by "
        "autograd, and its inverse as a whole. Red: positive, blue: negative, white: zero. Outside the diagonal blocks "
        f"the largest entry is {outside:.2g}; the blocks differ from each other by at most {same:.2g} of the largest "
        "entry. So one inverse of size inputs x inputs serves the whole layer. Computed by "
        "`python benchmarks/hessian.py`."
    )
    return Drawing(STEM, TITLE, caption, figure, (), [])


def _deviation(entries: list[Entry], size: int, units: int) -> float:
    """The largest difference between two blocks on the diagonal, as a share of the largest entry."""
    width = size // units
    blocks: dict[tuple[int, int], list[float]] = {}
    for entry in entries:
        row, column = int(entry.row), int(entry.column)
        if row // width == column // width:
            blocks.setdefault((row % width, column % width), []).append(entry.hessian)
    return max(max(values) - min(values) for values in blocks.values()) / max(abs(entry.hessian) for entry in entries)
