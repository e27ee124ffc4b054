from __future__ import annotations

from pathlib import Path

import pytest

from helpers.runs import METHODS, write_csv, write_runs
from lobs_paper.report import density
from lobs_paper.report.results import DensityPoint, load_results

COLUMNS = ("density", "test_error_percent", "output_error")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """L-OBS on two seeds, magnitude on one."""
    runs = write_runs(tmp_path / "runs")
    return write_runs(runs, seeds=(1,), methods={"lobs": METHODS["lobs"]})


def write_curve(runs: Path, method: str, seed: int, points: list[tuple[float, float, float]]) -> None:
    write_csv(runs / f"lenet300/seed{seed}/{method}/prune/density_curve.csv", COLUMNS, points)


@pytest.mark.parametrize(
    ("asked", "found"), [(0.07, 0.07), (0.0712, 0.07), (0.0688, 0.07), (0.073, None), (0.009, 0.0089), (0.0093, None)]
)
def test_the_nearest_point_counts_within_two_percent(asked: float, found: float | None) -> None:
    point = density.nearest([DensityPoint(0.07, 3.0), DensityPoint(0.0089, 60.0)], asked)
    assert (point.density if point else None) == found
    assert density.nearest([], asked) is None


def test_a_row_per_method_with_mean_and_deviation_over_its_seeds(runs: Path) -> None:
    write_curve(runs, "lobs", 0, [(0.5, 1.5, 0.1), (0.07, 3.0, 4.0), (0.05, 5.0, 6.0), (0.00899, 60.0, 12.0)])
    write_curve(runs, "lobs", 1, [(0.5, 1.5, 0.1), (0.0705, 4.0, 5.0), (0.00901, 70.0, 13.0)])
    write_curve(runs, "magnitude", 0, [(0.1, 20.0, 6.0)])
    table = density.table(load_results(runs)[0])
    assert table.columns == ("method", "seeds", "7%", "5%", "3.5%", "3%", "2%", "1.5%", "0.9%")
    assert table.rows == [
        ("LWC (magnitude, one shot)", "1", *"-------"),
        ("L-OBS", "2", "3.50 ± 0.71", "5.00", *"----", "65.00 ± 7.07"),
    ]


def test_records_match_their_header_and_keep_full_precision(runs: Path) -> None:
    write_curve(runs, "lobs", 0, [(0.07, 3.0, 4.0)])
    write_curve(runs, "lobs", 1, [(0.0704, 4.0, 5.0)])
    write_runs(runs, "lenet5")
    records = density.records(load_results(runs))
    assert all(tuple(record) == density.COLUMNS for record in records)
    assert len(records) == 2 * 2 * len(density.DENSITIES), "two experiments, two methods"
    lobs = [record for record in records if (record["experiment"], record["method"]) == ("lenet300", "lobs")]
    first, second = lobs[:2]
    assert (first["seeds"], first["density_reached_percent"]) == (2, pytest.approx(7.02))
    assert (first["test_error_percent"], first["test_error_deviation"]) == (3.5, pytest.approx(0.5**0.5))
    assert (first["output_error"], first["output_error_deviation"]) == (4.5, pytest.approx(0.5**0.5))
    assert (second["density_percent"], second["seeds"], second["test_error_percent"]) == (5.0, 0, None)


def test_a_network_that_needs_most_of_its_weights_has_its_own_densities_for_columns(runs: Path) -> None:
    write_curve(runs, "lobs", 0, [(0.5, 18.0, 4.0), (0.29999986, 40.0, 5.0)])
    write_curve(runs, "lobs", 1, [(0.5, 19.0, 4.0)])
    write_curve(runs, "magnitude", 0, [(0.8, 15.0, 6.0)])
    experiment = load_results(runs)[0]
    table = density.table(experiment)
    assert table.columns == ("method", "seeds", "80%", "50%", "30%")
    assert table.rows == [
        ("LWC (magnitude, one shot)", "1", "15.00", "-", "-"),
        ("L-OBS", "2", "-", "18.50 ± 0.71", "40.00"),
    ]
    assert [record["density_percent"] for record in density.records([experiment])] == [80.0, 50.0, 30.0] * 2


def test_without_any_curve_there_is_no_table(runs: Path) -> None:
    for path in runs.rglob("density_curve.csv"):
        path.unlink()
    experiments = load_results(runs)
    assert density.table(experiments[0]).rows == [] and density.records(experiments) == []
