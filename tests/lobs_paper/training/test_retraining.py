"""Removed weights stay exactly zero whatever the optimizer does; rounds stay nested, and iterations count over them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import lobs
from helpers.classifier import data, network
from lobs_paper.training import fit as training
from lobs_paper.training.fit import Recipe, Training, fit
from lobs_paper.training.retraining import Retrained, retrain

RECIPE = Recipe("sgd", 0.1, momentum=0.9, weight_decay=1e-2, schedule="constant", batch_size=16, iterations=25)


def halve(model, density):
    """Keep the largest weights of each layer."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            threshold = module.weight.detach().abs().flatten().quantile(1 - density)
            found[name] = module.weight.detach().abs() > threshold
            with torch.no_grad():
                module.weight.mul_(found[name])
    return model, found


def masks(model, share=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(module.weight.shape, generator=generator) < share
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }


def train(model, recipe, measure_every):
    fit(model, Training(data(), data(30, seed=1), recipe, 0, measure_every, "cpu"))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_removed_weights_are_exactly_zero_after_every_step_and_kept_ones_move(optimizer, monkeypatch):
    model = network()
    kept = masks(model)
    before = {name: model.get_submodule(name).weight.detach().clone() for name in kept}
    seen = []

    def check(self, iteration, network):
        seen.append(iteration)
        for name, mask in kept.items():
            assert not network.get_submodule(name).weight[~mask].any()

    monkeypatch.setattr(training.ErrorCurve, "measure", check)
    with lobs.keep_masks(model, kept):
        train(model, replace(RECIPE, optimizer=optimizer), 1)
    assert seen == list(range(26))
    for name, mask in kept.items():
        assert (model.get_submodule(name).weight[mask] != before[name][mask]).all()


def test_kept_weights_train_as_those_of_the_smaller_network():
    model = network()
    kept = masks(model)
    with lobs.keep_masks(model, kept):
        train(model, RECIPE, 10)
    smaller = network()
    with torch.no_grad():
        for name, mask in kept.items():
            smaller.get_submodule(name).weight.mul_(mask)
    for name, mask in kept.items():
        smaller.get_submodule(name).weight.register_hook(lambda gradient, mask=mask: gradient * mask)
    train(smaller, RECIPE, 10)
    for name, mask in kept.items():
        weight = smaller.get_submodule(name).weight
        torch.testing.assert_close(model.get_submodule(name).weight[mask], weight[mask])


def test_rounds_prune_on_from_the_retrained_network_and_count_all_iterations():
    model, first = halve(network(), 0.5)
    options = {"seed": 0, "device": "cpu", "measure_every": 10}
    result = retrain(model, first, Training(data(), data(30, seed=1), RECIPE, **options), further=[0.25], prune=halve)
    assert [entry["round"] for entry in result.rounds] == [1, 2]
    assert result.rounds[1]["density"] == pytest.approx(0.25, abs=0.02)
    assert [point["iteration"] for point in result.curve] == [0, 10, 20, 25, 25, 35, 45, 50]
    assert result.masks_exact
    result.network[1].weight.data[~result.masks["1"]] = 1e-30
    assert not result.masks_exact


def test_a_round_that_brings_a_weight_back_is_refused():
    model, first = halve(network(), 0.5)
    other = {name: ~mask for name, mask in first.items()}
    with pytest.raises(ValueError, match=r"round 2 counts .* weights of layer '1' as kept that an earlier round"):
        retrain(
            model,
            first,
            Training(data(), data(30), RECIPE, seed=0, measure_every=10, device="cpu"),
            further=[0.25],
            prune=lambda model, density: (model, other),
        )


def test_iterations_to_the_original_error_are_those_of_the_last_round():
    curve = [
        {"round": number, "iteration": iteration, "train_loss": None, "test_error_percent": error}
        for number, iteration, error in [(1, 0, 9.0), (1, 10, 1.0), (2, 10, 5.0), (2, 20, 2.0), (2, 30, 1.5)]
    ]
    result = Retrained(network(), {}, curve, [{"round": 1}, {"round": 2}])
    assert result.iterations_to(2.0) == 20
    assert result.iterations_to(1.7) == 30
    assert result.iterations_to(1.2) is None
