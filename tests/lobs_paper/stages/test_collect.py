"""What stage collect notes of each layer; the stage itself runs in test_stages.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import lobs
from lobs_paper.stages.collect import _digest


def test_a_layers_digest_counts_dead_inputs_over_all_groups():
    samples = [torch.randn(20, 4, dtype=torch.float64) for _ in range(2)]
    samples[0][:, 1] = samples[1][:, :2] = 0
    one, other = (lobs.LayerStatistics.from_samples(part) for part in samples)
    digest = _digest("fc", one)
    assert (digest["name"], digest["samples"], digest["features"], digest["dead_inputs"]) == ("fc", 20, 4, 1)
    assert digest["mean_diagonal"] == pytest.approx(float(samples[0].square().mean()))
    assert digest["zero_fraction"] is None
    moments = torch.stack([one.second_moment, other.second_moment])
    grouped = _digest("conv", replace(one, second_moment=moments, zero_fraction=torch.tensor([0.5, 0.25])))
    assert (grouped["features"], grouped["dead_inputs"], grouped["zero_fraction"]) == (4, 3, 0.375)
