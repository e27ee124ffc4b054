"""The masks of dynamic network surgery: thresholds and updates by their definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lobs_paper.training.dns_masks import Scale, SurgerySettings, operate, rates_for_density, updated_masks


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv1": torch.randn(4, 1, 3, 3, generator=generator),
        "fc1": 0.1 * torch.randn(20, 16, generator=generator),
    }


def some_masks(given_weights, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(weight.shape, generator=generator) < 0.5 for name, weight in given_weights.items()}


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
