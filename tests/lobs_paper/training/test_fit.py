"""Training: repeatable to the byte, whatever is measured on the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.classifier import data, network
from lobs_paper.training.evaluation import error_percent
from lobs_paper.training.fit import Recipe, Training, fit

RECIPE = Recipe("sgd", 0.1, momentum=0.9, weight_decay=1e-2, schedule="constant", batch_size=16, iterations=25)


def train(model, recipe=RECIPE, **options):
    callbacks = options.pop("callbacks", ())
    options = {"seed": 0, "device": "cpu", "measure_every": 10, **options}
    return fit(model, Training(data(), data(30, seed=1), recipe, **options), callbacks)


def test_training_learns_and_the_curve_ends_with_the_final_weights():
    model = network()
    result = train(model, replace(RECIPE, iterations=60))
    assert [point["iteration"] for point in result.points] == [0, 10, 20, 30, 40, 50, 60]
    assert result.points[0]["train_loss"] is None
    assert result.error_percent == error_percent(model, data(30, seed=1))
    assert result.error_percent < 10 < result.points[0]["test_error_percent"]


def test_the_first_step_is_the_optimizers_own():
    model, copy = network(), network()
    train(model, replace(RECIPE, batch_size=90, iterations=1, weight_decay=0.0, momentum=0.0))
    inputs, labels = data()[slice(None)]
    nn.functional.cross_entropy(copy(inputs), labels).backward()
    for after, before in zip(model.parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(after, before - 0.1 * before.grad)


def test_a_teachers_outputs_take_the_labels_place_and_it_stays_as_it_is():
    model, copy, teacher = network(), network(), network()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(3)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    recipe = replace(RECIPE, batch_size=90, iterations=1, weight_decay=0.0, momentum=0.0)
    train(model, recipe, teacher=teacher)
    inputs, _ = data()[slice(None)]
    with torch.no_grad():
        wanted = teacher.eval()(inputs).softmax(1)
    nn.functional.cross_entropy(copy(inputs), wanted).backward()
    for after, parameter in zip(model.parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(after, parameter - 0.1 * parameter.grad)
    assert all(torch.equal(teacher.state_dict()[key], value) for key, value in before.items())
    assert all(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(schedule):
    recipe = replace(RECIPE, schedule=schedule)
    first, second, other = network(), network(), network()
    train(first, recipe)
    train(second, recipe)
    train(other, recipe, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first[1].weight, other[1].weight)


def test_measuring_more_often_changes_nothing():
    first, second = network(), network()
    train(first, measure_every=1)
    train(second, measure_every=100)
    assert torch.equal(first[1].weight, second[1].weight)
