"""The whole report: its files, its links, its words, the same bytes every time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.runs import EVERY, write_every, write_json, write_runs
from lobs_paper.report import write_report
from lobs_paper.report.frame import load_results
from lobs_paper.report.pages import MANIFEST, _remarks, remove_stale


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bare(runs: Path, keep: str = "-") -> Path:
    """Leaves out what figures are drawn from, unless its name contains `keep`: drawing is what takes the time here."""
    for path in [*runs.rglob("*.csv"), *runs.rglob("sensitivities.json")]:
        if keep not in path.name:
            path.unlink()
    return runs


def change(path: Path, **values: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **values})


def test_the_report_tells_what_was_measured_and_every_link_resolves(tmp_path: Path) -> None:
    runs = bare(write_runs(tmp_path / "runs", seeds=(0, 1)), keep="density_curve")
    change(runs / "lenet300/seed0/train/metrics.json", measured_on="validation")
    write_runs(runs, "tiny", seeds=(0, 1))
    bare(runs, keep="density_curve")
    reports = tmp_path / "reports"
    reports.mkdir()
    (reports / "allocation.md").write_text("measured elsewhere\n")
    paths = write_report(runs, reports)
    assert paths[0].name == "README.md"
    assert sorted([*(path.name for path in paths), "allocation.md"]) == sorted(contents(reports))
    for page in reports.glob("*.md"):
        links = re.findall(r"\]\(([^)]+)\)", page.read_text())
        assert all((page.parent / link).is_file() for link in links), f"{page.name}: {links}"
        assert str(tmp_path) not in page.read_text()
    page = (reports / "lenet300.md").read_text()
    for text in (
        "# LeNet-300-100, MNIST (`lenet300`)",
        "266,610 parameters, test error 1.70%, training error 0.01%; seeds: 0, 1. All errors were measured on",
        "| L-OBS | 1.76 | 1.70 | 7 | 7 | 3.10 | 3.80 ± 0.71 | 1.82 | 1.85 | 510 | 515 ± 7 | 400 |",
        "| L-OBS | 4.5 ± 0.71 | 400 | 90 ± 14 | yes |",
        "after pruning 3.80 ± 0.71%, the paper's 3.10%: worse.",
        "## Spread over the seeds",
        "## Table 2: Net-Trim against L-OBS",
        "## Without retraining",
        "](density-lenet300.svg)",
        "within 2% of it",
        "lies within 0.5 points of the paper's (after pruning) or within 0.2 points",
    ):
        assert text in page, text
    assert "[ways of sharing a budget out" in (reports / "README.md").read_text()
    assert "collecting the statistics, 2.0 s, peak 700 MiB" in (reports / "methods.md").read_text()
    assert "## Methods\n" in (reports / "tiny.md").read_text()


def test_the_same_metrics_give_the_same_bytes_and_only_timings_follow_the_clock(tmp_path: Path) -> None:
    runs, reports = bare(write_runs(tmp_path / "runs")), tmp_path / "reports"
    write_report(runs, reports)
    before = contents(reports)
    write_report(runs, tmp_path / "again")
    assert contents(tmp_path / "again") == before
    for path in runs.rglob("timings.json"):
        change(path, total=99.0, peak_memory_mib=1.0)
    write_report(runs, reports)
    after = contents(reports)
    changed = {f"{page}.{suffix}" for page in ("timings", "methods") for suffix in ("csv", "md")}
    assert {name for name in before if before[name] != after[name]} == changed
    (runs / "lenet300/seed0/lobs/evaluate/metrics.json").write_text("[")
    with pytest.raises(ValueError, match=r"lobs/evaluate/metrics\.json"):
        write_report(runs, reports)
    assert contents(reports) == after, "a broken file leaves the old report alone"


def test_a_clean_checkout_has_tables_from_the_metrics_alone(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    for path in [path for path in runs.rglob("*") if path.is_file() and path.name != "metrics.json"]:
        path.unlink()
    write_report(runs, tmp_path / "reports")
    assert "| L-OBS | 7 | 3.10 | 3.30 |" in (tmp_path / "reports/README.md").read_text()
    for method in ("lobs", "magnitude"):
        shutil.rmtree(runs / "lenet300/seed0" / method)
    write_report(runs, tmp_path / "reports")
    page = (tmp_path / "reports/lenet300.md").read_text()
    assert "| L-OBS | 1.76 | - | 7 | - |" in page and "## Layers" not in page, "only trained"


def test_layer_errors_that_mean_something_else_are_said_to(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    write_report(bare(write_every(tmp_path / "runs")), reports)
    named = "exact OBS sequential and of exact OBS staged and of Net-Trim (cascade)"
    sentence = f"E of {named} is measured on the inputs that the pruned layers"
    for name in ("lenet300.md", "table3.md"):
        assert sentence in (reports / name).read_text()
    assert "\n## exact OBS sequential\n" in (reports / "table3.md").read_text()


def test_a_network_that_the_paper_does_not_have_and_nobody_retrained(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", "efficientnet_lite0")
    for path in runs.rglob("retrain/metrics.json"):
        change(path, iterations=0)
    for path in runs.rglob("retrain/curve.csv"):
        path.write_text("round,iteration,train_loss,test_error_percent\n1,0,,3.3\n")
    for path in runs.rglob("evaluate/metrics.json"):
        data = json.loads(path.read_text())
        for name, error in (("dense", 3.0), ("pruned", 7.5), ("retrained", 7.5)):
            data[name]["test_top5_error_percent"] = error
        write_json(path, data)
        change(path.parents[1] / "prune/metrics.json", data="ImageNet sample")
    reports = tmp_path / "reports"
    names = {path.name for path in write_report(runs, reports)}
    assert {"layers-efficientnet_lite0.md", "efficientnet_lite0.md", "figure6a.svg", "index.html"} <= names
    assert not any(name.startswith(("figure4", "retraining-", "overview")) for name in names)
    page = (reports / "efficientnet_lite0.md").read_text()
    assert "# EfficientNet-Lite0, ImageNet sample (`efficientnet_lite0`)" in page
    assert "## Methods" in page and "## Table 1" not in page
    assert "| L-OBS | 7 | 3.00 | 7.50 | - |" in page
    assert "- ImageNet sample: 1,000 ImageNet photographs, one per class" in (reports / "README.md").read_text()


def test_the_report_needs_neither_torch_nor_mlflow(tmp_path: Path) -> None:
    bare(write_runs(tmp_path / "runs"))
    code = (
        "import sys; from pathlib import Path; import lobs_paper.report; assert 'matplotlib' not in sys.modules;"
        f"lobs_paper.report.write_report(Path({str(tmp_path / 'runs')!r}), Path({str(tmp_path / 'reports')!r}));"
        "print(sorted({'torch', 'mlflow', 'pytorch_lightning', 'hydra'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_a_reader_of_table_1_must_know_is_said(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", methods={name: EVERY[name] for name in ("lobs", "lobs_resolve")})
    (text,) = _remarks(load_results(runs))
    assert text.startswith("L-OBS re-solved removes the weights of a layer in L-OBS's order")
    assert text.endswith("so that its masks are L-OBS's.")
    path = runs / "lenet300/seed0/lobs_resolve/evaluate/metrics.json"
    data = json.loads(path.read_text())
    data["pruned"]["layers"][2]["density"] = 0.355
    write_json(path, data)
    (text,) = _remarks(load_results(runs))
    assert text.endswith("share the budget out differently (seed 0): fc3 keeps 35.5% instead of 7%.")
    change(runs / "lenet300/seed0/lobs/prune/metrics.json", unpruned_share=0.125, notes=["'global' gave way"])
    share, note, _ = _remarks(load_results(runs))
    assert share == "L-OBS, seed 0: 12.5% of the network's weights were not pruned."
    assert note == "L-OBS, seed 0: 'global' gave way."
    shutil.rmtree(runs / "lenet300/seed0/lobs")
    (text,) = _remarks(load_results(runs))
    assert text.endswith("damped as L-OBS's inverse is."), "there is nothing to compare with"


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).write_text(name)
    return [folder / name for name in names]


def test_what_an_earlier_report_wrote_and_this_one_did_not_goes(tmp_path: Path) -> None:
    benchmarks = ("solvers.md", "speed.md", "memory.csv", "allocation.csv")
    touch(tmp_path, "notes.txt")
    assert remove_stale(tmp_path, touch(tmp_path, "README.md", "figure9.svg", *benchmarks)) == []
    removed = remove_stale(tmp_path, touch(tmp_path, "README.md", "figure2.svg"))
    assert [path.name for path in removed] == ["figure9.svg"], "not the benchmarks', even if a report listed them"
    assert set(contents(tmp_path)) == {"README.md", "figure2.svg", MANIFEST, "notes.txt", *benchmarks}
    assert (tmp_path / MANIFEST).read_text() == "README.md\nfigure2.svg\nfiles.txt\n"


def test_a_list_that_names_other_folders_removes_nothing_there(tmp_path: Path) -> None:
    folder = tmp_path / "reports"
    (folder / "kept").mkdir(parents=True)
    outside, inside = touch(tmp_path, "outside.txt")[0], touch(folder / "kept", "inside.txt")[0]
    (folder / MANIFEST).write_text(f"../outside.txt\n{outside}\nkept/inside.txt\nkept\n..\n\nmissing.csv\n")
    assert remove_stale(folder, []) == []
    assert outside.exists() and inside.exists()
