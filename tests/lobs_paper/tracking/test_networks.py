"""Networks and configurations in the MLflow view: what `load_model` gives back, and that nothing is there twice."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from helpers.mlflow import client_of, visible
from helpers.runs import write_runs
from lobs_paper.files import save_tensors
from lobs_paper.networks.lenet300 import LeNet300
from lobs_paper.tracking.runs import sync

KEY = "lenet300/seed0/lobs"
CONF = Path(__file__).parents[3] / "conf"
MODEL = {"_target_": "lobs_paper.networks.lenet300.LeNet300", "hidden": [5, 4]}


@pytest.fixture
def network() -> LeNet300:
    torch.manual_seed(3)
    return LeNet300(hidden=[5, 4])


@pytest.fixture
def runs(tmp_path: Path, network: LeNet300, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two methods' metrics; for one also its networks, its configuration (as conf/ has it) and the data set's file."""
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setenv("LOBS_CONF", str(tmp_path / "conf"))
    root = write_runs(tmp_path / "runs")
    for stage, factor in (("prune", 0.0), ("retrain", 1.0)):
        tensors = {name: factor * tensor for name, tensor in network.state_dict().items()}
        save_tensors(root / KEY / stage / "model.safetensors", tensors)
    images = torch.zeros(3, 28, 28, dtype=torch.uint8)
    save_tensors(tmp_path / "data/mnist/test.safetensors", {"images": images, "labels": torch.zeros(3)})
    write_config(root)
    return root


def write_config(root: Path, foreign: bool = False, **changed: Any) -> Path:
    config = {"model": MODEL, "data": {"name": "mnist"}, "folders": {"data": "data", "runs": "runs"}, **changed}
    path = root.parent / "resolved" / KEY / "prune.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    if not foreign:
        (root.parent / "conf/model/lenet300.yaml").write_text(yaml.safe_dump(config["model"]))
    return path


def models(store: Path) -> list[Any]:
    client = client_of(store)
    return list(client.search_logged_models([client.get_experiment_by_name("paper").experiment_id]))


def loaded(store: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """The network as a user would load it."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    try:
        return mlflow.pytorch.load_model(f"runs:/{visible(store)[KEY].info.run_id}/model")
    finally:
        mlflow.set_tracking_uri(before)


def test_load_model_gives_the_retrained_network_for_any_batch(runs, store, network, monkeypatch) -> None:
    sync(runs, store)
    found = loaded(store, monkeypatch)
    for size in (1, 2, 9):
        images = torch.rand(size, 1, 28, 28)
        torch.testing.assert_close(found(images), network(images), rtol=0, atol=1e-6)
    assert dict(found.named_parameters()).keys() == dict(network.named_parameters()).keys()
    assert len(models(store)) == 1
    (file,) = (store / "artifacts/models").rglob("MLmodel")
    described = yaml.safe_load(file.read_text())
    assert [json.loads(described["signature"][side])[0]["tensor-spec"]["shape"] for side in ("inputs", "outputs")] == [
        [-1, 1, 28, 28],
        [-1, 10],
    ]
    example = json.loads((file.parent / described["saved_input_example_info"]["artifact_path"]).read_text())
    assert np.shape(example) == (2, 1, 28, 28)


def test_the_pruned_network_stands_in_where_there_was_no_retraining(runs, store, monkeypatch) -> None:
    (runs / KEY / "retrain/model.safetensors").unlink()
    sync(runs, store)
    assert not any(parameter.any() for parameter in loaded(store, monkeypatch).parameters())


def test_a_second_sync_logs_no_second_network_and_a_change_replaces_it(runs, store, monkeypatch) -> None:
    sync(runs, store)
    (first,) = models(store)
    assert sync(runs, store)["unchanged"] == 2
    assert [model.model_id for model in models(store)] == [first.model_id]
    fresh = LeNet300(hidden=[5, 4])
    save_tensors(runs / KEY / "retrain/model.safetensors", fresh.state_dict())
    assert sync(runs, store) == {"created": 0, "updated": 1, "unchanged": 1}
    (second,) = models(store)
    assert second.model_id != first.model_id
    assert [path.name for path in (store / "artifacts/models").iterdir()] == [second.model_id], "no file is left behind"
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(loaded(store, monkeypatch)(images), fresh(images), rtol=0, atol=1e-6)


def test_the_configuration_is_an_artifact_and_names_the_data(runs, store) -> None:
    train = runs.parent / "resolved/lenet300/seed0/train.yaml"
    shutil.copy(runs.parent / "resolved" / KEY / "prune.yaml", train)
    sync(runs, store)
    run = visible(store)[KEY]
    assert run.data.tags["data"] == "mnist"
    found = [file.path for file in client_of(store).list_artifacts(run.info.run_id, "config")]
    assert found == ["config/prune.yaml", "config/train.yaml"]
    write_config(runs, seed=5)
    assert sync(runs, store)["updated"] == 1
    metrics = runs / KEY / "prune/metrics.json"
    metrics.write_text(metrics.read_text().replace("{", '{"data": "MNIST (JPEG)",', 1))
    sync(runs, store)
    assert visible(store)[KEY].data.tags["data"] == "MNIST (JPEG)", "as the report calls it"


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda root: (root / KEY / "prune/model.safetensors").unlink(), "retrain's is still there"),
        (lambda root: shutil.rmtree(root.parent / "data"), "the shape of an input is not known"),
        (lambda root: shutil.rmtree(root.parent / "resolved"), "the network's class is not known"),
        (lambda root: write_config(root, folders={"data": "data", "runs": "validation"}), "another folder's settings"),
    ],
)
def test_without_its_files_a_run_has_no_network(runs, store, spoil, why) -> None:
    spoil(runs)
    assert sync(runs, store)["created"] == 2
    assert len(models(store)) == (1 if "still" in why else 0), why


@pytest.mark.parametrize(
    ("target", "reason"),
    [("helpers.networks.Undecided", "data-dependent"), ("nowhere.Network", "cannot be imported")],
)
def test_a_network_that_cannot_be_exported_leaves_its_reason_and_the_numbers(runs, store, target, reason) -> None:
    save_tensors(runs / KEY / "retrain/model.safetensors", {"weight": torch.ones(1)})
    write_config(runs, model={"_target_": target})
    sync(runs, store)
    run = visible(store)[KEY]
    assert re.search(reason, run.data.tags["lobs.model_not_logged"])
    assert run.data.metrics["density"] == 0.07
    assert models(store) == []
    assert sync(runs, store)["unchanged"] == 2


@pytest.mark.parametrize(
    "model",
    [
        {"_target_": "os.system", "command": "touch ran"},
        {"_target_": "evil.Network"},
        {**MODEL, "hidden": [5, 4], "inputs": 10**9},
        {**MODEL, "output": "evil.answer"},
    ],
    ids=lambda model: model["_target_"],
)
def test_a_foreign_networks_numbers_are_shown_and_nothing_of_it_is_imported_or_built(
    runs, store, tmp_path, monkeypatch, model
) -> None:
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    write_config(runs, foreign=True, model=model)
    sync(runs, store)
    run = visible(store)[KEY]
    assert "is not the one that" in run.data.tags["lobs.model_not_logged"]
    assert run.data.metrics["density"] == 0.07
    assert not (tmp_path / "ran").exists()
    assert models(store) == []


@pytest.mark.parametrize(
    "config",
    [
        [],
        {"model": 3},
        {"data": "mnist"},
        {"data": {"name": ["mnist"]}},
        {"folders": {"runs": "runs", "data": 3}},
        {"data": {"name": "mnist"}, "folders": {"runs": 3, "data": "data"}},
    ],
)
def test_a_configuration_of_other_types_is_named(runs, store, config) -> None:
    path = write_config(runs)
    whole = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**whole, **config} if config else config))
    if config == {"model": 3}:
        sync(runs, store)
        assert "is not the one that" in visible(store)[KEY].data.tags["lobs.model_not_logged"]
    else:
        with pytest.raises(ValueError, match=r"prune\.yaml: not what `lobs resolve` writes"):
            sync(runs, store)


def test_networks_can_be_left_out(runs, store) -> None:
    sync(runs, store, models=False)
    assert models(store) == []
    assert "config" in [file.path for file in client_of(store).list_artifacts(visible(store)[KEY].info.run_id)]
    assert sync(runs, store)["updated"] == 1, "they are added as soon as they are wanted"


def test_pictures_take_their_shape_from_the_configuration(runs, store) -> None:
    data = runs.parent / "data/photos"
    save_tensors(data / "test.safetensors", {"bytes": torch.zeros(3), "labels": torch.zeros(3)})
    for stage in ("prune", "retrain"):
        save_tensors(runs / KEY / stage / "model.safetensors", LeNet300(inputs=192, hidden=[5, 4]).state_dict())
    write_config(runs, model={**MODEL, "inputs": 192}, data={"name": "photos", "size": 8})
    sync(runs, store)
    assert len(models(store)) == 1


def test_a_file_that_resolve_did_not_write_is_named(runs, tmp_path) -> None:
    path = write_config(runs)
    path.write_text("paths: 7\n")
    with pytest.raises(ValueError, match=r"prune\.yaml: not what `lobs resolve` writes"):
        sync(runs, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_several_folders_of_runs_make_one_view(runs, store, tmp_path) -> None:
    further = write_runs(tmp_path / "pipelines/seeds/runs", seeds=(4,))
    assert sync([runs, further, tmp_path / "missing"], store)["created"] == 4
    found = visible(store)
    assert found["lenet300/seed4/lobs"].data.tags["mlflow.parentRunId"] == found["lenet300"].info.run_id
    write_runs(further)
    with pytest.raises(ValueError, match="also in another folder of runs"):
        sync([runs, further], store)
