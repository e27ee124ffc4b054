from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.runs import timings, write_json, write_runs
from lobs_paper.report import costs
from lobs_paper.report.results import load_results


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds; pruning takes 3 s and 5 s, retraining 8 s."""
    runs = write_runs(tmp_path / "runs", seeds=(0, 1))
    write_json(runs / "lenet300/seed1/lobs/prune/timings.json", {**timings(5.0), "peak_memory_mib": 800.0})
    return runs


def row_of(runs: Path, label: str) -> dict[str, str]:
    table = costs.method_table(load_results(runs)[0])
    return next(dict(zip(table.columns, row, strict=True)) for row in table.rows if row[0] == label)


def test_a_method_has_one_row_with_errors_seconds_and_memory_over_its_seeds(runs: Path) -> None:
    assert row_of(runs, "L-OBS") == {
        "method": "L-OBS",
        "seeds": "2",
        "error before %": "1.70",
        "density %": "7",
        "after pruning %": "3.80 ± 0.71",
        "after retraining %": "1.85",
        "iterations": "515 ± 7",
        "pruning s": "4.0 ± 1.4",
        "retraining s": "8.0",
        "both s": "12.0 ± 1.4",
        "peak MiB, pruning": "700 ± 141",
        "peak MiB, retraining": "600",
    }


def test_records_match_their_header_and_keep_full_precision(runs: Path) -> None:
    records = costs.method_records(load_results(runs))
    assert all(tuple(record) == costs.METHOD_COLUMNS for record in records)
    lobs = next(record for record in records if record["method"] == "lobs")
    assert (lobs["seconds"], lobs["seconds_deviation"]) == (12.0, pytest.approx(2**0.5))
    assert (lobs["prune_peak_mib"], lobs["collect_peak_mib"]) == (700.0, 700.0)
    assert lobs["error_after_pruning_deviation"] == pytest.approx(0.5**0.5)


def test_without_retraining_pruning_is_all_there_is(runs: Path) -> None:
    for seed in (0, 1):
        for name in ("metrics.json", "timings.json"):
            (runs / f"lenet300/seed{seed}/lobs/retrain" / name).unlink()
    row = row_of(runs, "L-OBS")
    assert (row["retraining s"], row["both s"], row["after retraining %"]) == ("-", "4.0 ± 1.4", "-")


def test_a_sum_with_an_unknown_part_is_unknown(runs: Path) -> None:
    (runs / "lenet300/seed1/lobs/retrain/timings.json").unlink()
    assert row_of(runs, "L-OBS")["both s"] == "11.0", "seed 0 alone"
    path = runs / "lenet300/seed0/lobs/prune/timings.json"
    write_json(path, {**json.loads(path.read_text()), "total": None})
    assert row_of(runs, "L-OBS")["both s"] == "-"


def test_the_calibration_pass_is_shared_by_all(runs: Path) -> None:
    seconds, memory = costs.collect_costs(load_results(runs)[0])
    assert seconds and memory
    assert (seconds.mean, memory.mean) == (2.0, 700.0)
