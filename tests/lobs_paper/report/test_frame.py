"""The frames: order, what is missing, what is broken."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from helpers.runs import METHODS, write_csv, write_json, write_runs
from lobs_paper.report.frame import KEYS, Results, load_results


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_runs(tmp_path / "runs", seeds=(0, 10, 2))


def change(path: Path, **values: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **values})


def test_rows_come_in_the_order_of_the_tables(runs: Path) -> None:
    write_runs(runs, "cifarnet")
    write_runs(runs, "lenet5")
    write_runs(runs, "aaa")
    results = load_results(runs)
    assert results.experiments == ["lenet300", "lenet5", "cifarnet", "aaa"]
    assert list(results.runs["experiment"].unique()) == results.experiments
    own = results.of("lenet300")
    assert list(zip(own.runs["method"], own.runs["seed"], strict=True)) == [
        *(("magnitude", seed) for seed in (0, 2, 10)),
        *(("lobs", seed) for seed in (0, 2, 10)),
    ]
    assert list(own.dense["seed"]) == [0, 2, 10]


def test_every_file_is_loaded(runs: Path) -> None:
    results = load_results(runs)
    frames = {entry.name: getattr(results, entry.name) for entry in fields(Results)}
    for name in set(frames) - {"dense", "timings", "latency", "layer_seconds"}:
        assert list(frames[name].columns[: len(KEYS)]) == KEYS, name
    first = {
        name: frame[(frame["folder"] == "lobs") & (frame["seed"] == 0)]
        for name, frame in frames.items()
        if name != "dense"
    }
    run = first["runs"].iloc[0]
    assert (run["prune.error_after_pruning_percent"], run["error_after_pruning"]) == (3.3, 3.3)
    assert (run["density"], run["iterations"], run["rounds"]) == (pytest.approx(7.0), 510, 1)
    assert (run["evaluate.pruned.bound"], run["evaluate.retrained.storage.removed_units"]) == (400.0, 4)
    assert list(first["layers"]["shape"]) == ["300x784", "100x300", "10x100"]
    assert list(first["layers"]["error"]) == [50.0, 5.0, 0.5]
    assert (len(first["paths"]), len(first["density_curve"]), len(first["sensitivities"])) == (3 * 33, 12, 36)
    assert first["first_layer_curve"]["density"].iloc[-1] == 0.0
    assert first["retrain_curve"]["train_loss"].isna().iloc[0]
    assert first["retrain_curve"]["test_error_percent"].iloc[0] == pytest.approx(3.3)
    assert list(first["timings"]["stage"]) == ["evaluate", "prune", "retrain"]
    assert len(first["latency"]) == 4
    assert list(results.dense["collect.images"]) == [60000] * 3


def test_what_a_method_lacks_is_missing(runs: Path) -> None:
    folder = runs / "lenet300/seed0/magnitude"
    for name in ("retrain/metrics.json", "retrain/curve.csv", "evaluate/metrics.json", "prune/paths.csv"):
        (folder / name).unlink()
    (runs / "lenet300/seed0/notes").mkdir()
    (runs / "lenet300/seedling/lobs").mkdir(parents=True)
    results = load_results(runs)
    run = results.runs.iloc[0]
    assert (run["final"], run["learned"], run["error_after_pruning"]) == ("pruned", False, 57.0), "of pruning alone"
    assert run[["evaluate.method", "error_after_retraining", "iterations"]].isna().all()
    for frame, count in ((results.paths, 0), (results.retrain_curve, 0), (results.layers, 3)):
        assert sum((frame["folder"] == "magnitude") & (frame["seed"] == 0)) == count, "layers of the prune stage"


def test_an_older_file_lacks_keys(runs: Path) -> None:
    for path in runs.rglob("prune/metrics.json"):
        write_json(path, {"method": path.parts[-3], "density": 0.07, "invented_later": {"a": 1}})
    assert load_results(runs).runs["prune.error_before_percent"].isna().all()


def test_a_recipe_without_iterations_is_no_retraining(runs: Path) -> None:
    change(runs / "lenet300/seed0/lobs/retrain/metrics.json", iterations=0)
    run = load_results(runs).runs.query("folder == 'lobs'").iloc[0]
    assert (run["final"], run["learned"]) == ("retrained", False)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("prune/metrics.json", {"density": "7%"}, "density must be of type number, got '7%'"),
        ("prune/metrics.json", {"density": True}, "density must be of type number, got True"),
        ("prune/metrics.json", {"method": None}, "key 'method' is missing"),
        ("retrain/metrics.json", {"masks_exact": 1}, "masks_exact must be of type bool, got 1"),
        ("retrain/metrics.json", {"recipe": "sgd"}, "recipe: expected an object, got 'sgd'"),
        ("retrain/metrics.json", {"rounds": 1}, "rounds must be of type list, got 1"),
        ("retrain/metrics.json", {"rounds": [1]}, "rounds: must be a list of objects"),
        ("evaluate/metrics.json", {"pruned": 3}, "pruned: expected an object, got 3"),
        ("prune/sensitivities.json", {"counts": [1, 2]}, "2 counts need 3 log10_edges, got 37"),
        ("prune/timings.json", {"layers": {"fc1": "slow"}}, "fc1 must be of type number"),
    ],
)
def test_a_wrong_value_is_named_with_its_file(runs: Path, name: str, values: dict, message: str) -> None:
    change(runs / "lenet300/seed0/lobs" / name, **values)
    with pytest.raises(ValueError, match=name) as caught:
        load_results(runs)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2,3,4\n", b"\xff\xfe\x00"])
def test_a_table_that_is_none_is_named(runs: Path, content: bytes) -> None:
    (runs / "lenet300/seed0/lobs/retrain/curve.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"retrain/curve.csv"):
        load_results(runs)


def test_a_broken_file_is_named(runs: Path) -> None:
    (runs / "lenet300/seed2/lobs/retrain/metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"seed2/lobs/retrain/metrics\.json: not valid JSON"):
        load_results(runs)


def test_a_wrong_row_is_named_with_its_line(runs: Path) -> None:
    path = runs / "lenet300/seed0/lobs/prune/first_layer_curve.csv"
    write_csv(path, ("density", "test_accuracy_percent"), [(1.0, 98.0), (0.9, "high")])
    with pytest.raises(ValueError, match="line 3: test_accuracy_percent must be a number, got 'high'"):
        load_results(runs)


def test_no_metrics_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no metrics found"):
        load_results(tmp_path)


def test_further_folders_add_seeds_methods_and_experiments(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seeds=(1,), methods={"lobs": METHODS["lobs"]})
    more = write_runs(tmp_path / "more", seeds=(0,), methods={"lobs": METHODS["lobs"]})
    shutil.rmtree(more / "lenet300/seed0/train")
    write_runs(more, seeds=(1,), methods={"magnitude": METHODS["magnitude"]})
    write_runs(more, "cifarnet")
    results = load_results(runs, [tmp_path / "missing", more])
    own = results.of("lenet300")
    assert results.experiments == ["lenet300", "cifarnet"]
    assert list(own.runs["label"]) == ["LWC (magnitude, one shot)", "L-OBS", "L-OBS"]
    places = list(own.timings[["seed", "folder", "stage"]].itertuples(index=False, name=None))
    assert len(places) == len(set(places)), "a dense network's timings count once"


def test_a_run_that_is_there_twice_is_refused(runs: Path, tmp_path: Path) -> None:
    more = write_runs(tmp_path / "more", methods={"lobs": METHODS["lobs"]})
    with pytest.raises(ValueError, match=r"more/lenet300/seed0/lobs and .*runs/lenet300/seed0/lobs hold the same run"):
        load_results(runs, [more])


def test_data_is_called_what_the_metrics_call_it(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", "cifarnet")
    titles = []
    for data in (None, "cifar-10", "CIFAR-10 (JPEG)"):
        change(runs / "cifarnet/seed0/train/metrics.json", data=data)
        titles.append(load_results(runs).title)
    assert titles == ["CIFAR-Net, CIFAR-10", "CIFAR-Net, CIFAR-10", "CIFAR-Net, CIFAR-10 (JPEG)"]
