"""Pruning between two rounds of retraining; the stage itself runs in test_stages.py."""

from __future__ import annotations

import pytest
import torch

import lobs
from helpers.classifier import data, network
from helpers.stages import SMALL
from lobs_paper.config.compose import load
from lobs_paper.config.stage_parts import stage_config
from lobs_paper.files import save_tensors
from lobs_paper.stages.retrain import _training, load_masks, prune_again
from lobs_paper.training.fit import Recipe


def test_a_further_round_prunes_from_the_networks_own_statistics():
    config = stage_config(load(["method=lobs_iterative", *SMALL]), "retrain")
    config["method"] = {**config["method"], "allocation": "uniform", "correct": "none", "sequential": False}
    config["exclude"] = ["3"]
    first, train = network(), data(90)
    with torch.no_grad():
        first[1].weight[:, :6] = 0
    expected = lobs.prune(
        first,
        lobs.collect_statistics(first, train.batches(config["collect"]["batch_size"])),
        lobs.solvers.make(config["method"]["solver"], **config["method"]["options"]),
        density=0.25,
        exclude=["3"],
    )
    found, masks = prune_again(first, 0.25, config, train, torch.device("cpu"))
    assert found is first
    assert list(masks) == ["1"]
    assert not masks["1"][:, :6].any(), "what was removed stays removed"
    assert torch.equal(masks["1"], expected.masks["1"])
    torch.testing.assert_close(found[1].weight, expected.model[1].weight)


@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"nosuch": torch.ones(8, 12, dtype=torch.bool)},
        {"1": torch.ones(8, 11, dtype=torch.bool)},
        {"1": torch.ones(8, 12)},
        {"1": torch.zeros(8, 12, dtype=torch.bool)},
    ],
    ids=["none", "of no layer", "of another shape", "of another type", "of other weights"],
)
def test_masks_that_are_not_the_networks_are_refused(tmp_path, masks):
    save_tensors(tmp_path / "masks.safetensors", masks)
    with pytest.raises(ValueError, match=r"masks.safetensors.*run `lobs prune`"):
        load_masks(tmp_path / "masks.safetensors", network(), "lobs prune")


def test_the_recipe_is_that_of_the_configuration(monkeypatch):
    monkeypatch.setattr("lobs_paper.stages.retrain._partial", lambda *_: None)
    config = stage_config(load(["seed=7", *SMALL]), "retrain")
    training = _training(config, None, (data(9), data(3)), torch.device("cpu"))
    assert (training.seed, training.measure_every, training.device) == (7, 5, "cpu")
    assert isinstance(training.recipe, Recipe)
    assert (training.recipe.iterations, training.recipe.learning_rate, training.recipe.batch_size) == (22, 0.05, 32)
    assert (len(training.train), len(training.measured)) == (9, 3)
