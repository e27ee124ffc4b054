from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.runs import METHODS, write_every, write_runs
from lobs_paper.report import write_report
from lobs_paper.report.restored import restore
from lobs_paper.report.results import load_results


def curves_gone(runs: Path) -> Path:
    """What is left of the runs in a clean clone: the metrics."""
    for path in [path for path in runs.rglob("*") if path.is_file() and path.name != "metrics.json"]:
        path.unlink()
    return runs


def test_a_clean_clone_gives_the_committed_report(tmp_path: Path) -> None:
    runs, reports = write_every(tmp_path / "runs"), tmp_path / "reports"
    write_report(runs, reports)
    before = {path.name: path.read_bytes() for path in reports.iterdir()}
    write_report(curves_gone(runs), reports)
    after = {path.name: path.read_bytes() for path in reports.iterdir()}
    # Seconds of single layers stand in no CSV.
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} == {"timings.md"}


def test_a_runs_own_curves_come_first(tmp_path: Path) -> None:
    runs, reports = write_runs(tmp_path / "runs"), tmp_path / "reports"
    write_report(runs, reports)
    shutil.rmtree(runs)
    write_runs(runs, methods={name: method._replace(hardness=2.0) for name, method in METHODS.items()})
    assert restore(load_results(runs), reports) == load_results(runs)
    (runs / "lenet300/seed0/lobs/prune/density_curve.csv").unlink()
    magnitude, lobs = restore(load_results(runs), reports)[0].methods
    assert [point.density for point in lobs.runs[0].density_curve] == [
        point.density for point in magnitude.runs[0].density_curve
    ]
    assert lobs.runs[0].paths == load_results(runs)[0].methods[1].runs[0].paths


def test_nothing_comes_back_for_a_run_that_is_gone(tmp_path: Path) -> None:
    runs, reports = write_runs(tmp_path / "runs"), tmp_path / "reports"
    write_report(runs, reports)
    shutil.rmtree(runs / "lenet300/seed0/lobs")
    (experiment,) = restore(load_results(runs), reports)
    assert [entry.method for entry in experiment.methods] == ["magnitude"]
    assert not any(timing.folder == "lobs" for timing in experiment.timings)
    write_report(runs, reports)
    assert "lobs,lobs" not in (reports / "density-lenet300.csv").read_text()


def test_the_share_of_small_sensitivities_comes_back(tmp_path: Path) -> None:
    runs, reports = write_runs(tmp_path / "runs"), tmp_path / "reports"
    write_report(runs, reports)
    (before,) = load_results(runs)
    (after,) = restore(load_results(curves_gone(runs)), reports)
    assert after.methods[1].runs[0].histogram == before.methods[1].runs[0].histogram


def test_a_broken_csv_of_the_report_is_named(tmp_path: Path) -> None:
    runs, reports = write_runs(tmp_path / "runs"), tmp_path / "reports"
    reports.mkdir()
    (reports / "density-lenet300.csv").write_text("folder,seed,density,test_error_percent\nlobs,0,much,3\n")
    with pytest.raises(ValueError, match=r"density-lenet300\.csv, line 2: density must be a number, got 'much'"):
        restore(load_results(runs), reports)
