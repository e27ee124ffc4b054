"""The stages on a small made-up data set: what they write must be right, not only there."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.stages import SMALL, lobs, write_data
from lobs.calibration.collect import collect_statistics
from lobs.compaction.compact import compact
from lobs_paper.cli import main
from lobs_paper.config.compose import load
from lobs_paper.data.splits import load_split
from lobs_paper.networks.lenet300 import LeNet300
from lobs_paper.stages.calibration import with_curvature

RUN = "runs/lenet300/seed0"


def metrics(folder, stage):
    return json.loads((folder / RUN / stage / "metrics.json").read_text())


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def network(folder, stage):
    model = LeNet300(hidden=(16, 8))
    model.load_state_dict(load_file(folder / RUN / stage / "model.safetensors"))
    return model.eval()


@torch.no_grad()
def wrong_percent(model, split):
    answers = model(split.images[:, None].float() / 255).argmax(1)
    return 100 * float((answers != split.labels).double().mean())


def test_train_learns_and_reports_the_error_of_the_weights_it_wrote(project):
    result = metrics(project, "train")
    model = network(project, "train")
    assert result["test_error_percent"] < 60  # ten classes: guessing gives 90
    assert result["test_error_percent"] == pytest.approx(wrong_percent(model, load_split("data", "mnist", "test")))
    assert result["train_error_percent"] == pytest.approx(wrong_percent(model, load_split("data", "mnist", "train")))
    assert result["parameters"] == sum(p.numel() for p in model.parameters())
    curve = rows(project / RUN / "train" / "curve.csv")
    assert [int(row["epoch"]) for row in curve] == [0, 1, 2, 3, 4, 5]
    assert float(curve[-1]["test_error_percent"]) == result["test_error_percent"]
    assert float(curve[-1]["train_loss"]) < float(curve[1]["train_loss"])


def test_collect_gives_the_second_moment_of_all_training_images(project):
    stored = load_file(project / RUN / "collect" / "statistics.safetensors")
    train = load_split("data", "mnist", "train")
    model = network(project, "train").double()
    inputs = train.images.flatten(1).double() / 255
    with torch.no_grad():
        for name in ("fc1", "fc2", "fc3"):
            ones = torch.ones(len(inputs), 1, dtype=torch.float64)
            samples = torch.cat([inputs, ones], 1)
            expected = samples.T @ samples / len(samples)
            torch.testing.assert_close(stored[f"{name}/second_moment"], expected, rtol=1e-5, atol=1e-7)
            outputs = model.get_submodule(name)(inputs)
            torch.testing.assert_close(
                stored[f"{name}/zero_fraction"], (outputs <= 0).double().mean(0), rtol=0, atol=0.01
            )
            inputs = outputs.relu()
    first = metrics(project, "collect")["layers"][0]
    assert (first["samples"], first["dead_inputs"]) == (400, 84)


def test_prune_keeps_exactly_the_density_and_records_true_layer_errors(project):
    result = metrics(project, "lobs/prune")
    dense, pruned = network(project, "train"), network(project, "lobs/prune")
    masks = load_file(project / RUN / "lobs/prune/masks.safetensors")
    moments = load_file(project / RUN / "collect/statistics.safetensors")
    layers = json.loads((project / RUN / "lobs/prune/layers.json").read_text())
    assert [layer["name"] for layer in layers] == ["fc1", "fc2", "fc3"]
    for layer in layers:
        name = layer["name"]
        module = pruned.get_submodule(name)
        assert layer["kept"] == int(masks[name].sum())
        assert not module.weight[~masks[name].bool()].any()
        change = torch.cat(
            [
                module.weight - dense.get_submodule(name).weight,
                (module.bias - dense.get_submodule(name).bias)[:, None],
            ],
            1,
        ).double()
        error = float((change.detach() @ moments[f"{name}/second_moment"] * change.detach()).sum())
        assert layer["error"] == pytest.approx(error, rel=1e-3)
        assert "seconds" not in layer
    assert result["layer_error_sum"] == pytest.approx(sum(layer["error"] for layer in layers))
    removable = sum(network(project, "train").get_submodule(name).weight.numel() for name in ("fc1", "fc2", "fc3"))
    assert result["removable_weights"] == removable
    assert result["kept_weights"] == sum(layer["kept"] for layer in layers) == int(0.07 * removable)
    assert result["error_before_percent"] == metrics(project, "train")["test_error_percent"]
    test = load_split("data", "mnist", "test")
    assert result["error_after_pruning_percent"] == pytest.approx(wrong_percent(pruned, test))


def test_prune_writes_curves_that_agree_with_its_metrics(project):
    folder = project / RUN / "lobs/prune"
    curve = rows(folder / "first_layer_curve.csv")
    assert float(curve[-1]["density"]) == 1
    dense = metrics(project, "train")["test_error_percent"]
    assert float(curve[-1]["test_accuracy_percent"]) == pytest.approx(100 - dense)
    paths = rows(folder / "paths.csv")
    for name in ("fc1", "fc2", "fc3"):
        errors = [float(row["error"]) for row in paths if row["layer"] == name]
        assert len(errors) > 60
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] == pytest.approx(0, abs=1e-9)
    sensitivities = json.loads((folder / "sensitivities.json").read_text())
    assert sum(sensitivities["counts"]) == 784 * 16
    assert len(sensitivities["log10_edges"]) == len(sensitivities["counts"]) + 1
    below = [
        count
        for count, edge in zip(sensitivities["counts"], sensitivities["log10_edges"][1:], strict=True)
        if edge <= -3
    ]
    assert sum(below) / (784 * 16) == pytest.approx(sensitivities["share_below_0.001"])


def test_retrain_keeps_the_masks_exactly_and_the_whole_curve(project):
    result = metrics(project, "lobs/retrain")
    model = network(project, "lobs/retrain")
    masks = load_file(project / RUN / "lobs/prune/masks.safetensors")
    for name, mask in masks.items():
        weight = model.get_submodule(name).weight
        assert not weight[~mask.bool()].any()
        assert not torch.equal(weight, network(project, "lobs/prune").get_submodule(name).weight)
    assert result["masks_exact"] is True
    curve = rows(project / RUN / "lobs/retrain/curve.csv")
    assert [int(row["iteration"]) for row in curve] == [0, 5, 10, 15, 20, 22]
    assert float(curve[0]["test_error_percent"]) == result["error_after_pruning_percent"]
    assert float(curve[-1]["test_error_percent"]) == result["error_after_retraining_percent"]
    assert result["error_after_retraining_percent"] < result["error_after_pruning_percent"]


@pytest.mark.parametrize(
    ("method", "expected"),
    [("lwc", [0.5, 0.25, 0.15, 0.08]), ("lobs_iterative", [0.1, 0.06, 0.04, 0.027, 0.02, 0.015]), ("dns", [0.1])],
)
def test_iterative_retraining_prunes_step_by_step_to_the_density(project, method, expected):
    result = metrics(project, f"{method}/retrain")
    assert [entry["density"] for entry in result["rounds"]] == pytest.approx(expected, abs=2e-3)
    iterations = result["iterations"]
    assert iterations == sum(entry["iterations"] for entry in result["rounds"])
    assert result["masks_exact"] is True
    model = network(project, f"{method}/retrain")
    masks = load_file(project / RUN / method / "retrain/masks.safetensors")
    assert all(not model.get_submodule(name).weight[~mask].any() for name, mask in masks.items())
    kept = sum(int((model.get_submodule(name).weight != 0).sum()) for name in ("fc1", "fc2", "fc3"))
    total = sum(model.get_submodule(name).weight.numel() for name in ("fc1", "fc2", "fc3"))
    assert kept / total == pytest.approx(result["density"], abs=1e-3)
    curve = rows(project / RUN / method / "retrain/curve.csv")
    counted = [int(row["iteration"]) for row in curve]
    assert counted[-1] == iterations
    assert counted == sorted(counted)
    # The curve begins with the pruned network, also where surgery starts from the dense one.
    assert float(curve[0]["test_error_percent"]) == result["rounds"][0]["error_after_pruning_percent"]
    assert result["rounds"][0]["error_after_pruning_percent"] == pytest.approx(
        metrics(project, f"{method}/prune")["error_after_pruning_percent"], abs=1e-9
    )


def test_thresholds_decide_between_the_layers(project):
    layers = json.loads((project / RUN / "lwc/prune/layers.json").read_text())
    first = {entry["name"]: entry["density"] for entry in layers}
    dense = {name: network(project, "train").get_submodule(name).weight.detach() for name in first}
    # One quality parameter per layer, in the proportions of methods.lwc.relative.
    shares = load(["method=lwc"])["method"]["threshold_scale"]
    quality = {
        name: float((weight.abs() / weight.double().std(correction=0)).flatten().quantile(1 - first[name]))
        for name, weight in dense.items()
    }
    assert quality["fc2"] / quality["fc1"] == pytest.approx(shares["fc2"] / shares["fc1"], rel=0.05)


def test_evaluate_measures_the_output_error_and_bounds_it(project):
    result = metrics(project, "lobs/evaluate")
    dense, pruned = network(project, "train"), network(project, "lobs/prune")
    images = load_split("data", "mnist", "train").images[:, None].float() / 255
    with torch.no_grad():
        measured = float((dense(images) - pruned(images)).norm()) / len(images) ** 0.5
    assert result["pruned"]["output_error"] == pytest.approx(measured, rel=1e-4)
    assert result["pruned"]["bound"] >= result["pruned"]["output_error"]
    contributions = [layer["bound_contribution"] for layer in result["pruned"]["layers"]]
    assert result["pruned"]["bound"] == pytest.approx(sum(contributions), rel=1e-4)
    assert result["dense"]["test_error_percent"] == metrics(project, "train")["test_error_percent"]
    after = metrics(project, "lobs/retrain")["error_after_retraining_percent"]
    assert result["retrained"]["test_error_percent"] == after


def test_evaluate_measures_bytes_and_units_before_and_after_compaction(project):
    result = metrics(project, "lobs/evaluate")
    for part, stage in (("pruned", "prune"), ("retrained", "retrain")):
        taken = result[part]["storage"]
        file = project / RUN / "lobs" / stage / "model.safetensors"
        assert taken["dense_bytes"] == pytest.approx(file.stat().st_size, abs=256), "but for the metadata"
        assert taken["compact_bytes"] <= taken["dense_bytes"]
        assert taken["sparse_bytes"] < 0.5 * taken["dense_bytes"]
        smaller = compact(network(project, f"lobs/{stage}"), torch.rand(2, 1, 28, 28))
        assert taken["removed_units"] == smaller.removed
        assert taken["compact_parameters"] == smaller.parameters_left
        assert taken["compact_difference"] < 1e-5
        assert taken["not_compacted"] is None
    timings = json.loads((project / RUN / "lobs/evaluate/timings.json").read_text())
    assert [(row["network"], row["batch"]) for row in timings["latency"]] == [
        *(("pruned", 1), ("pruned", 200)),
        *(("retrained", 1), ("retrained", 200)),
    ]
    assert all(row["before_ms"] > 0 and row["after_ms"] > 0 for row in timings["latency"])


def test_the_same_run_twice_gives_the_same_bytes(project):
    again = "folders.runs=again"
    for stage in ("train", "collect", "prune", "retrain"):
        lobs(stage, *SMALL, again)
    first, second = project / RUN, project / "again/lenet300/seed0"
    files = [path.relative_to(second) for path in second.rglob("*") if path.is_file()]
    assert len(files) > 12
    for file in files:
        if file.name != "timings.json":
            assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_durations_stay_out_of_every_file_that_another_stage_reads(project):
    for path in (project / RUN).rglob("*.json"):
        if path.name != "timings.json":
            assert "seconds" not in path.read_text(), path
    timings = json.loads((project / RUN / "lobs/prune/timings.json").read_text())
    assert set(timings["layers"]) == {"fc1", "fc2", "fc3"}
    assert 0 < sum(timings["layers"].values()) <= timings["total"]
    assert timings["peak_memory_mib"] > 50


def test_a_validation_part_takes_the_test_sets_place(project):
    lobs("train", *SMALL, "data.holdout=100", "folders.runs=validated")
    result = json.loads((project / "validated/lenet300/seed0/train/metrics.json").read_text())
    model = LeNet300(hidden=(16, 8))
    model.load_state_dict(load_file(project / "validated/lenet300/seed0/train/model.safetensors"))
    assert result["measured_on"] == "validation"
    held_out = load_split("data", "mnist", "train").part(300)
    assert result["test_error_percent"] == pytest.approx(wrong_percent(model, held_out))


def test_tolerance_prunes_by_the_papers_rule(project):
    lobs("prune", *SMALL, "tolerance=0.5", "folders.output=tolerated")
    folder = project / "tolerated/lenet300/seed0/lobs/prune"
    layers = json.loads((folder / "layers.json").read_text())
    assert all(layer["error"] <= 0.25 * (1 + 1e-6) for layer in layers)
    assert all(layer["removed"] > 0 for layer in layers)
    result = json.loads((folder / "metrics.json").read_text())
    assert result["requested"] == {"tolerance": 0.5}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["prune", "seed=5"], "run `lobs train experiment=lenet300 seed=5 "),
        (["retrain", "method=magnitude"], "run `lobs prune experiment=lenet300 seed=0 method=magnitude "),
        (["retrain", "density=0.5"], "density=0.5 was asked for, but"),
        (["evaluate", "tolerance=0.5"], "tolerance=0.5 density=null was asked for, but"),
        (["collect", "model.hidden=[7,7]"], "model.hidden=[7,7] was asked for, but"),
        (
            ["prune", "data.holdout=100"],
            "data.holdout=100 was asked for, but runs/lenet300/seed0/train was made with",
        ),
        (
            ["retrain", "data.holdout=100"],
            "run `lobs train experiment=lenet300 seed=0 data.holdout=100",
        ),
        (["train", "experiment=lenet300", "model._target_=lobs.no_such.Network"], "cannot be imported"),
        (["train", "data.holdout=400"], "has only 400 training images"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(project, capsys, words, expected):
    overrides = [word for word in SMALL if word.split("=")[0] not in {item.split("=")[0] for item in words}]
    before = sorted(project.rglob("*"))
    assert main([words[0], *overrides, *words[1:]]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1
    assert sorted(project.rglob("*")) == before


def test_damaged_data_is_recognised(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_data("data", train=20, test=10)
    path = tmp_path / "data/mnist/test.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["train", *SMALL]) == 2
    assert "delete it and run `lobs fetch data=mnist`" in capsys.readouterr().err
    path.write_bytes(b"not a tensor file")
    assert main(["train", *SMALL]) == 2
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["random", "obd", "apoz", "exact_obs", "magnitude"])
def test_every_one_shot_baseline_runs_from_its_file(project, method):
    lobs("prune", f"method={method}", *SMALL)
    result = metrics(project, f"{method}/prune")
    assert 0 < result["density"] <= result["requested"]["density"]
    masks = load_file(project / RUN / f"{method}/prune/masks.safetensors")
    assert result["kept_weights"] == sum(int(mask.sum()) for mask in masks.values())
    assert (project / RUN / f"{method}/prune/first_layer_curve.csv").exists()


def test_the_curvature_of_the_loss_is_collected_where_a_method_scores_by_it(project, capsys):
    stored = load_file(project / RUN / "collect" / "statistics.safetensors")
    assert "fc1/loss_curvature" not in stored
    assert stored["fc1/inputs_sample"].shape == (400, 785)
    assert main(["prune", "method=obd", "collect.loss=null", *SMALL]) == 2
    assert "collect.loss=null is not accepted" in capsys.readouterr().err
    config = load(["method=obd", *SMALL])
    train = load_split("data", "mnist", "test")
    model = network(project, "train")
    plain = collect_statistics(model, train.batches(70))
    expected = collect_statistics(model, train.batches(70), loss="cross_entropy")
    found = with_curvature(model, plain, train, config["collect"])
    part = with_curvature(model, plain, train, {**config["collect"], "images_per_pass": 70})
    first = collect_statistics(model, [next(iter(train.batches(70)))], loss="cross_entropy")
    assert list(found) == list(expected)
    for name, layer in expected.items():
        torch.testing.assert_close(found[name].loss_curvature, layer.loss_curvature)
        torch.testing.assert_close(part[name].loss_curvature, first[name].loss_curvature)


def test_pruning_in_sequence_with_measured_shares_corrections_and_limits(project):
    words = ["method=exact_obs_sequential", "method.correct=bias", "method.limits.fc3=[0.5,1.0]", "density=0.2"]
    lobs("prune", *words, *SMALL)
    result = metrics(project, "exact_obs_sequential/prune")
    assert result["correction"] == "bias"
    assert result["corrections"].keys() == {"none", "bias"}
    assert result["corrections"]["bias"] == result["error_after_pruning_percent"]
    assert result["kept_weights"] == int(0.2 * result["removable_weights"])
    layers = json.loads((project / RUN / "exact_obs_sequential/prune/layers.json").read_text())
    assert layers[-1]["density"] >= 0.5
    curve = rows(project / RUN / "exact_obs_sequential/prune/density_curve.csv")
    assert len(curve) >= 5
    errors = [float(row["output_error"]) for row in curve]
    assert errors == sorted(errors)


def test_a_list_of_densities_replaces_those_of_the_curves(project):
    words = ["method=exact_obs_sequential", "method.allocation=uniform", "density=0.2", "density_grid=[0.4,0.2]"]
    lobs("prune", *words, *SMALL, "folders.output=curve")
    folder = project / "curve/lenet300/seed0/exact_obs_sequential/prune"
    pruned, curve = json.loads((folder / "metrics.json").read_text()), rows(folder / "density_curve.csv")
    assert [float(row["density"]) for row in curve] == pytest.approx([0.4, 0.2], abs=1e-3)
    assert float(curve[1]["test_error_percent"]) == pruned["error_after_pruning_percent"]
    assert len(rows(folder / "first_layer_curve.csv")) == 2


def test_excluded_layers_stay_dense_and_flops_are_a_budget(project):
    lobs("prune", *SMALL, "method.exclude=[fc3]", "flops=0.2", "folders.output=excluded")
    folder = project / "excluded/lenet300/seed0/lobs/prune"
    assert [layer["name"] for layer in json.loads((folder / "layers.json").read_text())] == ["fc1", "fc2"]
    assert json.loads((folder / "metrics.json").read_text())["requested"] == {"flops": 0.2}


def test_the_density_curve_is_the_pruned_network_at_every_density(project):
    curve = {
        round(float(row["density"]), 3): float(row["test_error_percent"])
        for row in rows(project / RUN / "lobs/prune/density_curve.csv")
    }
    assert curve[0.07] == metrics(project, "lobs/prune")["error_after_pruning_percent"]


def test_net_trim_in_cascade_runs_from_its_file(project):
    lobs("prune", "method=net_trim_cascade", "density=0.3", *SMALL)
    assert metrics(project, "net_trim_cascade/prune")["density"] == pytest.approx(0.3, abs=2e-3)
