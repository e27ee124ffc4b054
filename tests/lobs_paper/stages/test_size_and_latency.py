"""What a pruned network takes: bytes, units and milliseconds."""

import torch

from lobs_paper.stages.size_and_latency import latency, storage


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


def test_both_networks_are_timed_on_one_input_and_on_all(monkeypatch):
    monkeypatch.setattr("lobs_paper.stages.size_and_latency.SECONDS", 0.0)
    calls = []

    class Noted(torch.nn.Linear):
        def forward(self, x):
            calls.append((self.out_features, len(x), self.training))
            return super().forward(x)

    network, smaller = Noted(3, 8), Noted(3, 2)
    rows = latency(network, smaller, torch.ones(5, 3))
    assert [row["batch"] for row in rows] == [1, 5]
    assert all(row["before_ms"] > 0 and row["after_ms"] > 0 for row in rows)
    # Three to warm up and three to be measured, in turn, in evaluation mode.
    assert calls == [(units, batch, False) for batch in (1, 5) for _ in range(6) for units in (8, 2)]
    assert network.training
    assert [row["batch"] for row in latency(network, smaller, torch.ones(1, 3))] == [1]
