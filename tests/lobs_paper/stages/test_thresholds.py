"""Densities that one threshold per layer gives, against counting."""

from __future__ import annotations

import pytest
import torch

from helpers.classifier import network
from lobs_paper.stages.thresholds import threshold_densities


def weights():
    return {name: network().get_submodule(name).weight.detach() for name in ("1", "3")}


def test_a_quality_parameter_times_the_deviation_decides():
    found = threshold_densities(network(), {"allocation": "lwc", "threshold_scale": {"1": 0.5, "3": 1.0}}, 0.4)
    sizes = {name: weight.numel() for name, weight in weights().items()}
    kept = {name: round(found[name] * sizes[name]) for name in sizes}
    assert sum(kept.values()) == int(0.4 * sum(sizes.values()))
    # Some common factor q explains both counts: |w| > q * relative * std.
    ratios = {
        name: (weight.abs() / (weight.std(correction=0) * relative)).flatten().sort(descending=True).values
        for (name, weight), relative in zip(weights().items(), (0.5, 1.0), strict=True)
    }
    lowest_kept = min(float(ratios[name][kept[name] - 1]) for name in kept if kept[name])
    highest_cut = max(float(ratios[name][kept[name]]) for name in kept if kept[name] < sizes[name])
    assert highest_cut <= lowest_kept


def test_surgery_decides_by_mean_and_deviation():
    found = threshold_densities(network(), {"allocation": "dns", "threshold_scale": 1.0}, 0.3)
    sizes = {name: weight.numel() for name, weight in weights().items()}
    assert sum(round(found[name] * sizes[name]) for name in sizes) == int(0.3 * sum(sizes.values()))
    scores = {}
    for name, weight in weights().items():
        magnitude = weight.abs()
        scores[name] = ((magnitude / 0.9 - magnitude.mean()) / magnitude.std(correction=0)).flatten()
    least = torch.cat(list(scores.values())).sort(descending=True).values[int(0.3 * sum(sizes.values())) - 1]
    assert found == {name: int((score >= least).sum()) / sizes[name] for name, score in scores.items()}


@pytest.mark.parametrize("allocation", ["uniform", "relative", "measured_joint"])
def test_other_methods_share_out_by_their_paths(allocation):
    assert threshold_densities(network(), {"allocation": allocation, "threshold_scale": 1.0}, 0.3) is None
