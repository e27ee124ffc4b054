"""What a pruned network takes: bytes, units and milliseconds."""

import torch

from lobs_paper.stages.size_and_latency import storage


def test_a_network_that_cannot_be_compacted_has_its_reason_in_the_metrics():
    class Branching(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    taken, smaller = storage(Branching(3, 3), torch.ones(2, 3))
    assert smaller is None
    assert "torch.fx cannot trace it" in taken["not_compacted"]
    assert taken["dense_bytes"] > 48
    assert taken["sparse_bytes"] > 48
    assert taken["compact_bytes"] is taken["removed_units"] is taken["compact_difference"] is None


def test_zeros_that_masks_have_made_negative_cost_nothing_in_a_sparse_file():
    model = torch.nn.Linear(100, 100)
    with torch.no_grad():
        model.weight.copy_(-model.weight.abs())
        model.weight[:, 1:] = 0.0
    positive = storage(model, torch.ones(2, 100))[0]["sparse_bytes"]
    with torch.no_grad():
        model.weight[:, 1:] = -0.0
    assert storage(model, torch.ones(2, 100))[0]["sparse_bytes"] == positive < 2000
