"""Stage evaluate on networks that were written by hand; on those of the other stages it runs in test_stages.py."""

from __future__ import annotations

import json

import pytest
import torch

import lobs
from helpers.stages import SMALL, write_data
from lobs_paper.config.compose import load
from lobs_paper.config.stage_parts import stage_config
from lobs_paper.data.splits import load_training_data
from lobs_paper.files import write_json
from lobs_paper.networks.lenet300 import LeNet300
from lobs_paper.results import CHECKSUM, DIGEST, FILES, MADE_FROM
from lobs_paper.stages.evaluate import run
from lobs_paper.stages.folders import Folders
from lobs_paper.stages.network_files import save_network
from lobs_paper.training.evaluation import error_percent, output_error


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The configuration, the networks of the stages before, and what evaluate made of them."""
    root = tmp_path_factory.mktemp("evaluated")
    write_data(root / "data", train=60, test=30)
    words = [*SMALL, f"folders.runs={root / 'runs'}", f"folders.data={root / 'data'}", "density=0.2"]
    config = stage_config(load(words), "evaluate")
    folders = Folders(config)
    torch.manual_seed(0)
    dense = LeNet300(hidden=(16, 8)).eval()
    train, measured = load_training_data(config["folders"]["data"], **config["data"])
    statistics = lobs.collect_statistics(dense, train.batches(30))
    result = lobs.prune(dense, statistics, "magnitude", density=0.2)
    retrained = lobs.prune(dense, statistics, "exact_obs", density=0.2).model
    networks = {"train": dense, "prune": result.model, "retrain": retrained}
    for stage, network in networks.items():
        save_network(config, folders.output(stage) / "model.safetensors", network)
    statistics.save(folders.output("collect") / "statistics.safetensors")
    for stage in ("train", "collect"):
        write_json(folders.output(stage) / "metrics.json", {})
    write_json(folders.output("prune") / "metrics.json", {"requested": {"density": 0.2}, "density": 0.199})
    write_json(folders.output("prune") / "layers.json", [{"name": "fc1"}])
    write_json(folders.output("retrain") / "metrics.json", {"density": 0.198})
    return config, networks, (train, measured, statistics), run(config)


def test_every_network_has_its_error_on_the_test_images(written):
    _, networks, (_, measured, _), found = written
    for part, stage in (("dense", "train"), ("pruned", "prune"), ("retrained", "retrain")):
        assert found[part]["test_error_percent"] == error_percent(networks[stage], measured)


def test_the_output_error_and_its_bound_are_about_the_calibration_images(written):
    _, networks, (train, _, statistics), found = written
    dense, pruned = networks["train"], networks["prune"]
    assert found["pruned"]["output_error"] == pytest.approx(output_error(dense, pruned, train), rel=1e-5)
    assert found["pruned"]["bound"] == pytest.approx(lobs.error_bound(dense, pruned, statistics).total, rel=1e-5)
    assert found["pruned"]["output_error"] <= found["pruned"]["bound"]


def test_what_the_stages_before_noted_is_handed_on(written):
    config, _, _, found = written
    assert (found["pruned"]["density"], found["retrained"]["density"]) == (0.199, 0.198)
    assert found["pruned"]["layers"] == [{"name": "fc1"}]
    folder = Folders(config).output("evaluate")
    written = json.loads((folder / "metrics.json").read_text())
    seal = {key: written[key] for key in (MADE_FROM, DIGEST, FILES, CHECKSUM)}
    assert written == {**json.loads(json.dumps(found)), **seal}
    latency = json.loads((folder / "timings.json").read_text())["latency"]
    assert [(row["network"], row["batch"]) for row in latency] == [
        (name, batch) for name in ("pruned", "retrained") for batch in (1, 30)
    ]


def test_another_budget_is_refused_before_anything_is_measured(written):
    config = {**written[0], "density": 0.3}
    with pytest.raises(ValueError, match=r"density=0.3 was asked for, but .* was pruned with density=0.2"):
        run(config)
