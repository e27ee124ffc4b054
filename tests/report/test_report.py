from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lobs.report import write_report
from report.synthetic import write_json, write_runs


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_report_lists_what_it_wrote_and_writes_no_more(tmp_path: Path) -> None:
    paths = write_report(write_runs(tmp_path / "runs"), tmp_path / "reports")
    assert paths[0].name == "README.md"
    assert sorted(path.name for path in paths) == sorted(contents(tmp_path / "reports"))
    names = {"table1.csv", "table1.md", "layers.csv", "bound.csv", "retraining.csv", "timings.csv", "timings.md"}
    assert names <= {path.name for path in paths}


def test_every_link_resolves(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    write_runs(runs, "lenet5")
    write_runs(runs, "tiny", seeds=(0, 1))
    write_report(runs, tmp_path / "reports")
    for page in (tmp_path / "reports").glob("*.md"):
        links = re.findall(r"\]\(([^)]+)\)", page.read_text())
        assert page.name == "table1.md" or links
        for link in links:
            assert (page.parent / link).is_file(), f"{page.name}: {link}"


def test_the_page_tells_what_was_measured(tmp_path: Path) -> None:
    write_report(write_runs(tmp_path / "runs", seeds=(0, 1)), tmp_path / "reports")
    page = (tmp_path / "reports/README.md").read_text()
    assert "## LeNet-300-100, MNIST (`lenet300`)" in page
    assert "266,610 parameters, test error 1.70%, training error 0.01%; seeds: 0, 1." in page
    assert "| L-OBS | 1.76 | 1.70 | 7 | 7 | 3.10 | 3.80 ± 0.71 | 1.82 | 1.85 | 510 | 515 ± 7 | 400 |" in page
    assert "| L-OBS | 4.5 ± 0.71 | 400 | 90 ± 14 | yes |" in page
    assert "![Figure 2: test accuracy while the first layer is pruned](figure2.svg)" in page
    with (tmp_path / "reports/table1.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows["magnitude"]["error_after_pruning_percent"] == "57.5"
    assert rows["dns"]["error_after_retraining_percent"] == ""


def test_only_the_timings_follow_the_clock(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    write_report(runs, tmp_path / "reports")
    before = contents(tmp_path / "reports")
    for path in runs.rglob("timings.json"):
        write_json(path, {**json.loads(path.read_text()), "total": 99.0, "peak_memory_mib": 1.0})
    write_report(runs, tmp_path / "reports")
    after = contents(tmp_path / "reports")
    assert {name for name in before if before[name] != after[name]} == {"timings.csv", "timings.md"}
    assert b"99.0" in after["timings.md"]


def test_no_folder_of_this_machine_is_in_the_report(tmp_path: Path) -> None:
    write_report(write_runs(tmp_path / "runs"), tmp_path / "reports")
    for name, data in contents(tmp_path / "reports").items():
        assert str(tmp_path).encode() not in data, name


def test_an_experiment_that_was_only_trained_is_shown(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    for method in ("lobs", "magnitude"):
        for path in (runs / "lenet300/seed0" / method).rglob("metrics.json"):
            path.unlink()
    write_report(runs, tmp_path / "reports")
    page = (tmp_path / "reports/README.md").read_text()
    assert "| L-OBS | 1.76 | - | 7 | - |" in page
    assert "### Layers" not in page and "figure2" not in page


def test_a_benchmarks_page_in_the_folder_is_linked(tmp_path: Path) -> None:
    runs, reports = write_runs(tmp_path / "runs"), tmp_path / "reports"
    write_report(runs, reports)
    assert "solvers.md" not in (reports / "README.md").read_text()
    (reports / "solvers.md").write_text("measured elsewhere\n")
    write_report(runs, reports)
    assert "[layer error and seconds of every solver](solvers.md)" in (reports / "README.md").read_text()
    assert (reports / "solvers.md").read_text() == "measured elsewhere\n"


def test_errors_on_validation_images_are_said_to_be(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    path = runs / "lenet300/seed0/train/metrics.json"
    write_json(path, {**json.loads(path.read_text()), "measured_on": "validation"})
    write_report(runs, tmp_path / "reports")
    assert "All errors were measured on validation images" in (tmp_path / "reports/README.md").read_text()


def test_a_broken_file_leaves_the_old_report_alone(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    write_report(runs, tmp_path / "reports")
    before = contents(tmp_path / "reports")
    broken = runs / "lenet300/seed0/lobs/evaluate/metrics.json"
    broken.write_text("[")
    with pytest.raises(ValueError, match=r"lobs/evaluate/metrics\.json"):
        write_report(runs, tmp_path / "reports")
    assert contents(tmp_path / "reports") == before


def test_the_report_needs_neither_torch_nor_mlflow(tmp_path: Path) -> None:
    write_runs(tmp_path / "runs")
    code = (
        "import sys; from pathlib import Path; import lobs.report; assert 'matplotlib' not in sys.modules;"
        f"lobs.report.write_report(Path({str(tmp_path / 'runs')!r}), Path({str(tmp_path / 'reports')!r}));"
        "print(sorted({'torch', 'mlflow', 'pytorch_lightning', 'hydra'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
