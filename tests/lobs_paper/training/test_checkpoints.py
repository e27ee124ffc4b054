"""A training that was stopped gives the weights, the masks and the curve of one that was not."""

from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from helpers.classifier import data
from lobs_paper.training import checkpoints
from lobs_paper.training.dns import surgery
from lobs_paper.training.dns_masks import SurgerySettings
from lobs_paper.training.fit import Recipe, Training, fit
from lobs_paper.training.lwc import Connections
from lobs_paper.training.retraining import retrain

RECIPE = Recipe("sgd", 0.05, 0.9, 1e-3, "cosine", batch_size=16, iterations=20, augment="flip")


def network():
    """With dropout, whose draws go on as well."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


class Stop(pl.Callback):
    """Ends a training in the middle, as a kill would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


@pytest.fixture
def training(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    return Training(
        data(), data(30, seed=1), RECIPE, seed=0, measure_every=3, device="cpu", folder=tmp_path / "partial"
    )


def stopped_at(monkeypatch, step, number=1):
    """The training with a number, of those that follow, stops at a step, until the patch is undone."""
    init, begun = pl.Trainer.__init__, []

    def stopping(self, **given):
        begun.append(given)
        first = [Stop(step)] if len(begun) == number else []
        init(self, **{**given, "callbacks": [*first, *given["callbacks"]]})

    monkeypatch.setattr(pl.Trainer, "__init__", stopping)


def same(found, expected):
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


# An epoch has six minibatches: in the first one, at the end of the second, after it.
@pytest.mark.parametrize("step", [4, 12, 14])
def test_training_goes_on_to_the_same_weights(training, tmp_path, step):
    whole, stopped = network(), network()
    expected = fit(whole, training)
    training = Training(**{**vars(training), "folder": tmp_path / "again"})
    with pytest.raises(RuntimeError, match="stopped"):
        fit(stopped, training, [Stop(step)])
    again = network()
    found = fit(again, training)
    same(again.state_dict(), whole.state_dict())
    assert found.points == expected.points


def test_rounds_go_on_in_the_round_that_was_stopped(training, tmp_path, monkeypatch):
    def run(folder):
        model = network()
        masks = {"1": torch.ones(8, 12, dtype=torch.bool), "4": torch.ones(3, 8, dtype=torch.bool)}
        return retrain(model, masks, Training(**{**vars(training), "folder": folder}), [0.5], Connections(model))

    expected = run(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        stopped_at(patch, 9, number=2)
        run(tmp_path / "again")
    assert (tmp_path / "again/round1.json").exists()
    found = run(tmp_path / "again")
    same(found.network.state_dict(), expected.network.state_dict())
    same(found.masks, expected.masks)
    assert found.curve == expected.curve
    assert found.rounds == expected.rounds


def test_surgery_goes_on_with_its_dense_weights_and_masks(training, tmp_path, monkeypatch):
    settings = SurgerySettings(density=0.4, rate=1.0, gamma=1e-3, power=1.0, stop=15)

    def run(folder):
        return surgery(network(), Training(**{**vars(training), "folder": folder}), settings)

    expected = run(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        stopped_at(patch, 9)
        run(tmp_path / "again")
    found = run(tmp_path / "again")
    same(found.network.state_dict(), expected.network.state_dict())
    same(found.masks, expected.masks)
    assert found.curve == expected.curve
