"""DNS: thresholds and updates by their definition, weights that come back, dense gradients, masks exact at the end."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.classifier import data, network
from lobs_paper.training.dns import NetworkSurgery, surgery
from lobs_paper.training.dns_masks import (
    Scale,
    SurgerySettings,
    first_masks,
    operate,
    rates_for_density,
    updated_masks,
)
from lobs_paper.training.evaluation import error_percent
from lobs_paper.training.fit import Recipe, Training, fit
from lobs_paper.training.lwc import layer_weights

RECIPE = Recipe("sgd", 0.1, momentum=0.9, weight_decay=1e-3, schedule="constant", batch_size=16, iterations=30)
SETTINGS = SurgerySettings(density=0.25, stop=20)


def operated(model, chosen=SETTINGS, recipe=RECIPE, **options):
    options = {"seed": 0, "device": "cpu", "measure_every": 10, **options}
    return surgery(model, Training(data(), data(30, seed=1), recipe, **options), chosen)


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv1": torch.randn(4, 1, 3, 3, generator=generator),
        "fc1": 0.1 * torch.randn(20, 16, generator=generator),
    }


def some_masks(given_weights, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(weight.shape, generator=generator) < 0.5 for name, weight in given_weights.items()}


class Watch(pl.Callback):
    """Notes what a surgery holds after every minibatch."""

    def __init__(self, operation):
        self.operation = operation
        self.masks, self.dense, self.held = [], [], []

    def on_train_batch_end(self, trainer, module, *_):
        self.masks.append({name: mask.clone() for name, mask in self.operation.masks.items()})
        self.dense.append({name: weight.clone() for name, weight in self.operation._dense.items()})
        self.held.append({name: weight.clone() for name, weight in layer_weights(module.network).items()})


def watched(model, chosen=SETTINGS, recipe=RECIPE, seed=0):
    operation = NetworkSurgery(chosen, seed)
    watch = Watch(operation)
    fit(model, Training(data(), data(30), recipe, seed, 1000, "cpu"), callbacks=[operation, watch])
    return operation, watch


def test_the_thresholds_are_the_papers():
    weight = torch.tensor([[1.0, -1.0, 3.0, -3.0, 0.0]])
    scale = Scale.of(weight)
    assert (scale.mean, scale.deviation) == (2.0, 1.0)  # of |w|, weights at zero left out
    assert scale.thresholds(0.5) == (pytest.approx(0.9 * 2.5), pytest.approx(1.1 * 2.5))
    assert scale.thresholds(-3.0) == (0.0, 0.0)


def test_an_update_cuts_splices_and_leaves_the_rest():
    weight = torch.tensor([0.5, -0.5, 1.0, -1.0, 2.0, -2.0])
    mask = torch.tensor([True, False, True, False, True, False])
    updated = operate(weight, mask, 0.9, 1.1)
    assert updated.tolist() == [False, False, True, False, True, True]
    # A weight at a threshold counts as above it.
    edge = torch.tensor([0.75, 1.25], dtype=torch.float32)
    assert operate(edge, torch.tensor([True, False]), 0.75, 1.25).all()


def test_updates_become_rare_and_end():
    chosen = SurgerySettings(gamma=0.01, power=2.0, stop=50)
    assert chosen.probability(0) == 1.0
    assert chosen.probability(25) == pytest.approx(1.25**-2)
    assert chosen.probability(49) > 0 == chosen.probability(50)


@pytest.mark.parametrize("density", [0.0, 0.018, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("rate", [1.0, {"conv*": 0.4, "fc*": 1.0}])
def test_the_rates_for_a_density_give_it_exactly_whatever_the_masks(density, rate):
    given_weights = weights()
    masks = some_masks(given_weights)
    scales = {name: Scale.of(weight) for name, weight in given_weights.items()}
    rates = rates_for_density(given_weights, masks, scales, density, rate)
    kept = {
        name: operate(weight, masks[name], *scales[name].thresholds(rates[name]))
        for name, weight in given_weights.items()
    }
    total = sum(weight.numel() for weight in given_weights.values())
    assert sum(int(mask.sum()) for mask in kept.values()) == int(density * total + 1e-9)
    assert rates["conv1"] == pytest.approx(rates["fc1"] * (1.0 if rate == 1.0 else 0.4))


def test_without_a_density_the_rates_count_as_they_are():
    given_weights = weights()
    masks = some_masks(given_weights)
    scales = {name: Scale.of(weight) for name, weight in given_weights.items()}
    updated = updated_masks(given_weights, masks, scales, SurgerySettings(rate={"conv1": 0.0, "fc*": 1.0}, stop=1))
    for name, rate in {"conv1": 0.0, "fc1": 1.0}.items():
        magnitude = given_weights[name].abs()
        middle = magnitude.mean() + rate * magnitude.std(correction=0)
        expected = torch.where(
            magnitude < 0.9 * middle, False, torch.where(magnitude >= 1.1 * middle, True, masks[name])
        )
        assert torch.equal(updated[name], expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1))
def test_a_larger_rate_never_keeps_more(seed, density):
    given_weights = weights(seed)
    masks = some_masks(given_weights, seed)
    scales = {name: Scale.of(weight) for name, weight in given_weights.items()}
    rates = rates_for_density(given_weights, masks, scales, density)
    for name, weight in given_weights.items():
        fewer = operate(weight, masks[name], *scales[name].thresholds(rates[name] + 0.1))
        assert not (fewer & ~operate(weight, masks[name], *scales[name].thresholds(rates[name]))).any()


def test_the_first_masks_are_those_of_the_dense_weights():
    model = network()
    masks = first_masks(model, SETTINGS)
    _, watch = watched(model, recipe=replace(RECIPE, iterations=1))
    assert all(torch.equal(mask, watch.masks[0][name]) for name, mask in masks.items())
    assert sum(int(mask.sum()) for mask in masks.values()) == 30


def test_the_step_applies_the_masked_networks_gradient_to_all_weights():
    """W <- W - beta dL/d(W * T): the gradient is taken at the masked weights, also for weights that are cut."""
    recipe = replace(RECIPE, batch_size=90, iterations=1, momentum=0.0, weight_decay=0.0)
    model = network()
    masked, masks = copy.deepcopy(model), first_masks(model, SETTINGS)
    before = {name: weight.clone() for name, weight in layer_weights(model).items()}
    for name, weight in layer_weights(masked).items():
        weight.mul_(masks[name])
    inputs, labels = data()[slice(None)]
    nn.functional.cross_entropy(masked(inputs), labels).backward()
    _, watch = watched(model, recipe=recipe)
    for name, mask in masks.items():
        gradient = masked.get_submodule(name).weight.grad
        torch.testing.assert_close(watch.dense[0][name], before[name] - 0.1 * gradient)
        assert (watch.dense[0][name][~mask] != before[name][~mask]).any()
        torch.testing.assert_close(watch.held[0][name], watch.dense[0][name] * mask)


def test_cut_weights_come_back():
    operation, watch = watched(network(), replace(SETTINGS, gamma=0.0))
    back = 0
    for before, after, dense in zip(watch.masks, watch.masks[1:], watch.dense, strict=False):
        for name, mask in after.items():
            spliced = mask & ~before[name]
            back += int(spliced.sum())
            if spliced.any():  # they are above every weight that stays cut
                assert dense[name][spliced].abs().min() > dense[name][~mask & ~before[name]].abs().max()
    assert back == operation.spliced > 0


def test_masks_are_updated_up_to_the_stop_and_fixed_from_then_on():
    _, watch = watched(network(), replace(SETTINGS, gamma=0.0))
    changed = [
        any(not torch.equal(mask, before[name]) for name, mask in after.items())
        for before, after in zip(watch.masks, watch.masks[1:], strict=False)
    ]
    assert any(changed[:19]) and not any(changed[19:])


def test_rare_updates_leave_masks_alone_for_longer():
    often, rarely = (watched(network(), replace(SETTINGS, gamma=gamma))[1] for gamma in (0.0, 1e9))
    assert all(torch.equal(mask, rarely.masks[0][name]) for name, mask in rarely.masks[-1].items())
    assert any(not torch.equal(mask, often.masks[0][name]) for name, mask in often.masks[-1].items())


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_after_every_step_the_modules_hold_the_masked_weights(optimizer):
    _, watch = watched(network(), recipe=replace(RECIPE, optimizer=optimizer))
    for masks, dense, held in zip(watch.masks, watch.dense, watch.held, strict=True):
        for name, mask in masks.items():
            assert torch.equal(held[name], dense[name] * mask)


def test_a_trainer_that_accumulates_gradients_is_refused():
    trainer = pl.Trainer(accumulate_grad_batches=2, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(ValueError, match="accumulate_grad_batches=2 is not accepted"):
        NetworkSurgery(SETTINGS, 0).on_train_start(trainer, None)


def test_surgery_learns_at_its_density_and_the_curve_ends_with_the_final_weights():
    model = network()
    keys = list(model.state_dict())
    result = operated(model, recipe=replace(RECIPE, iterations=60))
    assert [point["iteration"] for point in result.curve] == [0, 10, 20, 30, 40, 50, 60]
    assert result.rounds[0]["density"] == 30 / 120
    assert result.masks_exact and list(result.network.state_dict()) == keys
    error = error_percent(result.network, data(30, seed=1))
    assert result.curve[-1]["test_error_percent"] == result.rounds[0]["error_after_retraining_percent"] == error
    assert error < 10 < result.rounds[0]["error_after_pruning_percent"]


def test_convolutions_are_operated_on_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    result = operated(model, replace(SETTINGS, rate={"0": 0.2, "3": 1.0}))
    assert result.masks["0"].shape == (4, 1, 2, 2)
    assert result.masks["0"].float().mean() > result.masks["3"].float().mean()
    assert result.masks_exact


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, second, other = operated(network()), operated(network()), operated(network(), seed=1)
    for name, weight in layer_weights(first.network).items():
        assert torch.equal(weight, layer_weights(second.network)[name])
        assert torch.equal(first.masks[name], second.masks[name])
    assert not torch.equal(first.network[1].weight, other.network[1].weight)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SurgerySettings(density=1.5, stop=20), r"density=1.5 is not accepted"),
        (lambda: SurgerySettings(gamma=-1.0, stop=20), r"gamma=-1.0 is not accepted"),
        (lambda: SurgerySettings(stop=0), r"stop=0 is not accepted: a number, 1 or more"),
        (lambda: operated(network(), SurgerySettings(density=0.5, stop=31)), r"stop=31 .* ends after 30 iterations"),
        (
            lambda: operated(network(), SurgerySettings(density=0.5, stop=20, rate={"fc*": 1.0})),
            r"rate: no layer fits 'fc\*'",
        ),
        (
            lambda: first_masks(network(), SurgerySettings(density=0.5, stop=20, rate=-1.0)),
            r"rate -1.0 of layer '1' is not accepted",
        ),
        (
            lambda: first_masks(nn.Sequential(nn.Linear(1, 1)), SETTINGS),
            r"layer '0': all weights have the magnitude .* no rate selects",
        ),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
