"""Layers for the solvers: weights, samples and statistics of all sorts."""

from dataclasses import replace

import torch
from hypothesis import strategies as st

import lobs


def make_layer(rows, features, count, bias=True, spread=0.0, dead=0, seed=0):
    """Weight, samples (bias's ones included) and statistics; inputs' scales run from 10^-spread to 10^spread."""
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(count, features, generator=generator, dtype=torch.float64)
    samples = samples @ torch.randn(features, features, generator=generator, dtype=torch.float64)
    scales = torch.logspace(-spread, spread, features, dtype=torch.float64)
    samples = samples * scales[torch.randperm(features, generator=generator)]
    samples[:, :dead] = 0
    weight = torch.randn(rows, features + bias, generator=generator, dtype=torch.float64)
    statistics = lobs.LayerStatistics.from_samples(samples, bias)
    ones = torch.ones(count, int(bias), dtype=torch.float64)
    return weight, torch.cat([samples, ones], dim=1), statistics


layers = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 4),
        "features": st.integers(1, 40),
        "count": st.integers(1, 60),
        "bias": st.booleans(),
        "spread": st.sampled_from([0.0, 1.0, 4.0, 8.0]),
        "dead": st.integers(0, 3),
        "seed": st.integers(0, 1000),
    }
)


def layer(seed=0, count=50, features=7, out=3, bias=True):
    torch.manual_seed(seed)
    samples = torch.randn(count, features, dtype=torch.float64) @ torch.randn(features, features, dtype=torch.float64)
    inputs = torch.cat([samples, torch.ones(count, 1, dtype=torch.float64)], 1) if bias else samples
    weight = torch.randn(out, features + bias, dtype=torch.float64)
    return weight, inputs, lobs.LayerStatistics.from_samples(samples, bias)


def random_layer(seed):
    """A layer of any sort: dead, equal and nearly equal inputs, weights that are zero, few samples, scales far apart.

    Returns:
        Weight, float64 inputs ``[groups, n, d]`` with the bias's ones, statistics with all that any method needs.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def chance(share):
        return bool(uniform() < share)

    def whole(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    features, rows, bias = whole(1, 8), whole(1, 4), chance(0.5)
    groups = whole(2, 3) if chance(0.2) else 1
    inputs = normal(groups, whole(1, 8) if chance(0.3) else whole(9, 60), features)
    inputs = inputs @ normal(features, features) if chance(0.7) else inputs
    inputs = inputs.relu() if chance(0.3) else inputs
    for target in range(1, features):
        if chance(0.15):  # equal but for a factor, or nearly
            inputs[..., target] = inputs[..., target - 1] * (1 if chance(0.5) else 3)
        if chance(0.15):
            inputs[..., target] = inputs[..., target - 1] + 10 ** (-10 * uniform()) * normal(*inputs.shape[:2])
    if chance(0.3):
        inputs = inputs.round(decimals=1)
    if chance(0.3):
        inputs *= 10 ** (uniform(features) * 16 - 8)
    if chance(0.2):
        inputs *= 10 ** (uniform() * 20 - 10)
    if chance(0.3):
        inputs *= uniform(groups, 1, features) > 0.3  # dead inputs, in each group others
    weight = normal(groups * rows, features + bias)
    weight = weight.round(decimals=1) if chance(0.3) else weight
    weight = weight * 10 ** (uniform() * 20 - 10) if chance(0.2) else weight
    if chance(0.3):
        weight = weight * 10 ** (uniform(features + bias) * 8 - 4)
    if chance(0.4):
        weight[:, :features] *= uniform(groups * rows, features) < uniform()
    if chance(0.3):
        weight, inputs = weight.float(), inputs.float().double()
    parts = [lobs.LayerStatistics.from_samples(part, bias) for part in inputs]
    moments = torch.stack([part.second_moment for part in parts])
    inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:2], int(bias))], dim=2)
    statistics = replace(
        parts[0],
        second_moment=moments if groups > 1 else moments[0],
        inputs_sample=inputs if groups > 1 else inputs[0],
        zero_fraction=uniform(groups * rows),
        loss_curvature=uniform(groups * rows, features + bias),
    )
    return weight, inputs, statistics
