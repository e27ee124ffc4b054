"""LWC: thresholds by their definition, densities by selection, dropout by its formula, weights that stay removed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.classifier import data
from lobs_paper.training.fit import Recipe, Training
from lobs_paper.training.lwc import (
    Connections,
    dropout_after_pruning,
    dropouts,
    layer_weights,
    per_layer,
    qualities_for_densities,
    quality_for_density,
    selecting_value,
    threshold_masks,
    thresholds,
)
from lobs_paper.training.retraining import retrain

RECIPE = Recipe("sgd", 0.1, momentum=0.9, weight_decay=1e-3, schedule="constant", batch_size=16, iterations=20)


def network(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.25)]
    return nn.Sequential(*layers, nn.Linear(6, 3))


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv1": torch.randn(4, 1, 3, 3, generator=generator),
        "fc1": 0.1 * torch.randn(20, 16, generator=generator) + 0.02,
        "fc2": torch.rand(3, 20, generator=generator) - 0.5,
    }


def learn(model, densities, seed=0):
    prune = Connections(model)
    first, *further = densities
    pruned, masks = prune(model, first)
    training = Training(data(), data(30, seed=1), RECIPE, seed, measure_every=10, device="cpu")
    return retrain(pruned, masks, training, further, prune)


def test_a_threshold_is_the_quality_parameter_times_the_standard_deviation():
    weight = torch.tensor([[1.0, -1.0, 3.0, -3.0, 0.0, 0.0]])
    limits = thresholds({"fc": weight}, 0.6)
    assert limits == {"fc": pytest.approx(0.6 * math.sqrt(5))}  # removed weights, at zero, do not count
    masks = threshold_masks({"fc": weight}, 0.6)
    assert masks["fc"].tolist() == [[False, False, True, True, False, False]]


def test_layers_can_have_their_own_quality_parameter():
    given_weights = weights()
    masks = threshold_masks(given_weights, {"conv*": 0.2, "fc1": 1.0, "fc2": 0.0})
    for name, quality in {"conv1": 0.2, "fc1": 1.0, "fc2": 0.0}.items():
        weight = given_weights[name]
        assert torch.equal(masks[name], weight.abs() > quality * weight.std(correction=0))


@pytest.mark.parametrize("density", [0.0, 0.001, 0.08, 0.37, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("relative", [1.0, {"conv*": 0.3, "fc*": 1.0}])
def test_the_shared_quality_parameter_gives_the_density_exactly(density, relative):
    given_weights = weights()
    qualities = quality_for_density(given_weights, density, relative)
    kept = sum(int(mask.sum()) for mask in threshold_masks(given_weights, qualities).values())
    assert kept == int(density * sum(weight.numel() for weight in given_weights.values()) + 1e-9)
    shares = per_layer(relative, list(given_weights), "relative")
    assert len({round(qualities[name] / shares[name], 9) for name in qualities}) == 1


def test_each_layer_can_be_given_its_own_density():
    given_weights = weights()
    wanted = {"conv1": 0.5, "fc1": 0.1, "fc2": 0.25}
    masks = threshold_masks(given_weights, qualities_for_densities(given_weights, wanted))
    for name, mask in masks.items():
        assert int(mask.sum()) == int(wanted[name] * mask.numel())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=30), st.floats(0, 1))
def test_ties_and_zeros_never_exceed_the_density(values, density):
    weight = torch.tensor([values], dtype=torch.float32)
    if len({abs(value) for value in values if value}) < 2:
        return
    mask = threshold_masks({"fc": weight}, quality_for_density({"fc": weight}, density))["fc"]
    assert mask.sum() <= density * len(values) + 1e-6
    assert not mask[weight == 0].any()
    if mask.any() and not mask.all():
        assert weight[mask].abs().min() > weight[~mask].abs().max()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20, unique=True), st.floats(0, 1))
def test_a_selecting_value_counts_exactly(values, share):
    tensor = torch.tensor(values, dtype=torch.float64)
    assert int((tensor > selecting_value(tensor, share)).sum()) == int(share * len(values) + 1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quality_for_density(weights(), 1.2), r"density=1.2 is not accepted"),
        (lambda: quality_for_density(weights(), 0.5, {"*": 0.0}), r"relative quality 0.0 of layer 'conv1'"),
        (lambda: quality_for_density({"fc": torch.ones(2, 2)}, 0.5), r"all the same magnitude"),
        (lambda: thresholds(weights(), {"conv1": 1.0, "fc1": 1.0}), r"quality: no value for layer 'fc2'"),
        (lambda: thresholds(weights(), {"*": 1.0, "fx": 2.0}), r"quality: no layer fits 'fx'; .* conv1, fc1, fc2"),
        (lambda: dropout_after_pruning(0.5, 10, 11), r"10 connections cannot keep 11"),
        (lambda: dropout_after_pruning(0.5, 0, 0), r"0 connections cannot keep 0"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dropout_falls_with_the_root_of_the_connections_left():
    assert dropout_after_pruning(0.5, 400, 100) == 0.25
    assert dropout_after_pruning(0.5, 400, 400) == 0.5
    assert dropout_after_pruning(0.5, 400, 0) == 0.0


def test_a_dropout_belongs_to_the_layer_that_it_feeds():
    model = network()
    assert dropouts(model) == {"3": (model[3], "4"), "6": (model[6], "7")}
    assert dropouts(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))) == {}


def test_every_round_sets_the_dropout_from_the_dense_networks_rate():
    model = network()
    prune = Connections(model)
    for density in (0.5, 0.2):
        pruned, masks = prune(model, density)
        assert pruned is model
        for name, layer, rate in [("3", "4", 0.5), ("6", "7", 0.25)]:
            mask = masks[layer]
            assert model.get_submodule(name).p == pytest.approx(rate * math.sqrt(float(mask.float().mean())))


def test_pruning_removes_what_the_masks_say_and_keeps_the_rest():
    model = network()
    before = {name: weight.clone() for name, weight in layer_weights(model).items()}
    _, masks = Connections(model)(model, 0.3)
    for name, weight in layer_weights(model).items():
        assert torch.equal(weight, before[name] * masks[name])


def test_learning_connections_prunes_in_rounds_and_the_masks_are_exact():
    result = learn(network(), [0.5, 0.25, 0.125])
    total = 12 * 8 + 8 * 6 + 6 * 3
    assert [entry["density"] for entry in result.rounds] == [int(share * total) / total for share in (0.5, 0.25, 0.125)]
    assert result.curve[-1]["iteration"] == 60
    assert result.masks_exact
    weight = layer_weights(result.network)
    assert all(weight[name][mask].all() for name, mask in result.masks.items())


def test_the_same_seed_gives_the_same_bytes():
    first, second, other = (
        learn(network(), [0.4, 0.2]),
        learn(network(), [0.4, 0.2]),
        learn(network(), [0.4, 0.2], seed=1),
    )
    for name, weight in layer_weights(first.network).items():
        assert torch.equal(weight, layer_weights(second.network)[name])
    assert not torch.equal(first.network[1].weight, other.network[1].weight)
