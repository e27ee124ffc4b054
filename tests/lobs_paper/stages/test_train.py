"""How a network comes by its weights: by a recipe or from a file; the stage itself runs in test_stages.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.classifier import data, network
from lobs_paper.stages.train import check_answers, check_fits, first_point, fit_network
from lobs_paper.training.evaluation import error_percent
from lobs_paper.training.fit import Recipe, Training, fit

RECIPE = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.0}
RECIPE |= {"schedule": "constant", "batch_size": 40}


def test_a_recipe_in_epochs_is_one_in_iterations_that_is_measured_after_each_epoch():
    model, plain, measured = network(), network(), data(30, seed=1)
    config = {"train": {**RECIPE, "epochs": 2}, "seed": 4}
    curve = fit_network(model, data(90), measured, config, torch.device("cpu"))
    result = fit(plain, Training(data(90), measured, Recipe(**RECIPE, iterations=6), 4, 3, "cpu"))
    assert [point["epoch"] for point in curve] == [0, 1, 2]
    assert [point["test_error_percent"] for point in curve] == [p["test_error_percent"] for p in result.points]
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), r"does not take inputs of \[2, 1, 3, 4\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), r"answers 2 images by \[2, 2\], and .* has 3 classes"),
        (nn.Flatten(0), r"answers 2 images by \[24\]"),
        (nn.LSTM(4, 3), "does not take inputs"),
        (
            nn.Conv2d(1, 3, 1),
            r"class logits \[images, classes\] for labels \(2,\), and the network gives \(2, 3, 3, 4\)",
        ),
        (nn.Sequential(nn.Flatten(), nn.Unflatten(1, (12, 1)), nn.Flatten()), "has no weights"),
    ],
)
def test_a_network_that_does_not_fit_the_images_is_refused_before_it_is_trained(model, expected):
    with pytest.raises(ValueError, match=expected):
        check_fits(model, data(9))
    check_fits(network(), data(9))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_without_a_largest_one_are_refused_before_it_is_trained(value):
    spoiled = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Threshold(1e9, value))
    check_fits(spoiled, data(9))
    with pytest.raises(ValueError, match="the network's outputs are NaN or infinite"):
        check_answers(spoiled, data(9))
    check_answers(network(), data(9))


def test_a_network_that_is_not_trained_has_a_curve_of_one_point():
    measured = data(30, seed=1)
    curve = first_point(network(7), measured, torch.device("cpu"))
    assert curve == [{"epoch": 0, "train_loss": None, "test_error_percent": error_percent(network(7), measured)}]
