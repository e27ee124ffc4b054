"""DNS: thresholds and updates by their definition, weights that come back, dense gradients, masks exact at the end."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from helpers.classifier import data, network
from lobs_paper.training.dns import NetworkSurgery, surgery
from lobs_paper.training.dns_masks import SurgerySettings, first_masks
from lobs_paper.training.evaluation import error_percent
from lobs_paper.training.fit import Recipe, Training, fit
from lobs_paper.training.lwc import layer_weights

RECIPE = Recipe("sgd", 0.1, momentum=0.9, weight_decay=1e-3, schedule="constant", batch_size=16, iterations=30)
SETTINGS = SurgerySettings(density=0.25, stop=20)


def operated(model, chosen=SETTINGS, recipe=RECIPE, **options):
    options = {"seed": 0, "device": "cpu", "measure_every": 10, **options}
    return surgery(model, Training(data(), data(30, seed=1), recipe, **options), chosen)


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
