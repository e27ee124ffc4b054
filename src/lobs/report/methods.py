"""How the report shows each method: its label, and the colour and marker that it keeps in every figure.

The colours are those of Okabe and Ito, which stay apart for colour-blind readers; the markers tell the methods
apart in grey. A new method adds one line here; without one it is shown under its own name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MethodStyle:
    """One method's label, colour (hex) and marker (Matplotlib's code)."""

    label: str
    color: str
    marker: str


# The order is the order of the rows in the tables and of the entries in the legends.
STYLES: dict[str, MethodStyle] = {
    "magnitude": MethodStyle("LWC (magnitude, one shot)", "#D55E00", "s"),
    "lwc_iterative": MethodStyle("LWC (iterative)", "#E69F00", "D"),
    "lobs": MethodStyle("L-OBS", "#0072B2", "o"),
    "exact_obs": MethodStyle("exact OBS", "#009E73", "^"),
    "obd": MethodStyle("OBD", "#56B4E9", "v"),
    "apoz": MethodStyle("ApoZ", "#CC79A7", "P"),
    "random": MethodStyle("Random", "#7F7F7F", "x"),
}
_SPARE_COLORS = ("#000000", "#F0E442", "#882255", "#44AA99")
_SPARE_MARKERS = ("X", "*", "<", ">")


def style_of(method: str, folder: str | None = None) -> MethodStyle:
    """Give a method's style; an unlisted one gets its own name and one of the spare colours.

    Args:
        method: name of the method.
        folder: folder of its runs; where it differs from the name (a sweep), it is added to the label.

    Returns:
        The style, always the same for the same arguments.
    """
    style = STYLES.get(method)
    if style is None:
        spare = sum(method.encode()) % len(_SPARE_COLORS)
        style = MethodStyle(method, _SPARE_COLORS[spare], _SPARE_MARKERS[spare])
    if folder is not None and folder != method:
        style = MethodStyle(f"{style.label} [{folder}]", style.color, style.marker)
    return style


def sort_key(method: str, folder: str) -> tuple[int, str, str]:
    """Order methods as listed in this module, others after them by name."""
    names = list(STYLES)
    return (names.index(method) if method in STYLES else len(names), method, folder)
