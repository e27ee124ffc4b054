"""Layers for the solvers: weights, samples and statistics of all sorts."""

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
