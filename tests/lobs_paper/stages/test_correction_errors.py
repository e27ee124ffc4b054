"""The test error after every correction, against pruning with that correction alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lobs
from helpers.classifier import data
from lobs_paper.stages.correction_errors import corrections
from lobs_paper.training.evaluation import errors


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    model.train()
    with torch.no_grad():
        for inputs, _ in data(90).batches(30):
            model(inputs)
    return model.eval()


@pytest.mark.parametrize("made", ["bias", "batch_norm", "both", "auto"])
def test_every_correction_has_the_error_of_a_network_that_was_pruned_with_it(made):
    dense, measured, batches = network(), data(60, seed=1), list(data(90).batches(30))
    options = {"batches": batches, "method": "magnitude", "density": 0.2}
    result = lobs.prune(dense, correct=made, **options)
    before = {name: value.clone() for name, value in result.model.state_dict().items()}
    expected = {
        how: errors(lobs.prune(dense, correct=how, **options).model, measured).top1
        for how in ("none", "bias", "batch_norm", "both")
    }
    assert len(set(expected.values())) > 1, "the example shows nothing"
    assert corrections(dense, result, batches, measured) == expected
    assert all(torch.equal(value, before[name]) for name, value in result.model.state_dict().items())


def test_without_batch_norms_there_are_biases_alone():
    torch.manual_seed(0)
    dense, batches = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), list(data(90).batches(30))
    result = lobs.prune(dense, batches=batches, method="magnitude", density=0.2, correct="bias")
    assert list(corrections(dense, result, batches, data(30, seed=1))) == ["none", "bias"]
