from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.runs import EVERY, write_json, write_runs
from lobs_paper.report import table2
from lobs_paper.report.frame import load_results

METHODS = {name: EVERY[name] for name in ("lobs", "net_trim", "net_trim_cascade", "magnitude")}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    runs = write_runs(tmp_path / "runs", methods=METHODS)
    change(runs / "lenet300/seed0/collect/metrics.json", samples=2000)
    return runs


def change(path: Path, **values: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **values})


def rows(runs: Path) -> list[tuple[str, ...]]:
    return list(table2.table(table2.compare(load_results(runs))).itertuples(index=False, name=None))


def finding(runs: Path) -> str:
    return table2.finding(table2.compare(load_results(runs)))


def test_both_methods_stand_beside_the_papers_figures(runs: Path) -> None:
    unsure = "paper (recalled, low confidence)"
    assert rows(runs) == [
        ("Net-Trim", "7.4", "7", "28.45", "12.00", "2,000", unsure),
        ("Net-Trim (cascade)", "-", "7", "-", "9.00", "2,000", "-"),
        ("L-OBS", "7.4", "7", "4.56", "3.30", "60,000", unsure),
    ]


def test_samples_that_a_method_kept_itself_count(runs: Path) -> None:
    change(runs / "lenet300/seed0/net_trim_cascade/prune/metrics.json", samples_kept=500)
    assert rows(runs)[1][5] == "500"


@pytest.mark.parametrize("samples", [0, None])
def test_unknown_samples_are_a_dash(runs: Path, samples: int | None) -> None:
    change(runs / "lenet300/seed0/collect/metrics.json", samples=samples)
    assert rows(runs)[0][5] == "-"
    (runs / "lenet300/seed0/collect/metrics.json").unlink()
    assert [row[5] for row in rows(runs)] == ["-"] * 3


def test_errors_at_one_density_are_compared(runs: Path) -> None:
    assert finding(runs) == (
        "At 7% Net-Trim leaves an error of 12.00%, L-OBS one of 3.30%. "
        "At 7% Net-Trim (cascade) leaves an error of 9.00%, L-OBS one of 3.30%."
    )


def test_errors_at_different_densities_are_not(runs: Path) -> None:
    change(runs / "lenet300/seed0/net_trim/prune/metrics.json", density=0.06)
    text = finding(runs)
    assert text.startswith("Net-Trim and L-OBS are not at the same density (6% and 7%)")
    assert "12.00" not in text


@pytest.mark.parametrize(("density", "error", "fewer"), [(0.08, 12.0, "L-OBS"), (0.06, 2.0, "Net-Trim")])
def test_less_error_with_fewer_weights_is_said(runs: Path, density: float, error: float, fewer: str) -> None:
    path = runs / "lenet300/seed0/net_trim/prune/metrics.json"
    change(path, density=density, error_after_pruning_percent=error)
    expected = {
        "L-OBS": "L-OBS leaves an error of 3.30% at 7%, Net-Trim one of 12.00% at 8%, with more weights.",
        "Net-Trim": "Net-Trim leaves an error of 2.00% at 6%, L-OBS one of 3.30% at 7%, with more weights.",
    }
    assert finding(runs).startswith(expected[fewer])


def test_what_was_not_run_is_a_dash_and_compares_with_nothing(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    assert rows(runs)[0][:5] == ("Net-Trim", "7.4", "-", "28.45", "-")
    assert finding(runs) == ""


def test_other_networks_have_no_table_2(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", "lenet5", methods=METHODS)
    assert rows(runs) == [] and table2.records(load_results(runs)).empty


def test_records_keep_full_precision(runs: Path) -> None:
    records = table2.records(load_results(runs))
    assert list(records["error_after_pruning_percent"]) == [12.0, 9.0, 3.3]
    assert list(records["samples"]) == [2000.0, 2000.0, 60000.0]
