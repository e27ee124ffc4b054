"""How the report shows each method: its label, and the colour, marker and line that it keeps in every figure.

The colours are those of Okabe and Ito, which stay apart for colour-blind readers, and darker ones beyond them. What
tells the methods apart in grey is the marker: no two methods share a shape that is filled alike. The iterative variant
of a method and its refitted networks have its shape, hollow, on a dashed line. A new method adds one line here; without
one it is shown under its own name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class MethodStyle:
    """One method's label, colour (hex), marker and line (Matplotlib's codes).

    Attributes:
        label: as tables and legends print it.
        color: of line and marker.
        marker: its shape.
        line: solid or dashed.
        filled: whether the marker is filled, or hollow.
        layer_wise: whether the method minimises the layers' errors, as L-OBS does; the others are its competitors.
        in_sequence: whether a layer's inputs come from the network pruned so far, its targets from the dense one.
    """

    label: str
    color: str
    marker: str
    line: str = "-"
    filled: bool = True
    layer_wise: bool = False
    in_sequence: bool = False

    @property
    def plot(self) -> dict[str, Any]:
        """Keyword arguments of Matplotlib's `plot`."""
        face = self.color if self.filled else "white"
        return {
            "label": self.label,
            "color": self.color,
            "marker": self.marker,
            "linestyle": self.line,
            "markerfacecolor": face,
            "markeredgecolor": self.color,
        }


# The order is the order of the rows in the tables and of the entries in the legends.
STYLES: dict[str, MethodStyle] = {
    "magnitude": MethodStyle("LWC (magnitude, one shot)", "#D55E00", "s"),
    "lwc": MethodStyle("LWC", "#E69F00", "D"),
    "dns": MethodStyle("DNS", "#999933", ">"),
    "lobs": MethodStyle("L-OBS", "#0072B2", "o", layer_wise=True),
    "lobs_resolve": MethodStyle("L-OBS re-solved", "#7B3FA0", "X", layer_wise=True),
    "lobs_iterative": MethodStyle("L-OBS iterative", "#003A5C", "o", "--", filled=False, layer_wise=True),
    "exact_obs": MethodStyle("exact OBS", "#009E73", "^", layer_wise=True),
    "exact_obs_fisher": MethodStyle("exact OBS, Fisher shares", "#117733", "8", layer_wise=True),
    "exact_obs_sequential": MethodStyle("exact OBS sequential", "#8C510A", "<", layer_wise=True, in_sequence=True),
    "exact_obs_staged": MethodStyle("exact OBS staged", "#DC267F", "h", layer_wise=True, in_sequence=True),
    "exact_obs_iterative": MethodStyle("exact OBS iterative", "#004D38", "^", "--", filled=False, layer_wise=True),
    "sparsegpt": MethodStyle("SparseGPT", "#6A5ACD", "d", layer_wise=True),
    "wanda": MethodStyle("Wanda", "#A0522D", "p"),
    "obd": MethodStyle("OBD", "#56B4E9", "v"),
    "apoz": MethodStyle("ApoZ", "#CC79A7", "P"),
    "random": MethodStyle("Random", "#7F7F7F", "x"),
    "net_trim": MethodStyle("Net-Trim", "#882255", "*", layer_wise=True),
    "net_trim_cascade": MethodStyle(
        "Net-Trim (cascade)", "#000000", "*", "--", filled=False, layer_wise=True, in_sequence=True
    ),
}
_SPARE_COLORS = ("#AA4499", "#F0E442", "#332288", "#44AA99")
_SPARE_MARKERS = ("H", "2", "3", "4")
# Ends the names of method and folder where a curve is that of the refitted networks (curves.with_refitted).
REFIT = "+refit"
REFIT_LABEL = ", refit"


def style_of(method: str, folder: str | None = None) -> MethodStyle:
    """Give a method's style; an unlisted one gets its own name and one of the spare colours.

    Args:
        method: name of the method, with `REFIT` at its end for the refitted networks.
        folder: folder of its runs; where it differs from the name (a sweep), it is added to the label.

    Returns:
        The style, always the same for the same arguments.
    """
    if method.endswith(REFIT):
        plain = style_of(method.removesuffix(REFIT), folder.removesuffix(REFIT) if folder else None)
        return replace(plain, label=plain.label + REFIT_LABEL, line="--", filled=False)
    style = STYLES.get(method)
    if style is None:
        spare = sum(method.encode()) % len(_SPARE_COLORS)
        style = MethodStyle(method, _SPARE_COLORS[spare], _SPARE_MARKERS[spare])
    if folder is not None and folder != method:
        style = replace(style, label=f"{style.label} [{folder}]")
    return style


def sort_key(method: str, folder: str) -> tuple[int, str, str]:
    """Order methods as listed in this module, others after them by name."""
    names = list(STYLES)
    return (names.index(method) if method in STYLES else len(names), method, folder)
