from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.runs import write_every, write_json, write_runs
from lobs_paper.report import write_report


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bare(runs: Path, keep: str = "-") -> Path:
    """Leaves out what figures are drawn from, unless its name contains `keep`: drawing is what takes the time here."""
    for path in [*runs.rglob("*.csv"), *runs.rglob("sensitivities.json")]:
        if keep not in path.name:
            path.unlink()
    return runs


def test_the_report_lists_what_it_wrote_and_writes_no_more(tmp_path: Path) -> None:
    paths = write_report(write_runs(tmp_path / "runs"), tmp_path / "reports")
    assert paths[0].name == "README.md"
    assert sorted(path.name for path in paths) == sorted(contents(tmp_path / "reports"))
    names = {"table1.csv", "table1.md", "layers.csv", "bound.csv", "retraining.csv", "timings.csv", "timings.md"}
    names |= {"table3.md", "table3.csv", "layers.csv", "index.html", "lenet300.md", "figures.md", "overview.svg"}
    names |= {
        "figure6a.svg",
        "bound-lenet300.png",
        "retraining-lenet300.csv",
        "density.csv",
        "density-lenet300.svg",
        "density-lenet300.png",
        "density-lenet300.csv",
    }
    names |= {"methods.csv", "methods.md", "storage.csv", "storage.md", "table2.csv", "table2.md", "files.txt"}
    assert names <= {path.name for path in paths}


def test_every_link_resolves(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    write_runs(runs, "lenet5")
    write_runs(runs, "tiny", seeds=(0, 1))
    bare(runs, keep="first_layer_curve")
    write_report(runs, tmp_path / "reports")
    for page in (tmp_path / "reports").glob("*.md"):
        links = re.findall(r"\]\(([^)]+)\)", page.read_text())
        assert links, "a way back at least"
        for link in links:
            assert (page.parent / link).is_file(), f"{page.name}: {link}"


def test_the_page_tells_what_was_measured(tmp_path: Path) -> None:
    write_report(bare(write_runs(tmp_path / "runs", seeds=(0, 1)), keep="first_layer_curve"), tmp_path / "reports")
    page = (tmp_path / "reports/lenet300.md").read_text()
    assert "# LeNet-300-100, MNIST (`lenet300`)" in page
    assert "266,610 parameters, test error 1.70%, training error 0.01%; seeds: 0, 1." in page
    assert "| L-OBS | 1.76 | 1.70 | 7 | 7 | 3.10 | 3.80 ± 0.71 | 1.82 | 1.85 | 510 | 515 ± 7 | 400 |" in page
    assert "| L-OBS | 4.5 ± 0.71 | 400 | 90 ± 14 | yes |" in page
    assert "![Figure 2: test accuracy while the first layer is pruned](figure2.svg)" in page
    with (tmp_path / "reports/table1.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows["magnitude"]["error_after_pruning_percent"] == "57.5"
    assert rows["dns"]["error_after_retraining_percent"] == ""


def test_only_the_timings_follow_the_clock(tmp_path: Path) -> None:
    runs = bare(write_runs(tmp_path / "runs"), keep="first_layer_curve")
    write_report(runs, tmp_path / "reports")
    before = contents(tmp_path / "reports")
    for path in runs.rglob("timings.json"):
        write_json(path, {**json.loads(path.read_text()), "total": 99.0, "peak_memory_mib": 1.0})
    write_report(runs, tmp_path / "reports")
    after = contents(tmp_path / "reports")
    assert {name for name in before if before[name] != after[name]} == {
        f"{page}.{suffix}" for page in ("timings", "methods") for suffix in ("csv", "md")
    }
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
    page = (tmp_path / "reports/lenet300.md").read_text()
    assert "| L-OBS | 1.76 | - | 7 | - |" in page
    assert "### Layers" not in page and "figure2" not in page


def test_a_benchmarks_page_in_the_folder_is_linked(tmp_path: Path) -> None:
    runs, reports = bare(write_runs(tmp_path / "runs")), tmp_path / "reports"
    write_report(runs, reports)
    assert "solvers.md" not in (reports / "README.md").read_text()
    (reports / "solvers.md").write_text("measured elsewhere\n")
    write_report(runs, reports)
    assert "[layer error and seconds of every solver](solvers.md)" in (reports / "README.md").read_text()
    assert (reports / "solvers.md").read_text() == "measured elsewhere\n"


def test_the_memory_benchmark_is_drawn_and_its_numbers_stay(tmp_path: Path) -> None:
    runs, reports = bare(write_runs(tmp_path / "runs")), tmp_path / "reports"
    table = "method,samples,peak_mib,baseline_mib,needed_mib\nlobs,1000,620,540,80\nnet_trim,1000,590,540,50\n"
    reports.mkdir()
    (reports / "memory.csv").write_text(table)
    paths = write_report(runs, reports)
    assert {"memory.svg", "memory.png"} <= {path.name for path in paths}
    assert "](memory.svg)" in (reports / "figures.md").read_text()
    assert (reports / "memory.csv").read_text() == table
    (reports / "memory.csv").unlink()
    write_report(runs, reports)
    assert not (reports / "memory.svg").exists(), "a figure does not outlive its data"


def test_figures_of_an_earlier_report_are_removed(tmp_path: Path) -> None:
    runs, reports = write_runs(tmp_path / "runs"), tmp_path / "reports"
    write_runs(runs, "lenet5")
    bare(runs, keep="first_layer_curve")
    write_report(runs, reports)
    (reports / "solvers.md").write_text("measured elsewhere\n")
    assert (reports / "figure2-lenet5.svg").exists()
    shutil.rmtree(runs / "lenet5")
    paths = write_report(runs, reports)
    assert sorted([*(path.name for path in paths), "solvers.md"]) == sorted(contents(reports))
    assert not (reports / "figure2-lenet5.svg").exists()


def test_the_page_says_why_and_shows_the_spread_over_seeds(tmp_path: Path) -> None:
    write_report(bare(write_runs(tmp_path / "runs", seeds=(0, 1))), tmp_path / "reports")
    page = (tmp_path / "reports/lenet300.md").read_text()
    assert "## Where and why our figures differ from the paper's" in page
    assert "after pruning 3.80 ± 0.71%, the paper's 3.10%: worse." in page
    assert "## Spread over the seeds" in page
    assert "## Table 2: Net-Trim against L-OBS" in page
    methods = (tmp_path / "reports/methods.md").read_text()
    assert "| L-OBS | 2 | 1.70 | 7 | 3.80 ± 0.71 | 1.85 | 515 ± 7 | 3.0 | 8.0 | 11.0 | 600 | 600 |" in methods
    assert "collecting the statistics, 2.0 s, peak 700 MiB" in methods


def test_what_is_left_without_retraining_has_a_section_and_a_figure(tmp_path: Path) -> None:
    runs, reports = bare(write_runs(tmp_path / "runs"), keep="density_curve"), tmp_path / "reports"
    write_report(runs, reports)
    page = (reports / "lenet300.md").read_text()
    assert "## Without retraining" in page and "](density-lenet300.svg)" in page
    assert page.index("## Without retraining") < page.index("](density-lenet300.svg)")
    write_report(bare(runs), tmp_path / "elsewhere")
    page = (tmp_path / "elsewhere/lenet300.md").read_text()
    assert "## Without retraining" not in page and "density-lenet300" not in page


def test_a_benchmark_of_the_allocations_is_linked(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    (reports / "allocation.md").write_text("measured elsewhere\n")
    write_report(bare(write_runs(tmp_path / "runs")), reports)
    link = "[ways of sharing a budget out between layers, on held-out training images](allocation.md)"
    assert link in (reports / "README.md").read_text()


def test_layer_errors_that_mean_something_else_are_said_to(tmp_path: Path) -> None:
    runs, reports = bare(write_every(tmp_path / "runs")), tmp_path / "reports"
    write_report(runs, reports)
    sentence = "E of exact OBS sequential and of Net-Trim (cascade) is measured on the inputs that the pruned layers"
    for name in ("lenet300.md", "table3.md"):
        assert sentence in (reports / name).read_text()
    assert "## exact OBS sequential" in (reports / "table3.md").read_text()
    shutil.rmtree(runs)
    write_report(bare(write_runs(runs)), reports)
    assert "is measured on the inputs that" not in (reports / "lenet300.md").read_text()


def test_errors_on_validation_images_are_said_to_be(tmp_path: Path) -> None:
    runs = bare(write_runs(tmp_path / "runs"))
    path = runs / "lenet300/seed0/train/metrics.json"
    write_json(path, {**json.loads(path.read_text()), "measured_on": "validation"})
    write_report(runs, tmp_path / "reports")
    assert "All errors were measured on validation images" in (tmp_path / "reports/lenet300.md").read_text()


def test_a_broken_file_leaves_the_old_report_alone(tmp_path: Path) -> None:
    runs = bare(write_runs(tmp_path / "runs"))
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
        "import sys; from pathlib import Path; import lobs_paper.report; assert 'matplotlib' not in sys.modules;"
        f"lobs_paper.report.write_report(Path({str(tmp_path / 'runs')!r}), Path({str(tmp_path / 'reports')!r}));"
        "print(sorted({'torch', 'mlflow', 'pytorch_lightning', 'hydra'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_network_that_the_paper_does_not_have_and_nobody_retrained(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", "efficientnet_lite0")
    for path in runs.rglob("retrain/metrics.json"):
        write_json(path, {**json.loads(path.read_text()), "iterations": 0})
    for path in runs.rglob("retrain/curve.csv"):
        path.write_text("round,iteration,train_loss,test_error_percent\n1,0,,3.3\n")
    for path in runs.rglob("evaluate/metrics.json"):
        data = json.loads(path.read_text())
        for name, error in (("dense", 3.0), ("pruned", 7.5), ("retrained", 7.5)):
            data[name]["test_top5_error_percent"] = error
        write_json(path, {**data, "data": "ImageNet sample"})
        prune = path.parents[1] / "prune/metrics.json"
        write_json(prune, {**json.loads(prune.read_text()), "data": "ImageNet sample"})
    reports = tmp_path / "reports"
    names = {path.name for path in write_report(runs, reports)}
    assert {"layers-efficientnet_lite0.md", "efficientnet_lite0.md", "figure6a.svg", "index.html"} <= names
    assert not any(name.startswith(("figure4", "retraining-", "overview")) for name in names)
    page = (reports / "efficientnet_lite0.md").read_text()
    assert "# EfficientNet-Lite0, ImageNet sample (`efficientnet_lite0`)" in page
    assert "## Methods" in page and "## Table 1" not in page
    assert "| L-OBS | 7 | 3.00 | 7.50 | - |" in page
    first = (reports / "README.md").read_text()
    assert "- ImageNet sample: 1,000 ImageNet photographs, one per class" in first
    assert "](overview.svg)" not in first


def test_a_clean_checkout_has_tables_from_the_metrics_alone(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    for path in [path for path in runs.rglob("*") if path.is_file() and path.name != "metrics.json"]:
        path.unlink()
    write_report(runs, tmp_path / "reports")
    assert "| L-OBS | 7 | 3.10 | 3.30 |" in (tmp_path / "reports/README.md").read_text()
