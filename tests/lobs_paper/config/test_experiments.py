"""Every experiment of conf/ goes through every stage, on a little made-up data of its kind."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import torch

from helpers import small_networks
from helpers.images import encoded
from lobs_paper.cli import main
from lobs_paper.config.compose import load
from lobs_paper.data.pictures import packed
from lobs_paper.data.splits import split_file, split_fingerprint
from lobs_paper.files import save_tensors

ROOT = Path(__file__).parents[3]
SMALL = ["train.epochs=1", "train.batch_size=8", "retrain.batch_size=8", "collect.batch_size=6", "collect.images=10"]
SPEED = ["threads=1", "device=cpu", "retrain.measure_every=1"]
# lenet300 goes through test_stages.py, own through test_own_network.py.
EXPERIMENTS = sorted({path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")} - {"lenet300", "own"})


def write_data(name, size, channels, classes):
    """Sixteen images per split: pixels, or encoded pictures where size is None."""
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        labels = torch.randint(0, classes, (16,), generator=generator)
        if size is None:
            tensors = packed(encoded(number, kind="JPEG") for number in range(16))
        else:
            shape = (16, size, size) if channels == 1 else (16, channels, size, size)
            tensors = {"images": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)}
        tensors["labels"] = labels
        metadata = {"md5": split_fingerprint(tensors), "title": name.upper()}
        save_tensors(split_file("data", name, split), tensors, metadata)


DATA = {"mnist": (28, 1, 10), "cifar10": (32, 3, 10), "imagenet": (None, 3, 1000), "imagenet_sample": (None, 3, 1000)}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_goes_through_every_stage(tmp_path, monkeypatch, experiment):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOBS_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "small_networks", small_networks)
    config = load([f"experiment={experiment}"])
    name = config["data"]["name"]
    write_data(name, *DATA[name])
    words = [f"experiment={experiment}", *SMALL, *SPEED]
    if config["retrain"]["iterations"]:
        words.append("retrain.iterations=2")
    if hasattr(small_networks, experiment):
        words.append(f"model._target_=small_networks.{experiment}")
        # The class of the small network takes none of the large one's arguments.
        monkeypatch.setattr(small_networks, experiment, _ignoring_arguments(getattr(small_networks, experiment)))
    if DATA[name][0] is None:
        words += ["data.resize=36", "data.size=32", "collect.augmented_copies=2"]
    if config["model"].get("weights"):
        torch.manual_seed(0)
        torch.save(_built(words).state_dict(), "weights.pt")
        words.append("model.weights=weights.pt")
    for stage in ("train", "collect", "prune", "retrain", "evaluate"):
        assert main([stage, *words, "method=magnitude"]) == 0
    run = tmp_path / "runs" / experiment / "seed0"
    result = json.loads((run / "magnitude/evaluate/metrics.json").read_text())
    density = config["methods"].get("magnitude", {}).get("density", config["methods"]["default"]["density"])
    assert result["pruned"]["density"] == pytest.approx(density, abs=0.02)
    assert result["data"] == name.upper()
    names = {layer["name"] for layer in result["pruned"]["layers"]}
    assert not any("depthwise" in layer or "stem" in layer for layer in names)
    top5 = {key for key in result["dense"] if "top5" in key}
    assert top5 == ({"test_top5_error_percent"} if DATA[name][2] == 1000 else set())
    with (run / "magnitude/prune/density_curve.csv").open() as file:
        assert all(bool(row["test_top5_error_percent"]) == bool(top5) for row in csv.DictReader(file))
    collected = json.loads((run / "collect/metrics.json").read_text())
    assert collected["images"] == (20 if DATA[name][0] is None else 10)


def _ignoring_arguments(function):
    return lambda **_: function()


def _built(words):
    from lobs_paper.networks.build import build

    return build(load(words)["model"])


@pytest.mark.parametrize("experiment", ["alexnet", "vgg16", "resnet50"])
def test_without_internet_the_way_round_is_named(tmp_path, monkeypatch, capsys, experiment):
    from torchvision.models import get_model_weights

    def unreachable(*_, **__):
        raise OSError("no internet")

    monkeypatch.chdir(tmp_path)
    write_data("imagenet", *DATA["imagenet"])
    monkeypatch.setattr(get_model_weights(experiment), "get_state_dict", unreachable)
    monkeypatch.setattr(f"torchvision.models.{experiment}", getattr(small_networks, experiment))
    assert main(["train", f"experiment={experiment}", "device=cpu", "threads=1"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "cannot be downloaded (no internet): get " in message
    assert "give model.weights=<that file>, or put it into " in message
