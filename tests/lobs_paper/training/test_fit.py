"""Training: repeatable to the byte, and removed weights stay exactly zero whatever the optimizer does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.classifier import data, network
from lobs_paper.training.evaluation import error_percent
from lobs_paper.training.fit import Recipe, Training, fit

RECIPE = Recipe("sgd", 0.1, momentum=0.9, weight_decay=1e-2, schedule="constant", batch_size=16, iterations=25)


def masks(model, share=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(module.weight.shape, generator=generator) < share
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def train(model, recipe=RECIPE, **options):
    rest = {key: options.pop(key) for key in ("masks", "callbacks") if key in options}
    options = {"seed": 0, "device": "cpu", "measure_every": 10, **options}
    return fit(model, Training(data(), data(30, seed=1), recipe, **options), **rest)


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


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_removed_weights_are_exactly_zero_after_every_step_and_kept_ones_move(optimizer, monkeypatch):
    from lobs_paper.training import fit as training

    model = network()
    kept = masks(model)
    before = {name: model.get_submodule(name).weight.detach().clone() for name in kept}
    seen = []

    def check(self, iteration, network):
        seen.append(iteration)
        for name, mask in kept.items():
            assert not network.get_submodule(name).weight[~mask].any()

    monkeypatch.setattr(training.ErrorCurve, "measure", check)
    train(model, replace(RECIPE, optimizer=optimizer), masks=kept, measure_every=1)
    assert seen == list(range(26))
    for name, mask in kept.items():
        assert (model.get_submodule(name).weight[mask] != before[name][mask]).all()


def test_kept_weights_train_as_those_of_the_smaller_network():
    model = network()
    kept = masks(model)
    train(model, masks=kept)
    smaller = network()
    with torch.no_grad():
        for name, mask in kept.items():
            smaller.get_submodule(name).weight.mul_(mask)
    for name, mask in kept.items():
        smaller.get_submodule(name).weight.register_hook(lambda gradient, mask=mask: gradient * mask)
    train(smaller)
    for name, mask in kept.items():
        weight = smaller.get_submodule(name).weight
        torch.testing.assert_close(model.get_submodule(name).weight[mask], weight[mask])
