"""The tables over methods: their numbers against hand computation, and dashes where something was not measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pandas import DataFrame

from helpers.runs import METHODS, timings, write_csv, write_json, write_runs
from lobs_paper.report import method_tables as tables
from lobs_paper.report.frame import load_results

MAGNITUDE = "LWC (magnitude, one shot)"
CURVE = ("density", "test_error_percent", "output_error")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_runs(tmp_path / "runs", seeds=(0, 1))


def change(path: Path, **values: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **values})


def lines(table: DataFrame) -> list[tuple[str, ...]]:
    return list(table.itertuples(index=False, name=None))


def row_of(table: DataFrame, label: str = "L-OBS") -> dict[str, str]:
    return next(dict(zip(table.columns, row, strict=True)) for row in lines(table) if row[0] == label)


def test_what_a_method_costs_is_summed_up_over_its_seeds(runs: Path) -> None:
    write_json(runs / "lenet300/seed1/lobs/prune/timings.json", {**timings(5.0), "peak_memory_mib": 800.0})
    results = load_results(runs)
    assert row_of(tables.method_table(results)) == {
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
    lobs = tables.method_records(results).set_index("method").loc["lobs"]
    assert (lobs["seconds"], lobs["seconds_deviation"]) == (12.0, pytest.approx(2**0.5))
    assert (lobs["prune_peak_mib"], lobs["collect_peak_mib"]) == (700.0, 700.0)
    assert lobs["error_after_pruning_deviation"] == pytest.approx(0.5**0.5)
    assert [value.mean for value in tables.collect_costs(results)] == [2.0, 700.0]


def test_a_sum_with_an_unknown_part_is_unknown(runs: Path) -> None:
    (runs / "lenet300/seed1/lobs/retrain/timings.json").unlink()
    assert row_of(tables.method_table(load_results(runs)))["both s"] == "11.0", "seed 0 alone"
    change(runs / "lenet300/seed0/lobs/prune/timings.json", total=None)
    assert row_of(tables.method_table(load_results(runs)))["both s"] == "-"
    for name in ("metrics.json", "timings.json"):
        for path in runs.glob(f"lenet300/*/magnitude/retrain/{name}"):
            path.unlink()
    row = row_of(tables.method_table(load_results(runs)), MAGNITUDE)
    assert (row["retraining s"], row["both s"], row["after retraining %"]) == ("-", "3.0", "-"), (
        "pruning is all there is"
    )


def test_storage_is_that_of_the_final_network(runs: Path) -> None:
    assert row_of(tables.storage_table(load_results(runs))) == {
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
    lobs = tables.storage_records(load_results(runs)).set_index("method").loc["lobs"]
    assert (lobs["removed_units"], lobs["removed_units_deviation"]) == (4.5, pytest.approx(0.5**0.5))
    assert (lobs["batch"], lobs["batch_after_ms"], lobs["not_compacted"]) == (256, 2.0, None)
    for path in runs.glob("lenet300/*/lobs/retrain/metrics.json"):
        path.unlink()
    row = row_of(tables.storage_table(load_results(runs)))
    assert row["compacted, ms "] == "3", "that of the pruned network"
    assert tables.storage_records(load_results(runs)).set_index("method").loc["lobs", "removed_units"] == 3.5


def test_a_network_that_was_not_compacted_or_not_measured_has_dashes_or_no_row(runs: Path) -> None:
    def storage(seed: int, value: dict | None) -> None:
        path = runs / f"lenet300/seed{seed}/lobs/evaluate/metrics.json"
        retrained = json.loads(path.read_text())["retrained"]
        change(path, retrained={**retrained, "storage": value})

    storage(0, None)
    assert row_of(tables.storage_table(load_results(runs)))["units removed"] == "5", "seed 1 alone"
    taken = {"dense_bytes": 1000, "sparse_bytes": 500, "parameters": 200, "removed_units": None}
    for seed in (0, 1):
        storage(seed, {**taken, "not_compacted": "Net cannot be compacted"})
        (runs / f"lenet300/seed{seed}/lobs/evaluate/timings.json").unlink()
    row = row_of(tables.storage_table(load_results(runs)))
    assert (row["times smaller"], row["compacted KiB"], row["units removed"], row["compacted, ms"]) == ("2.0", *"---")
    lobs = tables.storage_records(load_results(runs)).set_index("method").loc["lobs"]
    assert lobs["not_compacted"] == "Net cannot be compacted"
    for seed in (0, 1):
        storage(seed, None)
    assert [row[0] for row in lines(tables.storage_table(load_results(runs)))] == [MAGNITUDE]


def test_errors_at_densities_are_summed_up_over_seeds(runs: Path) -> None:
    points = {
        ("lobs", 0): [(0.5, 1.5, 0.1), (0.07, 3.0, 4.0), (0.05, 5.0, 6.0), (0.00899, 60.0, 12.0)],
        ("lobs", 1): [(0.5, 1.5, 0.1), (0.0705, 4.0, 5.0), (0.00901, 70.0, 13.0)],
        ("magnitude", 0): [(0.1, 20.0, 6.0)],
        ("magnitude", 1): [],
    }
    for (method, seed), curve in points.items():
        write_csv(runs / f"lenet300/seed{seed}/{method}/prune/density_curve.csv", CURVE, curve)
    results = load_results(runs)
    table = tables.density_table(results)
    assert list(table.columns) == ["method", "seeds", "7%", "5%", "3.5%", "3%", "2%", "1.5%", "0.9%"]
    assert lines(table) == [
        (MAGNITUDE, "1", *"-------"),
        ("L-OBS", "2", "3.50 ± 0.71", "5.00 (1 of 2)", *"----", "65.00 ± 7.07"),
    ]
    records = tables.density_records(results)
    first = records[records["method"] == "lobs"].iloc[0]
    assert (first["density_percent"], first["seeds"], first["density_reached_percent"]) == (
        7.0,
        2,
        pytest.approx(7.025),
    )
    assert (first["test_error_percent"], first["output_error_deviation"]) == (3.5, pytest.approx(0.5**0.5))
    assert len(records) == 2 * len(tables.DENSITIES)


def test_a_network_that_needs_most_of_its_weights_has_its_own_densities(runs: Path) -> None:
    for path in runs.rglob("density_curve.csv"):
        path.unlink()
    assert tables.density_table(load_results(runs)).empty and tables.density_records(load_results(runs)).empty
    write_csv(runs / "lenet300/seed0/lobs/prune/density_curve.csv", CURVE, [(0.5, 18.0, 4.0), (0.29999986, 40.0, 5.0)])
    write_csv(runs / "lenet300/seed1/lobs/prune/density_curve.csv", CURVE, [(0.5, 19.0, 4.0)])
    table = tables.density_table(load_results(runs))
    assert list(table.columns) == ["method", "seeds", "50%", "30%"]
    assert lines(table) == [(MAGNITUDE, "0", "-", "-"), ("L-OBS", "2", "18.50 ± 0.71", "40.00 (1 of 2)")]


def test_the_bound_stands_beside_the_measured_error(runs: Path) -> None:
    results = load_results(runs)
    assert lines(tables.bound_table(results))[1] == ("L-OBS", "4.5 ± 0.71", "400", "90 ± 14", "yes")
    assert list(tables.bound_records(results)["bound_over_error"])[2:] == [100.0, 80.0]
    assert tables.bound_summary(results) == {"runs": 4, "broken": 0, "least": 80.0, "most": 100.0}
    path = runs / "lenet300/seed0/lobs/evaluate/metrics.json"
    change(path, pruned={**json.loads(path.read_text())["pruned"], "output_error": 401.0})
    assert lines(tables.bound_table(load_results(runs)))[1][-1] == "no"
    assert tables.bound_summary(load_results(runs))["broken"] == 1


def test_methods_that_were_not_evaluated_have_dashes(runs: Path) -> None:
    for stage in ("evaluate", "retrain"):
        for path in runs.glob(f"lenet300/*/lobs/{stage}/metrics.json"):
            path.unlink()
    results = load_results(runs)
    assert lines(tables.bound_table(results))[1] == ("L-OBS", *"----")
    assert lines(tables.retraining_table(results))[1] == ("L-OBS", *"-------")
    assert len(tables.bound_records(results)) == 2


def test_retraining_round_by_round(tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    path = runs / "lenet300/seed0/magnitude/retrain/metrics.json"
    last = json.loads(path.read_text())["rounds"][0]
    first = {"round": 1, "density": 0.5, "error_after_pruning_percent": 2.0, "error_after_retraining_percent": 1.5}
    change(path, rounds=[{**first, "iterations": 1000}, {**last, "round": 2, "iterations": 3000}])
    results = load_results(runs)
    outcome = (MAGNITUDE, "2", "8", "57.00", "2.60", "4,000", "not reached", "yes")
    assert lines(tables.retraining_table(results))[0] == outcome
    assert lines(tables.rounds_table(results)) == [
        (MAGNITUDE, "1", "50", "2.00", "1.50", "1,000"),
        (MAGNITUDE, "2", "8", "57.00", "2.60", "3,000"),
    ]


def test_the_spread_over_the_seeds(tmp_path: Path) -> None:
    several = load_results(write_runs(tmp_path / "three", seeds=(0, 1, 2)))
    errors = ("4.30 ± 1.00", "3.30", "5.30", "1.85", "1.85", "1.85")
    assert lines(tables.spread_table(several))[1] == ("L-OBS", "0, 1, 2", *errors)
    assert tables.spread_table(load_results(write_runs(tmp_path / "one"))).empty, "nothing is spread over one seed"


def test_corrections_and_which_was_made(runs: Path) -> None:
    assert tables.corrections_table(load_results(runs)).empty
    for seed, error in ((0, 20.0), (1, 22.0)):
        found = {"none": error, "bias": 18.0, "batch_norm": 17.5, "both": 17.0}
        change(runs / f"lenet300/seed{seed}/lobs/prune/metrics.json", correction="both", corrections=found)
    table = tables.corrections_table(load_results(runs))
    titles = ["method", "as pruned", "biases corrected", "batch norms estimated anew", "both", "made"]
    assert list(table.columns) == titles
    assert lines(table) == [("L-OBS", "21.00 ± 1.41", "18.00", "17.50", "17.00", "both")]


def test_errors_among_the_five_largest_outputs(runs: Path) -> None:
    assert tables.top5_table(load_results(runs)).empty
    write_runs(runs, seeds=(0,), methods={"lobs": METHODS["lobs"]})
    path = runs / "lenet300/seed0/lobs/evaluate/metrics.json"
    data = json.loads(path.read_text())
    for name, error in (("dense", 3.0), ("pruned", 7.5), ("retrained", 5.0)):
        data[name]["test_top5_error_percent"] = error
    write_json(path, data)
    assert lines(tables.top5_table(load_results(runs))) == [("L-OBS", "7", "3.00", "7.50", "5.00")]
    for path in runs.glob("lenet300/*/lobs/retrain/metrics.json"):
        change(path, iterations=0)
    assert lines(tables.top5_table(load_results(runs))) == [("L-OBS", "7", "3.00", "7.50", "-")]
