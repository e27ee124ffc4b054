from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers.runs import METHODS, write_csv, write_json, write_runs
from lobs_paper.report.results import load_results


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_runs(tmp_path / "runs", seeds=(0, 10, 2))


def test_experiments_methods_and_seeds_come_in_a_fixed_order(runs: Path) -> None:
    write_runs(runs, "lenet5")
    lenet300, lenet5 = load_results(runs)
    assert (lenet300.name, lenet5.name) == ("lenet300", "lenet5")
    assert list(lenet300.trains) == [0, 2, 10]
    assert [entry.method for entry in lenet300.methods] == ["magnitude", "lobs"]
    assert [run.seed for run in lenet300.methods[0].runs] == [0, 2, 10]


def test_every_file_is_loaded(runs: Path) -> None:
    lobs = load_results(runs)[0].methods[1].runs[0]
    assert lobs.prune and lobs.prune.error_after_pruning_percent == 3.3
    assert lobs.retrain and lobs.retrain.rounds[0].iterations == 510
    assert lobs.evaluate and lobs.evaluate.bound == 400.0
    assert load_results(runs)[0].collects[10].images == 60000
    assert lobs.layers[1].shape == (100, 300)
    assert lobs.layers[2].error == 0.5
    assert len(lobs.paths) == 3 * 33
    assert lobs.first_layer_curve[-1].density == 0.0
    assert len(lobs.density_curve) == 12
    assert lobs.density_curve[5].density == 0.07
    assert lobs.density_curve[5].output_error == pytest.approx(0.2 * lobs.density_curve[5].test_error_percent)
    assert lobs.histogram and len(lobs.histogram.counts) == 36
    assert lobs.retrain_curve[0].train_loss is None
    assert lobs.retrain_curve[0].test_error_percent == pytest.approx(3.3)


def test_what_a_method_lacks_is_none_or_empty(runs: Path) -> None:
    folder = runs / "lenet300/seed0/magnitude"
    for name in ("retrain/metrics.json", "retrain/curve.csv", "evaluate/metrics.json"):
        (folder / name).unlink()
    for name in ("paths.csv", "density_curve.csv"):
        (folder / "prune" / name).unlink()
    run = load_results(runs)[0].methods[0].runs[0]
    assert run.retrain is None and run.evaluate is None and run.histogram is None
    assert run.paths == [] and run.retrain_curve == [] and run.density_curve == []
    assert [layer.name for layer in run.layers] == ["fc1", "fc2", "fc3"], "those of the prune stage"
    assert run.outcome is run.prune


def test_folders_that_hold_no_metrics_are_passed_over(runs: Path) -> None:
    for name in ("lenet300/seed0/notes", "lenet300/seedling/lobs", "empty"):
        (runs / name).mkdir(parents=True)
    (runs / "lenet300/seed0/readme.txt").write_text("")
    experiments = load_results(runs)
    assert [experiment.name for experiment in experiments] == ["lenet300"]
    assert len(experiments[0].methods) == 2


def test_no_metrics_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no metrics found"):
        load_results(tmp_path)


def change(path: Path, **values: object) -> None:
    write_json(path, {**json.loads(path.read_text()), **values})


def test_a_broken_file_is_named(runs: Path) -> None:
    path = runs / "lenet300/seed2/lobs/retrain/metrics.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"seed2/lobs/retrain/metrics\.json: not valid JSON"):
        load_results(runs)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("prune/metrics.json", {"density": "7%"}, "density must be of type float, got '7%'"),
        ("prune/metrics.json", {"density": True}, "density must be of type float, got True"),
        ("retrain/metrics.json", {"masks_exact": 1}, "masks_exact must be of type bool, got 1"),
        ("retrain/metrics.json", {"rounds": {}}, "rounds must be a list"),
        ("retrain/metrics.json", {"rounds": [{"round": 1}]}, "rounds: key 'density' is missing"),
        ("evaluate/metrics.json", {"pruned": 3}, "key 'pruned' is missing or no object"),
        ("prune/sensitivities.json", {"counts": [1, 2]}, "2 counts need 3 log10_edges, got 37"),
        ("prune/timings.json", {"layers": {"fc1": "slow"}}, "layers.fc1 must be of type float"),
    ],
)
def test_a_wrong_value_is_named_with_its_file(runs: Path, name: str, values: dict, message: str) -> None:
    change(runs / "lenet300/seed0/lobs" / name, **values)
    with pytest.raises(ValueError, match=name) as caught:
        load_results(runs)
    assert message in str(caught.value)


def test_a_missing_key_is_named(runs: Path) -> None:
    write_json(runs / "lenet300/seed0/lobs/prune/metrics.json", {"method": "lobs"})
    with pytest.raises(ValueError, match=r"lobs/prune/metrics\.json: key 'density' is missing"):
        load_results(runs)


def test_a_wrong_row_is_named_with_its_line(runs: Path) -> None:
    path = runs / "lenet300/seed0/lobs/prune/first_layer_curve.csv"
    write_csv(path, ("density", "test_accuracy_percent"), [(1.0, 98.0), (0.9, "high")])
    with pytest.raises(ValueError, match="line 3: test_accuracy_percent must be a number, got 'high'"):
        load_results(runs)


def test_keys_that_the_report_does_not_know_are_ignored(runs: Path) -> None:
    change(runs / "lenet300/seed0/lobs/prune/metrics.json", invented_later={"a": 1})
    assert load_results(runs)[0].methods[1].runs[0].prune


def test_further_folders_add_seeds_methods_and_experiments(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", seeds=(1,), methods={"lobs": METHODS["lobs"]})
    more = write_runs(tmp_path / "more", seeds=(0,), methods={"lobs": METHODS["lobs"]})
    shutil.rmtree(more / "lenet300/seed0/train")
    write_runs(more, seeds=(1,), methods={"magnitude": METHODS["magnitude"]})
    write_runs(more, "cifarnet")
    lenet300, cifarnet = load_results(runs, [tmp_path / "missing", more])
    assert cifarnet.name == "cifarnet"
    assert list(lenet300.trains) == [1], "a seed's dense network may lie in one folder only"
    assert {entry.method: [run.seed for run in entry.runs] for entry in lenet300.methods} == {
        "magnitude": [1],
        "lobs": [0, 1],
    }


def test_a_run_that_is_there_twice_is_refused(runs: Path, tmp_path: Path) -> None:
    more = write_runs(tmp_path / "more")
    with pytest.raises(ValueError, match=r"more/lenet300/seed0/lobs and .*runs/lenet300/seed0/lobs hold the same run"):
        load_results(runs, [more])


def test_the_data_and_the_recipe_are_known_where_the_metrics_name_them(runs: Path) -> None:
    train, retrain = (runs / "lenet300/seed0" / name for name in ("train/metrics.json", "lobs/retrain/metrics.json"))
    assert load_results(runs)[0].data is None
    write_json(train, {**json.loads(train.read_text()), "data": "CIFAR-10 (JPEG)"})
    recipe = {"optimizer": "sgd", "momentum": 0.9, "schedule": "cosine", "learning_rate": 0.1}
    write_json(retrain, {**json.loads(retrain.read_text()), "recipe": recipe})
    (experiment,) = load_results(runs)
    assert experiment.data == "CIFAR-10 (JPEG)"
    found = experiment.methods[1].runs[0].retrain
    assert found and found.recipe and (found.recipe.momentum, found.recipe.batch_size) == (0.9, None)
    assert experiment.methods[0].runs[0].retrain.recipe is None
    write_json(retrain, {**json.loads(retrain.read_text()), "recipe": "sgd"})
    with pytest.raises(ValueError, match=r"retrain/metrics\.json: recipe: expected an object, got 'sgd'"):
        load_results(runs)


def test_a_recipe_without_iterations_is_no_retraining(runs: Path) -> None:
    path = runs / "lenet300/seed0/lobs/retrain/metrics.json"
    write_json(path, {**json.loads(path.read_text()), "iterations": 0})
    run = load_results(runs)[0].methods[1].runs[0]
    assert run.retrain is not None and run.retrained is None
    assert load_results(runs)[0].methods[0].runs[0].retrained is not None


def test_a_dense_networks_timings_count_once(runs: Path, tmp_path: Path) -> None:
    more = write_runs(tmp_path / "more", seeds=(0,), methods={"obd": METHODS["lobs"]})
    timings = load_results(runs, [more])[0].timings
    places = [(entry.seed, entry.folder, entry.stage) for entry in timings]
    assert len(places) == len(set(places))
    assert (0, "", "train") in places and (0, "obd", "prune") in places
