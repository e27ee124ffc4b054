from __future__ import annotations

import json
from pathlib import Path

from helpers.runs import METHODS, write_json, write_runs
from lobs_paper.report import layer_tables as tables
from lobs_paper.report.frame import load_results


def test_a_methods_layers_in_full(tmp_path: Path) -> None:
    results = load_results(write_runs(tmp_path))
    found = {label: table.to_numpy().tolist() for label, table in tables.layer_tables(results).items()}
    assert found["L-OBS"][0] == ["fc1", "300x784", "7", "16,464", "50", "0.125", "0.002", "100", "1e-06"]
    assert found["LWC (magnitude, one shot)"][1][6] == "-", "magnitude has no sensitivities"
    records = tables.layer_records(results)
    assert len(records) == 2 * 3 and records["kept"].iloc[4] == 2100


def test_the_layers_of_all_methods_stand_in_one_table(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, "lenet5", seeds=(0, 1))
    (runs / "lenet5/seed1/lobs/evaluate/metrics.json").unlink()
    table = tables.layers_table(load_results(runs))
    names = ("conv1", "conv2", "fc1", "fc2")
    columns = ["method", "all %", *(f"{name} %" for name in names), *(f"{name} relative E" for name in names)]
    assert list(table.columns) == columns
    assert list(table.iloc[1]) == ["L-OBS", "7", *["7"] * 4, *["0.12"] * 4]
    for path in runs.rglob("lobs/*/*.json"):
        if path.name == "layers.json" or path.parent.name == "evaluate":
            path.unlink()
    results = load_results(runs)
    assert list(tables.layers_table(results)["method"]) == ["LWC (magnitude, one shot)"]
    assert tables.layer_tables(results)["L-OBS"].empty


def test_many_layers_are_rows(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, methods={"lobs": METHODS["lobs"]})
    path = runs / "lenet300/seed0/lobs/evaluate/metrics.json"
    data = json.loads(path.read_text())
    layer = data["pruned"]["layers"][0]
    data["pruned"]["layers"] = [{**layer, "name": f"layer{k}", "density": 0.01 * (k + 1)} for k in range(9)]
    write_json(path, data)
    table = tables.layers_table(load_results(runs))
    assert list(table.columns) == ["layer", "L-OBS %", "L-OBS: relative E"]
    assert list(table.iloc[8]) == ["layer8", "9", "0.12"]


def test_timings_come_in_the_order_of_the_stages(tmp_path: Path) -> None:
    table = tables.timing_table(load_results(write_runs(tmp_path, seeds=(0, 1))))
    assert list(zip(table["stage"], table["method"], strict=True)) == [
        *(("train", "-"), ("collect", "-")),
        *((stage, method) for method in ("lobs", "magnitude") for stage in ("prune", "retrain", "evaluate")),
    ]
    assert list(table.iloc[2])[2:] == ["3.0", "600", "fc1", "2.50", "CPU, 2 threads"]
    assert list(table.iloc[0])[4:6] == ["-", "-"]
