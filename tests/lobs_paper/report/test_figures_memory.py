from __future__ import annotations

from pathlib import Path

import pytest

from helpers.runs import write_csv
from lobs_paper.report.figures_memory import draw_memory

COLUMNS = ("method", "samples", "peak_mib", "baseline_mib", "needed_mib")
POINTS = [("lobs", n, 620.0, 540.0, 80.0) for n in (1000, 60000)]
POINTS += [("net_trim", 60000, 1740.0, 540.0, 1200.0), ("net_trim", 1000, 590.0, 540.0, 50.0)]


def test_a_line_per_method_over_the_samples(tmp_path: Path) -> None:
    write_csv(tmp_path / "memory.csv", COLUMNS, POINTS)
    drawing = draw_memory(tmp_path)
    assert drawing is not None
    lines = {line.get_label(): line for line in drawing.figure.axes[0].lines}
    assert list(lines["L-OBS"].get_ydata()) == [80.0, 80.0]
    assert list(lines["Net-Trim"].get_xdata()) == [1000.0, 60000.0], "in the order of the samples"
    assert "Net-Trim needs 50 MiB with 1,000 samples and 1,200 MiB with 60,000" in drawing.caption


def test_the_benchmarks_numbers_are_left_alone(tmp_path: Path) -> None:
    write_csv(tmp_path / "memory.csv", COLUMNS, POINTS)
    before = (tmp_path / "memory.csv").read_bytes()
    drawing = draw_memory(tmp_path)
    assert drawing is not None
    assert [path.name for path in drawing.write(tmp_path)] == ["memory.svg", "memory.png"]
    assert (tmp_path / "memory.csv").read_bytes() == before


def test_without_measurements_there_is_no_figure(tmp_path: Path) -> None:
    assert draw_memory(tmp_path) is None
    write_csv(tmp_path / "memory.csv", COLUMNS, [])
    assert draw_memory(tmp_path) is None


def test_a_broken_measurement_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "memory.csv", COLUMNS, [("lobs", "many", 1, 1, 1)])
    with pytest.raises(ValueError, match=r"memory\.csv, line 2: samples must be a number, got 'many'"):
        draw_memory(tmp_path)
