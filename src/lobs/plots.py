"""Pictures of a result and of a plan; matplotlib is needed for these alone (extra ``plots``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lobs.allocation.density_curve import CurvePoint
    from lobs.result import LayerRecord


def layers_figure(layers: Sequence[LayerRecord], density: float) -> Figure:
    """Every layer's share of kept weights, and beside it the share of its output that was lost.

    Args:
        layers: the records of a result, in the order of the layers' calls.
        density: share kept over all of them, drawn as a line.

    Returns:
        The figure: a row of bars per layer, the first one on top.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure, (left, right) = _subplots(columns=2, height=1.2 + 0.28 * len(layers), sharey=True)
    rows = range(len(layers))
    left.barh(rows, [record.density for record in layers], color="tab:blue")
    left.axvline(density, color="black", linewidth=1, label=f"all: {density:.3g}")
    left.set(xlabel="share of weights kept", xlim=(0, 1), yticks=rows, yticklabels=[record.name for record in layers])
    left.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, borderpad=0)
    left.invert_yaxis()
    right.barh(rows, [record.relative_error for record in layers], color="tab:orange")
    right.set(xlabel="relative error of the layer's output")
    return figure


def curve_figure(points: Sequence[CurvePoint]) -> Figure:
    """What densities cost: the layers' mean relative error, and the distance of the outputs where it was measured.

    Args:
        points: of `lobs.Plan.curve`.

    Returns:
        The figure; all axes are logarithmic.

    Raises:
        ImportError: matplotlib is not installed.
    """
    curves: dict[str, list] = {"mean relative error of the layers": [point.relative_error for point in points]}
    if any(point.distance is not None for point in points):
        curves["distance of the network's outputs"] = [point.distance for point in points]
    figure, panels = _subplots(columns=len(curves), height=3.6)
    densities = [point.density for point in points]
    for axes, (name, values) in zip(panels, curves.items(), strict=True):
        axes.plot(densities, values, "o-")
        axes.set(xlabel="weights kept, %", ylabel=name, xscale="log", yscale="log")
        axes.set_xticks(densities, [f"{100 * density:.2g}" for density in densities])
        axes.xaxis.minorticks_off()
        axes.grid(alpha=0.3)
    return figure


def _subplots(columns: int, height: float, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plot() needs matplotlib, which is not installed: pip install 'lobs[plots]'") from error
    figure, panels = pyplot.subplots(
        1, columns, figsize=(4.5 * columns, height), sharey=sharey, squeeze=False, layout="constrained"
    )
    return figure, panels[0]
