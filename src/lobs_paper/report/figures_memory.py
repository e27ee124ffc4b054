"""Draws the memory that L-OBS and Net-Trim need against the number of samples, from what benchmarks/memory.py wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.ticker import FuncFormatter, NullLocator

from lobs_paper.report.drawing import SETTINGS, Drawing, canvas, legend
from lobs_paper.report.methods import style_of
from lobs_paper.report.records import load_rows

STEM = "memory"
TITLE = "Figure 6 (b): peak memory against the number of calibration samples"


@dataclass(frozen=True)
class MemoryPoint:
    """One row of memory.csv: a method's peak with some number of samples, and what it needs beyond the baseline."""

    method: str
    samples: float
    needed_mib: float


def draw_memory(reports_dir: Path) -> Drawing | None:
    """Draw the figure from `<reports_dir>/memory.csv`.

    Args:
        reports_dir: where the benchmark wrote to.

    Returns:
        The drawing, whose numbers stand in the file already; None without the file.
    """
    points = load_rows(reports_dir / f"{STEM}.csv", MemoryPoint)
    if not points:
        return None
    methods = list(dict.fromkeys(point.method for point in points))
    counts = sorted({point.samples for point in points})
    ends = []
    with matplotlib.rc_context(SETTINGS):
        figure, (axes,) = canvas()
        for method in methods:
            mine = sorted((point for point in points if point.method == method), key=lambda point: point.samples)
            style = style_of(method)
            axes.plot([point.samples for point in mine], [point.needed_mib for point in mine], **style.plot)
            first, last = mine[0], mine[-1]
            ends.append(
                f"{style.label} needs {first.needed_mib:,.0f} MiB with {first.samples:,.0f} samples and "
                f"{last.needed_mib:,.0f} MiB with {last.samples:,.0f}"
            )
        axes.set(xscale="log", yscale="log", xlabel="samples", ylabel="peak memory (MiB)")
        axes.set_xticks(counts)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        limits = axes.get_ylim()
        axes.set_yticks([digit * 10**power for power in range(6) for digit in (1, 2, 5)])
        axes.set_ylim(limits)
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        legend(figure, axes)
    caption = (
        "LeNet-300-100's first layer: L-OBS collects its statistics and prunes along its path; Net-Trim keeps that "
        "many input vectors and solves its program for one epsilon. Peak resident memory of a fresh process, less that "
        f"of one that only loads the network; logarithmic axes. {'; '.join(ends)}. Measured once, by "
        "`python benchmarks/memory.py`."
    )
    return Drawing(STEM, TITLE, caption, figure, (), [])
