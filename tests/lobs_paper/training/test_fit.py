"""Training: repeatable to the byte, and removed weights stay exactly zero whatever the optimizer does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from helpers.classifier import data, network
from lobs_paper.networks.build import build
from lobs_paper.networks.lenet5 import LeNet5
from lobs_paper.networks.lenet300 import LeNet300
from lobs_paper.training.evaluation import error_percent, output_error
from lobs_paper.training.fit import Recipe, Training, fit
from lobs_paper.training.retraining import Retrained, retrain

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


def test_the_error_counts_wrong_answers_and_leaves_the_mode_alone():
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3))
    split = data(10)
    model.train()
    with torch.no_grad():
        expected = sum(int(model.eval()(split[[i]][0]).argmax() != split.labels[i]) for i in range(10))
    model.train()
    assert error_percent(model, split) == 10 * expected
    assert model.training


def test_the_output_error_is_the_root_mean_squared_norm():
    dense, pruned, split = network(), network(1), data(50)
    inputs = split[slice(None)][0]
    with torch.no_grad():
        expected = ((dense(inputs) - pruned(inputs)).double().square().sum(1).mean()) ** 0.5
    assert output_error(dense, pruned, split) == pytest.approx(float(expected), rel=1e-6)
    assert output_error(dense, dense, split) == 0


def test_the_papers_networks_have_their_published_sizes():
    assert [tuple(module.weight.shape) for module in LeNet300() if isinstance(module, nn.Linear)] == [
        (300, 784),
        (100, 300),
        (10, 100),
    ]
    lenet5 = LeNet5()
    assert sum(parameter.numel() for parameter in lenet5.parameters()) == 431080
    assert lenet5(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"_target_": "torch.nn.Nonsense"}, "cannot be imported"),
        ({"_target_": "no_such_package.Net"}, "cannot be imported"),
        ({"_target_": "Net"}, "cannot be imported"),
        ({"_target_": "torch.nn.Linear", "inputs": 3}, "does not accept {'inputs': 3}"),
        ({"_target_": "torch.Tensor"}, "not a torch.nn.Module"),
    ],
)
def test_a_network_that_cannot_be_built_is_named(model, expected):
    with pytest.raises(ValueError, match=expected):
        build(model)


def test_any_module_can_be_an_experiments_network():
    assert build({"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 2}).weight.shape == (2, 3)
