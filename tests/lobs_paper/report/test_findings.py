"""The first page: what was run, what came out."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.runs import METHODS, write_csv, write_every, write_json, write_runs
from lobs_paper.report import findings, pages, table1
from lobs_paper.report.frame import load_results
from lobs_paper.report.rules import explained


def first_page(runs: Path, tmp_path: Path) -> str:
    """README.md without the figures, whose drawing takes the time."""
    results = load_results(runs)
    rows = explained(results, table1.compare(results))
    networks = [
        {"name": name, "title": name, "stem": name, "number": None, "finding": ""} for name in results.experiments
    ]
    context = {**pages._first_page(results, rows, [], tmp_path), "benchmarks": pages._benchmarks(tmp_path)}
    return pages.render(
        "README", networks=networks, drawings=[], has_table2=False, further=pages._further(results), **context
    )


def test_what_came_out_is_said_in_sentences(tmp_path: Path) -> None:
    page = first_page(write_every(tmp_path / "runs"), tmp_path)
    assert "\n- LeNet-300-100, MNIST: 15 methods, 1 to 3 seeds each, dense error 1.70%.\n" in page
    assert "\n- Machine: CPU, 2 threads; seconds and memory of every method: [methods.md](methods.md).\n" in page
    assert "\n- Of 7 rows beside the paper's Table 1, " in page
    assert (
        "\n- LeNet-300-100, MNIST at 7%: L-OBS leaves 4.30 ± 1.00% right after pruning (paper 3.10%) and 1.85% after "
        "520 ± 10 iterations (paper 1.82%, 510); without any retraining exact OBS leaves 1.90%.\n"
    ) in page
    assert "\n- Not reproduced: Random on LeNet-300-100 (after pruning +2.28 points), " in page
    assert "\n- Theorem 3.2's bound holds in all 27 runs; it is 66.7 to 100 times the measured error.\n" in page


def test_what_differs_on_other_machines_is_said(tmp_path: Path) -> None:
    page = first_page(write_runs(tmp_path), tmp_path)
    assert (
        "\n- The same machine, versions and threads give the same metrics to the last digit; others do not.\n" in page
    )


def test_rows_are_counted_by_verdict(tmp_path: Path) -> None:
    rows = table1.compare(load_results(write_runs(tmp_path)))
    assert findings.counts(rows) == {"reproduced": 1, "not reproduced": 1, "not run": 16}


def test_of_a_network_that_the_paper_does_not_have_best_and_worst_are_named(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", "own", methods={"lobs": METHODS["lobs"], "magnitude": METHODS["magnitude"]})
    for method, errors in (("lobs", (18.0, 40.0)), ("magnitude", (30.0, 95.0))):
        points = [(0.5, errors[0], 1.0), (0.4, 25.0, 1.0), (0.3, errors[1], 2.0)]
        path = runs / f"own/seed0/{method}/prune/density_curve.csv"
        write_csv(path, ("density", "test_error_percent", "output_error"), points)
    assert (
        "\n- own, dense 1.70%, without retraining: at 50% L-OBS 18.00% and LWC (magnitude, one shot) 30.00%; "
        "at 30% L-OBS 40.00% and LWC (magnitude, one shot) 95.00%.\n"
    ) in first_page(runs, tmp_path)
    for path in runs.rglob("density_curve.csv"):
        path.unlink()
    assert "without retraining:" not in first_page(runs, tmp_path)


def test_a_bound_that_fails_and_data_that_is_not_what_it_seems_are_named(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", "cifarnet")
    path = runs / "cifarnet/seed0/lobs/evaluate/metrics.json"
    data = json.loads(path.read_text())
    data["pruned"]["bound"] = 1.0
    write_json(path, data)
    train = runs / "cifarnet/seed0/train/metrics.json"
    write_json(train, {**json.loads(train.read_text()), "data": "CIFAR-10 (JPEG)"})
    page = first_page(runs, tmp_path)
    assert "fails in 1 of 2 runs" in page
    assert "\n- CIFAR-10 (JPEG): CIFAR-10 from a JPEG re-encoding" in page
    assert "Benchmarks" not in page
    (tmp_path / "solvers.md").write_text("measured elsewhere\n")
    assert "[layer error and seconds of every solver](solvers.md)" in first_page(runs, tmp_path)
