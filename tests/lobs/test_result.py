"""What pruning gives back, and how it reads when it is printed."""

import pytest
import torch
from torch import nn

import lobs
from helpers.networks import X, mlp
from lobs.layers.coverage import Unpruned
from lobs.result import LayerRecord, PruneResult


def test_the_account_names_what_was_left_alone():
    model = nn.Sequential(nn.Embedding(60, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 20)).eval()
    with pytest.warns(UserWarning, match=r"\d+\.\d% of the network's weights were not pruned: .* Embedding '0'"):
        result = lobs.prune(model, batches=[torch.randint(60, (8, 5))], method="magnitude", density=0.3)
    matrices = [p for p in result.model.parameters() if p.dim() > 1]
    assert result.weights == sum(p.numel() for p in matrices)
    assert result.network_density == pytest.approx(sum(int((p != 0).sum()) for p in matrices) / result.weights)
    assert {entry.name: entry.weights for entry in result.unpruned} == {"0": 60 * 16}
    table = str(result)
    assert "whole network" in table
    assert "not pruned, 45.5% of all weights" in table
    assert "tensor(" not in table
    chosen = lobs.prune(mlp(), batches=[X], method="magnitude", density=0.3, exclude=["4"])
    assert [(entry.name, entry.by_choice) for entry in chosen.unpruned] == [("4", True)]


def record(name, kept, removed, relative_error=0.5):
    size = kept + removed
    return LayerRecord(name, (size,), kept / size, kept, removed, 2.0, relative_error, None, 1.0, 0.1, 0.0)


def test_densities_are_shares_of_the_layers_and_of_the_network():
    unpruned = [Unpruned("e", "Embedding", 100, "class not covered")]
    layers = [record("a", 20, 80), record("b", 40, 60)]
    result = PruneResult(nn.ReLU(), {}, 0.3, layers, unpruned=unpruned, weights=300)
    assert result.network_density == (20 + 40 + 100) / 300
    assert result.unpruned_share == 1 / 3
    bare = PruneResult(nn.ReLU(), {}, 0.3, layers)
    assert (bare.network_density, bare.unpruned_share) == (0.3, 0.0)


def test_printed_it_is_a_table_with_everything_worth_saying():
    unpruned = [Unpruned("e", "Embedding", 100, "class not covered")]
    result = PruneResult(
        nn.ReLU(),
        {},
        0.3,
        [record("a", 20, 80), record("body.b", 400, 1000 - 400, 0.123456)],
        unpruned=unpruned,
        weights=1200,
        notes=["Something was approximated."],
        shared_by="fisher",
        distance="kl",
    )
    assert repr(result).splitlines() == [
        "ReLU, pruned",
        "layer          weights  density  relative error",
        "a                  100   0.2000             0.5",
        "body.b           1,000   0.4000           0.123",
        "pruned layers    1,100   0.3000",
        "whole network    1,200   0.4333",
        "not pruned, 8.3% of all weights: 100 in Embedding 'e' (class not covered)",
        "budget shared out by fisher, outputs compared by kl, as class logits",
        "Something was approximated.",
    ]
    bare = repr(PruneResult(nn.ReLU(), {}, 0.3, [record("a", 20, 80)], shared_by="relative"))
    assert "whole network" not in bare
    assert bare.endswith("budget shared out by relative")
