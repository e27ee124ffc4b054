from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.mlflow import client_of, tracked, visible
from helpers.runs import METHODS, write_json, write_runs
from lobs_paper.tracking.runs import log_sweep, sync


def history(store: Path, run: Any, metric: str) -> list[tuple[int, float]]:
    points = client_of(store).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in points)


def change(path: Path, **values: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **values})


def test_a_parent_per_network_and_a_child_per_method_and_seed(runs: Path, store: Path) -> None:
    write_runs(runs, "lenet5")
    assert sync(runs, store) == {"created": 6, "updated": 0, "unchanged": 0}
    found = visible(store)
    assert set(found) == {
        *("lenet300", "lenet5"),
        *(f"lenet300/seed{seed}/{method}" for seed in (0, 1) for method in METHODS),
        *(f"lenet5/seed0/{method}" for method in METHODS),
    }
    for key, run in found.items():
        parent = run.data.tags.get("mlflow.parentRunId")
        assert parent == (found[key.split("/")[0]].info.run_id if "/" in key else None)
        assert run.info.status == "FINISHED"
    assert found["lenet300/seed1/lobs"].info.run_name == "lobs, seed 1"


def test_params_tags_and_metrics_are_those_of_the_files(runs: Path, store: Path) -> None:
    sync(runs, store)
    run = visible(store)["lenet300/seed1/lobs"]
    assert run.data.params == {
        "experiment": "lenet300",
        "network": "lenet300",
        "method": "lobs",
        "seed": "1",
        "solver": "lobs",
        "allocation": "uniform",
        "density": "0.07",
        "layers": "fc1, fc2, fc3",
    }
    tags = {key: run.data.tags[key] for key in ("network", "method", "seed", "density")}
    assert tags == {"network": "lenet300", "method": "lobs", "seed": "1", "density": "0.07"}
    expected = {
        "density": 0.07,
        "compression_ratio": 1 / 0.07,
        "error_before_percent": 1.7,
        "error_after_pruning_percent": 4.3,
        "error_after_retraining_percent": 1.85,
        "iterations": 520,
        "iterations_to_original": 400,
        "output_error": 5.0,
        "bound": 400.0,
        "layer_error_sum": 60.0,
    }
    assert {key: run.data.metrics[key] for key in expected} == pytest.approx(expected)


def test_the_error_before_a_refit_is_that_of_the_prune_stage(runs: Path, store: Path) -> None:
    folder = runs / "lenet300/seed0/lobs"
    change(folder / "prune/metrics.json", error_after_refit_percent=2.5, refit={"steps": 5}, stages=["density=0.3"])
    change(folder / "retrain/metrics.json", error_after_pruning_percent=2.5)
    change(runs / "lenet300/seed1/lobs/prune/metrics.json", refit=None, stages=[], compared_allocations={})
    sync(runs, store)
    found = {seed: visible(store)[f"lenet300/seed{seed}/lobs"].data.metrics for seed in (0, 1)}
    errors = [found[0][f"error_after_{stage}_percent"] for stage in ("pruning", "refit", "retraining")]
    assert errors == [3.3, 2.5, 1.85]
    assert "error_after_refit_percent" not in found[1]


def test_layers_are_steps_and_curves_keep_their_iterations(runs: Path, store: Path) -> None:
    sync(runs, store)
    run = visible(store)["lenet300/seed0/lobs"]
    assert history(store, run, "layer_error") == [(0, 50.0), (1, 5.0), (2, 0.5)]
    assert history(store, run, "layer_bound_contribution") == [(0, 100.0), (1, 200.0), (2, 300.0)]
    assert history(store, run, "train_test_error_percent") == [(1, 2.5), (2, 1.7)]
    retraining = history(store, run, "retrain_test_error_percent")
    assert [step for step, _ in retraining] == list(range(0, 511, 10))
    assert retraining[0][1] == pytest.approx(3.3)
    assert history(store, run, "retrain_train_loss")[0][0] == 10, "none was measured at iteration 0"


def test_a_second_sync_touches_nothing(runs: Path, store: Path) -> None:
    sync(runs, store)
    before = visible(store)
    assert sync(runs, store) == {"created": 0, "updated": 0, "unchanged": 4}
    after = visible(store)
    assert {key: run.info.run_id for key, run in before.items()} == {key: run.info.run_id for key, run in after.items()}
    assert history(store, after["lenet300/seed0/lobs"], "density") == [(0, 0.07)]


def test_a_changed_file_rebuilds_its_run_alone(runs: Path, store: Path) -> None:
    sync(runs, store)
    before = visible(store)
    change(runs / "lenet300/seed0/lobs/retrain/metrics.json", error_after_retraining_percent=1.5)
    assert sync(runs, store) == {"created": 0, "updated": 1, "unchanged": 3}
    after = visible(store)
    changed = {key for key in after if after[key].info.run_id != before[key].info.run_id}
    assert changed == {"lenet300/seed0/lobs"}
    assert after["lenet300/seed0/lobs"].data.metrics["error_after_retraining_percent"] == 1.5


def test_durations_change_nothing(runs: Path, store: Path) -> None:
    sync(runs, store)
    for path in runs.rglob("timings.json"):
        change(path, total=99.0)
    assert sync(runs, store)["unchanged"] == 4


def test_a_new_seed_is_added_below_the_same_parent(runs: Path, store: Path) -> None:
    sync(runs, store)
    parent = visible(store)["lenet300"].info.run_id
    write_runs(runs, seeds=(2,))
    assert sync(runs, store) == {"created": 2, "updated": 0, "unchanged": 4}
    found = visible(store)
    assert found["lenet300"].info.run_id == parent
    assert found["lenet300/seed2/lobs"].data.tags["mlflow.parentRunId"] == parent


def test_runs_whose_files_are_gone_stay(runs: Path, store: Path) -> None:
    sync(runs, store)
    for path in (runs / "lenet300/seed1").rglob("metrics.json"):
        path.unlink()
    assert sync(runs, store) == {"created": 0, "updated": 0, "unchanged": 2}
    assert "lenet300/seed1/lobs" in visible(store)


def test_missing_stages_leave_their_metrics_out(runs: Path, store: Path) -> None:
    folder = runs / "lenet300/seed0/magnitude"
    for stage in ("retrain", "evaluate"):
        (folder / stage / "metrics.json").unlink()
    (folder / "retrain/curve.csv").unlink()
    sync(runs, store)
    metrics = visible(store)["lenet300/seed0/magnitude"].data.metrics
    assert metrics["error_after_pruning_percent"] == 57.0
    assert metrics["layer_error"] == 0.5, "the last layer's, from the prune stage"
    assert not {"error_after_retraining_percent", "iterations", "bound"} & set(metrics)


def test_names_and_values_that_mlflow_does_not_take(runs: Path, store: Path) -> None:
    layers = [{"name": "block[0].fc/ä", "density": 0.1, "error": float("inf"), "relative_error": None}]
    path = runs / "lenet300/seed0/lobs/evaluate/metrics.json"
    data = json.loads(path.read_text())
    data["pruned"]["layers"] = layers
    write_json(path, data)
    sync(runs, store)
    run = visible(store)["lenet300/seed0/lobs"]
    assert run.data.params["layers"] == "block[0].fc/ä"
    assert run.data.metrics["layer_density"] == 0.1
    assert not {"layer_error", "layer_relative_error"} & set(run.data.metrics)
    log_sweep("names", "prune", [{"point": {}, "metrics": {"error[ä]": 2.0}, "error": None}], store)
    assert visible(store)["sweep/names/prune/as it is"].data.metrics == {"error___": 2.0}


def test_the_first_seed_and_method_are_the_latest_runs(runs: Path, store: Path) -> None:
    sync(runs, store)
    found = sorted(visible(store).values(), key=lambda run: run.info.start_time, reverse=True)
    names = [run.info.run_name for run in found if run.info.run_name != "lenet300"]
    assert names == ["lobs, seed 0", "magnitude, seed 0", "lobs, seed 1", "magnitude, seed 1"]


def test_a_broken_file_is_named_and_nothing_is_written(runs: Path, tmp_path: Path) -> None:
    store = tmp_path / "new"
    path = runs / "lenet300/seed1/lobs/retrain/curve.csv"
    path.write_text("round,iteration,train_loss,test_error_percent\n1,0,,high\n")
    with pytest.raises(ValueError, match=r"retrain/curve\.csv, line 2"):
        sync(runs, store)
    assert not store.exists()


def test_the_report_is_attached_to_the_parent(runs: Path, store: Path, tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    for text in ("first", "second"):
        (reports / "README.md").write_text(text)
        sync(runs, store, reports)
    run = visible(store)["lenet300"]
    assert [file.path for file in client_of(store).list_artifacts(run.info.run_id, "report")] == ["report/README.md"]
    assert run.info.artifact_uri.startswith(store.as_uri())
    assert (store / "artifacts" / run.info.run_id / "artifacts/report/README.md").read_text() == "second"


def test_a_networks_runs_are_compared_in_a_table_that_mlflow_loads(runs: Path, store: Path) -> None:
    write_runs(runs, "lenet5")
    sync(runs, store)
    info = visible(store)["lenet300"].info
    with tracked(store) as mlflow:
        table = mlflow.MlflowClient().load_table(info.experiment_id, "comparison.json", [info.run_id])
    assert table["run"].tolist() == ["lobs, seed 0", "magnitude, seed 0", "lobs, seed 1", "magnitude, seed 1"]
    assert table["method"].tolist() == ["lobs", "magnitude"] * 2
    assert table["error_after_pruning_percent"].tolist()[:3] == pytest.approx([3.3, 57.0, 4.3])
    sync(runs, store)
    assert len(json.loads((store / "artifacts" / info.run_id / "artifacts/comparison.json").read_text())["data"]) == 4


def test_the_searches_of_the_document_find_runs(runs: Path, store: Path) -> None:
    sync(runs, store)
    log_sweep("methods", "prune", [{"point": {"method": "lobs"}, "metrics": {}, "error": "ValueError: no"}], store)
    document = (Path(__file__).parents[3] / "docs/pipeline.md").read_text(encoding="utf-8")
    searches = re.findall(r"`((?:tags|metrics|params|attributes)\.[^`]+)`", document)
    assert len(searches) >= 4
    with tracked(store) as mlflow:
        found = [mlflow.search_runs(experiment_names=["paper"], filter_string=search) for search in searches]
    every = len(visible(store))
    assert all(0 < len(rows) < every for rows in found), dict(zip(searches, map(len, found), strict=True))


def test_a_sweep_has_a_parent_and_a_child_per_stage_and_point(store: Path) -> None:
    def row(density: str, error: str | None = None, **metrics: object) -> dict[str, Any]:
        return {"point": {"method": "lobs", "+density": density}, "metrics": metrics, "error": error}

    rows = [row("0.1", error_percent=2.0, bound=float("inf"), solver="lobs", kept=7), row("0.2", "ValueError: no")]
    assert log_sweep("curve", "prune", rows, store) == {"created": 2, "updated": 0, "unchanged": 0}
    assert log_sweep("curve", "retrain", rows[:1], store)["created"] == 1
    rows[1] = row("0.2", error_percent=1.5)
    assert log_sweep("curve", "prune", rows, store) == {"created": 0, "updated": 1, "unchanged": 1}
    found = visible(store)
    first = "sweep/curve/prune/method=lobs, density=0.1"
    assert set(found) == {"sweep/curve", first, first.replace("0.1", "0.2"), first.replace("prune", "retrain")}
    tables = client_of(store).list_artifacts(found["sweep/curve"].info.run_id)
    assert [file.path for file in tables] == ["prune.json", "retrain.json"]
    run = found[first]
    assert run.data.metrics == {"error_percent": 2.0, "kept": 7.0}
    assert run.data.params == {"method": "lobs", "density": "0.1", "solver": "lobs"}
    assert run.data.tags["mlflow.parentRunId"] == found["sweep/curve"].info.run_id
    assert {run.data.tags[key] for key in ("sweep", "stage", "method", "density")} == {"curve", "prune", "lobs", "0.1"}
    assert found[first.replace("0.1", "0.2")].info.status == "FINISHED"


def test_a_failed_point_is_shown_as_failed_with_its_reason(store: Path) -> None:
    rows = [{"point": {}, "metrics": {}, "error": "ValueError: density=7"}]
    log_sweep("curve", "prune", rows, store)
    run = visible(store)["sweep/curve/prune/as it is"]
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "ValueError: density=7")


def test_importing_the_module_does_not_import_mlflow() -> None:
    code = "import sys, lobs_paper.tracking.runs; print(sorted({'mlflow', 'torch', 'filelock'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
