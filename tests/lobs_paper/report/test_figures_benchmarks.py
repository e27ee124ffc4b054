from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.runs import write_csv, write_json
from lobs_paper.report.figures import draw_benchmark

ROOT = Path(__file__).parents[3]
COLUMNS = ("method", "samples", "peak_mib", "baseline_mib", "needed_mib")
POINTS = [("lobs", n, 620.0, 540.0, 80.0) for n in (1000, 60000)]
POINTS += [("net_trim", 60000, 1740.0, 540.0, 1200.0), ("net_trim", 1000, 590.0, 540.0, 50.0)]


def test_a_line_per_method_over_the_samples(tmp_path: Path) -> None:
    write_csv(tmp_path / "memory.csv", COLUMNS, POINTS)
    drawing = draw_benchmark("memory", tmp_path)
    assert drawing is not None
    lines = {line.get_label(): line for line in drawing.figure.axes[0].lines}
    assert list(lines["L-OBS"].get_ydata()) == [80.0, 80.0]
    assert list(lines["Net-Trim"].get_xdata()) == [1000.0, 60000.0], "in the order of the samples"
    assert "Net-Trim needs 50 MiB with 1,000 samples and 1,200 MiB with 60,000" in drawing.caption


def test_the_benchmarks_numbers_are_left_alone(tmp_path: Path) -> None:
    write_csv(tmp_path / "memory.csv", COLUMNS, POINTS)
    before = (tmp_path / "memory.csv").read_bytes()
    drawing = draw_benchmark("memory", tmp_path)
    assert drawing is not None
    assert [path.name for path in drawing.write(tmp_path)] == ["memory.svg", "memory.png"]
    assert (tmp_path / "memory.csv").read_bytes() == before


def test_without_measurements_there_is_no_figure(tmp_path: Path) -> None:
    for stem in ("figure1", "memory", "error-seconds"):
        assert draw_benchmark(stem, tmp_path) is None
    write_csv(tmp_path / "memory.csv", COLUMNS, [])
    assert draw_benchmark("memory", tmp_path) is None


def test_a_broken_measurement_is_named(tmp_path: Path) -> None:
    write_csv(tmp_path / "memory.csv", COLUMNS, [("lobs", "many", 1, 1, 1)])
    with pytest.raises(ValueError, match=r"memory\.csv: could not convert string to float: 'many'"):
        draw_benchmark("memory", tmp_path)


def test_solvers_are_drawn_from_the_benchmarks_file(tmp_path: Path) -> None:
    row = {"solver": "exact_obs, float32", "density": 0.07, "error": 1.6, "relative_error": 0.01}
    row |= {"path_seconds": 0.5, "count_seconds": 0.25}
    rows = [row, {**row, "density": 0.2}]
    write_json(tmp_path / "solvers.json", {"layer": "fc1", "shape": [300, 784], "threads": 2, "rows": rows})
    drawing = draw_benchmark("error-seconds", tmp_path)
    assert drawing is not None and drawing.data is not None
    assert drawing.data[["seconds", "error"]].to_numpy().tolist() == [[0.75, 1.6]]
    assert "Layer fc1 (300 x 784)" in drawing.caption


def test_figure1_is_a_real_hessian_of_equal_blocks_the_same_on_every_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/hessian.py"), "--out", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(printed.rpartition(" ")[2]) < 1e-12, "half of it is the library's second moment, block by block"
    assert (tmp_path / "figure1.csv").read_text() == (ROOT / "reports/figure1.csv").read_text()
    with (tmp_path / "figure1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24**2
    for row in rows:
        if int(row["row"]) // 6 != int(row["column"]) // 6:
            assert float(row["hessian"]) == float(row["inverse"]) == 0.0
    drawing = draw_benchmark("figure1", tmp_path)
    assert drawing is not None
    assert "Outside the diagonal blocks the largest entry is 0;" in drawing.caption
    assert drawing.data is None, "its numbers stand in the file already"


def test_a_figure1_with_a_missing_entry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "figure1.csv").write_text("row,column,unit,hessian,inverse\n0,0,0,1,1\n1,1,0,1,1\n")
    with pytest.raises(ValueError, match=r"figure1\.csv: 2 rows need 4 entries, got 2"):
        draw_benchmark("figure1", tmp_path)
