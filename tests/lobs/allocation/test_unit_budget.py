"""What a budget leaves of whole units, against what the layers themselves compute."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from helpers.chains import IMAGES, fed, grouped_chain
from lobs.allocation.unit_budget import unit_counts
from lobs.layers.consumers import consumers_of
from lobs.layers.network import prunable_layers


def perceptron(widths):
    torch.manual_seed(1)
    parts = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*parts[:-1]).eval()


def unit_paths(model, inputs):
    return lobs.layer_paths(model, lobs.collect_statistics(model, [inputs]), "apoz")


def feeds(model):
    """By layer but the first, for each unit before it which inputs it feeds, bool ``[units, groups, features]``."""
    modules = prunable_layers(model)
    return {
        name: torch.stack(
            [fed(modules[name], len(modules[before].weight), unit) for unit in range(len(modules[before].weight))]
        )
        for before, name in pairwise(modules)
    }


def left(fed_by, paths, units):
    """Weights that are left when each layer keeps so many units: kept rows' inputs that some kept unit feeds."""
    total, alive = 0, torch.empty(0)
    for name, path in paths.items():
        features, groups = path.statistics.features, path.statistics.groups
        inputs = fed_by[name][alive].any(0) if name in fed_by else torch.ones(groups, features, dtype=torch.bool)
        alive = path.kept((len(path.weight) - units[name]) * features).any(1)
        total += sum(int(inputs[row * groups // len(alive)].sum()) for row in alive.nonzero()[:, 0].tolist())
    return total


@settings(max_examples=8, deadline=None)
@given(widths=st.lists(st.integers(1, 9), min_size=3, max_size=4), density=st.floats(0.05, 1), equal=st.booleans())
def test_units_meet_a_density_with_the_same_share_of_every_layer(widths, density, equal):
    widths = [widths[0]] * len(widths) if equal else widths
    model = perceptron(widths)
    paths, fed_by = unit_paths(model, torch.randn(40, widths[0])), feeds(model)
    sizes = {name: len(path.weight) for name, path in paths.items()}
    last = list(sizes)[-1]

    def units_at(share):
        return {name: size if name == last else max(1, int(share * size + 1e-9)) for name, size in sizes.items()}

    def fits(units):
        return left(fed_by, paths, units) <= density * sum(path.removable for path in paths.values()) + 1e-9

    shares = sorted({k / size for size in sizes.values() for k in range(size + 1)}, reverse=True)
    best = next((units_at(share) for share in shares if fits(units_at(share))), None)
    if best is None:
        with pytest.raises(ValueError, match="which one unit in every layer takes"):
            unit_counts(paths, consumers_of(prunable_layers(model)), density)
        return
    counts = unit_counts(paths, consumers_of(prunable_layers(model)), density)
    units = {name: sizes[name] - count // paths[name].statistics.features for name, count in counts.items()}
    assert fits(units)
    assert units == best


@pytest.mark.parametrize("density", [0.9, 0.6, 0.4])
def test_channels_of_grouped_layers_are_counted_with_what_they_feed(density):
    model = grouped_chain()
    paths = unit_paths(model, IMAGES)
    counts = unit_counts(paths, consumers_of(prunable_layers(model)), density)
    units = {name: len(path.weight) - counts[name] // path.statistics.features for name, path in paths.items()}
    total = sum(path.removable for path in paths.values())
    assert left(feeds(model), paths, units) <= density * total
    result = lobs.prune(model, method="apoz", density=density, batches=[IMAGES])
    assert result.density == pytest.approx(left(feeds(model), paths, units) / total)


def test_the_least_density_is_that_of_one_unit_in_every_layer():
    model = grouped_chain()
    paths = unit_paths(model, IMAGES)
    least = left(feeds(model), paths, dict.fromkeys(paths, 1) | {"10": 3}) / sum(
        path.removable for path in paths.values()
    )
    links = consumers_of(prunable_layers(model))
    assert sum(unit_counts(paths, links, least + 1e-6).values()) > 0
    with pytest.raises(ValueError, match=f"density .* is below {least:.4g}, which one unit in every layer takes"):
        unit_counts(paths, links, least - 1e-6)


def test_a_density_of_all_weights_removes_nothing():
    model = perceptron([5, 8, 6, 3])
    paths, links = unit_paths(model, torch.randn(40, 5)), consumers_of(prunable_layers(model))
    assert unit_counts(paths, links, 1.0) == dict.fromkeys(paths, 0)
    # One weight less, and the wider layer of the two that can lose a unit does.
    total = sum(path.removable for path in paths.values())
    assert unit_counts(paths, links, 1 - 1 / total) == {"0": 5, "2": 8, "4": 0}


def test_equal_shares_of_units_are_counted_with_the_inputs_that_leave():
    model = perceptron([6, 10, 4])
    paths, links = unit_paths(model, torch.randn(40, 6)), consumers_of(prunable_layers(model))
    for units in range(1, 11):  # each has 6 weights in its own row and is read by 4
        assert unit_counts(paths, links, units * 10 / 100) == {"0": 6 * (10 - units), "2": 0}
        assert unit_counts(paths, links, (units * 10 + 9) / 100) == {"0": 6 * (10 - units), "2": 0}
    with pytest.raises(ValueError, match=r"density 0.09 is below 0.1, which one unit in every layer takes"):
        unit_counts(paths, links, 0.09)
