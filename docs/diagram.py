"""Draws docs/architecture.svg: the rooms of both packages in the order of the import rule, each with its own words.

The order is that of the contracts in pyproject.toml (`make lint` checks them), the words are the first lines of the
rooms' docstrings, so that the picture cannot say anything else than the code: `python docs/diagram.py`.
"""

from __future__ import annotations

import ast
import io
import textwrap
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/architecture.svg"
TITLES = {"lobs_paper": "the reproduction: src/lobs_paper", "lobs": "the library: src/lobs"}
COLORS = {"lobs_paper": "#E8F1FA", "lobs": "#E9F6EF"}
WIDTH, GAP = 6.2, 0.5
ROW, SPLIT = 0.58, 1.02  # heights of a floor with one room, and with several


def rooms(package: str) -> list[list[str]]:
    """The rooms of a package, those on one floor together, from the top."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers" and c["layers"][0].startswith(f"{package}."))
    return [[name.strip() for name in floor.split("|")] for floor in layers]


def words(module: str) -> str:
    """The first line of a module's or package's docstring."""
    path = ROOT / "src" / module.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("`", "")


def draw() -> bytes:
    """The picture as SVG, the same bytes for the same code."""
    floors = {package: rooms(package) for package in TITLES}
    height = max(sum(_height(floor) + 0.14 for floor in each) for each in floors.values()) + 1.0
    figure = Figure(figsize=(2 * WIDTH + GAP, height))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 2 * WIDTH + GAP), ylim=(0, height))
    axes.axis("off")
    for column, (package, stack) in enumerate(floors.items()):
        left = column * (WIDTH + GAP)
        axes.text(left + 0.1, height - 0.35, TITLES[package], fontsize=13, weight="bold")
        bottom = height - 0.5
        for floor in stack:
            bottom -= _height(floor) + 0.14
            width = (WIDTH - 0.1) / len(floor)
            for place, module in enumerate(floor):
                corner = left + 0.05 + place * width, bottom
                _box(axes, corner, (width - 0.08, _height(floor)), module, COLORS[package])
    text = "imports point downward, and from left to right; a picture of the contracts that make lint checks"
    axes.text(0.1, 0.12, text, fontsize=9, color="#555555")
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "lobs"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _height(floor: list[str]) -> float:
    return ROW if len(floor) == 1 else SPLIT


def _box(
    axes: matplotlib.axes.Axes, corner: tuple[float, float], size: tuple[float, float], module: str, color: str
) -> None:
    (left, bottom), (width, height) = corner, size
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch(corner, width, height, style, fc=color, ec="#9AA4B0"))
    top = bottom + height
    axes.text(left + 0.1, top - 0.2, module.split(".", 1)[1], fontsize=10, weight="bold")
    per_inch = 17 if height == ROW else 16.5
    for line, text in enumerate(textwrap.wrap(words(module), int(width * per_inch))):
        axes.text(left + 0.1, top - 0.35 - 0.125 * line, text, fontsize=8 if height == ROW else 6.4)


if __name__ == "__main__":
    PICTURE.write_bytes(draw())
