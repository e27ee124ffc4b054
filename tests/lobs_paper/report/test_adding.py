"""Adding a figure takes one entry and one function, tried in a copy of the sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.runs import write_runs

ROOT = Path(__file__).parents[3]
FUNCTION = """def _one_more(results: Results, data: DataFrame) -> tuple[Figure, str]:
    figure = Figure()
    figure.subplots().plot(data["density"], data["test_error_percent"])
    return figure, "A caption of its own."


NETWORK = (
    Entry("more-{}", "One more figure", _density, _one_more),
"""


def test_a_figure_is_one_entry_and_one_function(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    table = tmp_path / "src/lobs_paper/report/figures.py"
    table.write_text(table.read_text().replace("NETWORK = (\n", FUNCTION, 1))
    runs, reports = write_runs(tmp_path / "runs"), tmp_path / "reports"
    code = (
        "from pathlib import Path; from lobs_paper import report;"
        f"report.write_report(Path({str(runs)!r}), Path({str(reports)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert {path.name for path in reports.glob("more-*")} == {f"more-lenet300.{kind}" for kind in ("svg", "png", "csv")}
    page = (reports / "lenet300.md").read_text()
    assert "One more figure" in page
    assert "A caption of its own." in page
