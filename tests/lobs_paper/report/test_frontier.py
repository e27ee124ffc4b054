"""What is reached without labels and without training, on a page of its own."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.runs import EVERY, METHODS, write_csv, write_runs
from lobs_paper.report import pages
from lobs_paper.report.frame import load_results
from lobs_paper.report.frontier import frontier_records, frontier_table
from lobs_paper.report.statistic import statistic

NAMES = ("lobs", "exact_obs", "exact_obs_sequential", "exact_obs_staged")
COLUMNS = ("density", "test_error_percent", "output_error")
REFIT = ("test_error_after_refit_percent", "output_error_after_refit")


def write_staged(root: Path, seeds: tuple[int, ...] = (0, 1)) -> Path:
    """Three methods of exact OBS on two seeds, with curves of two densities."""
    write_runs(root, seeds=seeds, methods={name: EVERY[name] for name in NAMES})
    for seed in seeds:
        folder = root / f"lenet300/seed{seed}"
        write_csv(folder / "exact_obs/prune/density_curve.csv", COLUMNS, [(0.5, 2.0, 1.0), (0.125, 4.0 + seed, 1.0)])
        write_csv(folder / "exact_obs_sequential/prune/density_curve.csv", COLUMNS, [(0.125, 3.0, 1.0)])
        refitted = [(0.125, 3.0, 1.0, 2.0 + seed, 0.5)]
        write_csv(folder / "exact_obs_staged/prune/density_curve.csv", (*COLUMNS, *REFIT), refitted)
    return root


def test_every_measured_density_has_a_column_and_the_refit_a_row(tmp_path: Path) -> None:
    results = load_results(write_staged(tmp_path))
    table = frontier_table(results)
    assert list(table.columns) == ["method", "seeds", "dense", "50%", "12.5%"]
    assert list(table.itertuples(index=False, name=None)) == [
        ("exact OBS", "2", "1.70", "2.00", "4.50 ± 0.71"),
        ("exact OBS sequential", "2", "1.70", "-", "3.00"),
        ("exact OBS staged", "2", "1.70", "-", "3.00"),
        ("exact OBS staged, refit", "2", "1.70", "-", "2.50 ± 0.71"),
    ]
    last = frontier_records(results).iloc[-1]
    assert (last["method"], last["density_percent"], last["test_error_percent"]) == (
        "exact_obs_staged+refit",
        12.5,
        2.5,
    )
    assert (last["seeds"], last["output_error"]) == (2, 0.5)


def test_a_run_stands_at_its_own_density_where_its_curve_has_no_point_and_few_seeds_are_counted(tmp_path: Path) -> None:
    root = write_staged(tmp_path)
    path = root / "lenet300/seed1/exact_obs_staged/prune/metrics.json"
    own = {"density": 0.05, "correction": "none", "error_after_pruning_percent": 6.0, "error_after_refit_percent": 5.0}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    table = frontier_table(load_results(root)).set_index("method")
    assert list(table["5%"]) == ["-", "-", "6.00 (1 of 2)", "5.00 (1 of 2)"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "correction": "bias"}))
    assert "5%" not in frontier_table(load_results(root))


def test_the_page_names_data_seeds_and_images_and_is_there_only_with_a_refit(tmp_path: Path) -> None:
    results = load_results(write_staged(tmp_path / "runs"))
    further = pages._further(results)
    assert further == {"frontier": pages.FRONTIER}
    own = {
        "heading": "LeNet",
        "data": results.data,
        "seeds": "0, 1",
        "frontier": frontier_table(results),
        "dense": {name: statistic(results.dense[name]) for name in ("train.test_error_percent", "collect.images")},
    }
    page = pages.render("frontier", networks=[own], further=further)
    assert "\nMNIST, dense error 1.70%; seeds of dense networks: 0, 1; calibration images: 60,000.\n" in page
    plain = load_results(write_runs(tmp_path / "plain", methods=METHODS))
    assert pages._further(plain) == {} and frontier_table(plain).empty and frontier_records(plain).empty
