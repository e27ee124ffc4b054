"""Stage report writes the report, fills the README beside it and brings MLflow up to date."""

from __future__ import annotations

from pathlib import Path

import pytest

from lobs_paper.stages import report

MATRIX = "runs: [first, second]\nquick: [first]\n"


@pytest.mark.parametrize(
    ("matrix", "commands"),
    [
        (MATRIX, {"make repro": ["first", "second"], "make repro-quick": ["first"]}),
        (None, {"make repro": (), "make repro-quick": ()}),
    ],
    ids=["with a matrix", "without one"],
)
def test_the_readme_is_told_what_the_makefiles_targets_run(tmp_path, monkeypatch, matrix, commands):
    monkeypatch.chdir(tmp_path)
    if matrix is not None:
        Path("conf").mkdir()
        Path("conf/matrix.yaml").write_text(matrix)
    asked = []
    pages = [Path("site/reports/README.md"), Path("site/reports/x.csv")]
    monkeypatch.setattr(report, "write_report", lambda *given: asked.append(given) or pages)
    monkeypatch.setattr(report, "fill_readme", lambda *given: asked.append(given))
    monkeypatch.setattr(report.track, "run", lambda config: {"created": config["folders"]["mlflow"]})
    paths = {"runs": "runs", "reports": "site/reports", "further_runs": ["more"], "mlflow": "store"}
    found = report.run({"folders": paths})
    assert found == {"page": "site/reports/README.md", "files": 2, "created": "store"}
    assert asked == [
        (Path("runs"), Path("site/reports"), [Path("more")]),
        (Path("site/README.md"), Path("site/reports"), commands),
    ]
