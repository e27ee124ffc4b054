from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.runs import write_json, write_runs
from lobs_paper.report import storage
from lobs_paper.report.results import load_results


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_runs(tmp_path / "runs", seeds=(0, 1))


def change(runs: Path, seed: int, part: str, value: dict | None) -> None:
    """Replace what a network of L-OBS takes."""
    path = runs / f"lenet300/seed{seed}/lobs/evaluate/metrics.json"
    metrics = json.loads(path.read_text())
    metrics[part]["storage"] = value
    write_json(path, metrics)


def row_of(runs: Path, label: str) -> dict[str, str]:
    table = storage.storage_table(load_results(runs)[0])
    return next(dict(zip(table.columns, row, strict=True)) for row in table.rows if row[0] == label)


def test_a_method_has_one_row_of_its_final_network_over_the_seeds(runs: Path) -> None:
    assert row_of(runs, "L-OBS") == {
        "method": "L-OBS",
        "dense KiB": "1041.9",
        "sparse KiB": "362.3",
        "times smaller": "2.9",
        "compacted KiB": "976.6",
        "units removed": "4 ± 1",
        "parameters left": "250,000",
        "1 image, ms": "0.15 ± 0.071",
        "compacted, ms": "0.05",
        "batch of 256, ms": "4.05 ± 0.071",
        "compacted, ms ": "2",
    }


def test_records_match_their_header_and_keep_full_precision(runs: Path) -> None:
    records = storage.storage_records(load_results(runs))
    assert all(tuple(record) == storage.STORAGE_COLUMNS for record in records)
    lobs = next(record for record in records if record["method"] == "lobs")
    assert (lobs["removed_units"], lobs["removed_units_deviation"]) == (4.5, pytest.approx(0.5**0.5))
    assert (lobs["batch"], lobs["batch_after_ms"], lobs["not_compacted"]) == (256, 2.0, None)


def test_without_retraining_the_pruned_network_counts(runs: Path) -> None:
    for seed in (0, 1):
        (runs / f"lenet300/seed{seed}/lobs/retrain/metrics.json").unlink()
    row = row_of(runs, "L-OBS")
    assert (row["units removed"], row["compacted, ms "]) == ("4 ± 1", "3")
    assert storage.storage_records(load_results(runs))[1]["removed_units"] == 3.5


def test_a_network_that_cannot_be_compacted_has_dashes_and_its_reason_in_the_csv(runs: Path) -> None:
    for seed in (0, 1):
        taken = {"dense_bytes": 1000, "sparse_bytes": 500, "parameters": 200, "removed_units": None}
        change(runs, seed, "retrained", {**taken, "not_compacted": "Net cannot be compacted"})
        (runs / f"lenet300/seed{seed}/lobs/evaluate/timings.json").unlink()
    row = row_of(runs, "L-OBS")
    assert (row["times smaller"], row["compacted KiB"], row["units removed"], row["compacted, ms"]) == ("2.0", *"---")
    record = next(entry for entry in storage.storage_records(load_results(runs)) if entry["method"] == "lobs")
    assert record["not_compacted"] == "Net cannot be compacted"


def test_runs_that_were_not_measured_have_no_row(runs: Path) -> None:
    change(runs, 0, "retrained", None)
    assert row_of(runs, "L-OBS")["units removed"] == "5", "seed 1 alone"
    change(runs, 1, "retrained", None)
    labels = [row[0] for row in storage.storage_table(load_results(runs)[0]).rows]
    assert labels == ["LWC (magnitude, one shot)"]
