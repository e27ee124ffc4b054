"""The account of what is out of reach, and the watch for weights that are used outside of their layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.networks import X, embedding, experts, mlp, net, tied
from lobs.base.fingerprint import network_digest
from lobs.layers.coverage import Calls, Unpruned, functional_uses, shown, unpruned_weights, weight_count
from lobs.layers.evaluation import evaluation_mode


def mixed():
    """A tied embedding, attention, a recurrence, norms, an own parameter, and layers that are pruned or not."""
    model = net(None, embed=nn.Embedding(7, 6), attention=nn.MultiheadAttention(6, 2), memory=nn.GRU(6, 3))
    model.head, model.norm, model.conv = nn.Linear(6, 7), nn.LayerNorm(6), nn.Conv2d(2, 4, 3)
    model.fc, model.spare, model.own = nn.Linear(6, 5), nn.Linear(5, 5), nn.Parameter(torch.randn(3, 3))
    model.head.weight = model.embed.weight
    return model


def test_every_weight_is_pruned_or_accounted_for_once():
    model = mixed()
    calls = Calls(["conv", "fc"], {"attention.out_proj": "linear", "head": "mm"}, ["spare"])
    found = unpruned_weights(model, ["conv"], ["fc", "spare"], calls)
    assert weight_count(model) == sum(entry.weights for entry in found) + model.conv.weight.numel()
    assert found == [
        Unpruned("", "Net", 9, "class not covered"),
        Unpruned("embed", "Embedding", 42, "its rows are looked up, not multiplied with"),  # and not as the head's
        *(Unpruned(f"attention.{part}_proj", "Part", 36, "never called") for part in "qkv"),
        Unpruned("attention.out_proj", "NonDynamicallyQuantizableLinear", 36, calls.reason("attention.out_proj")),
        Unpruned("memory.ih_l0", "Part", 54, "never called"),
        Unpruned("memory.hh_l0", "Part", 27, "never called"),
        Unpruned("fc", "Linear", 30, "left out by layers= or exclude=", True),
        Unpruned("spare", "Linear", 25, "left out by layers= or exclude=", True),
    ]


def test_tied_layers_are_pruned_together():
    model = tied()
    assert unpruned_weights(model, ["a"], [], Calls(["a"])) == []
    left_out = unpruned_weights(model, [], ["a"], Calls())
    assert [(entry.name, entry.weights, entry.by_choice) for entry in left_out] == [("a", 256, True)]


def test_reasons_say_what_came_of_a_layer():
    calls = Calls(["a", "used"], {"used": "addmm"}, ["rare"])
    assert [calls.reason(name) for name in ("used", "rare", "a", "b")] == [
        "used by a function (addmm), not called as a layer",
        "given no samples by the calibration batches",
        "no statistics of it",
        "never called",
    ]


def test_the_largest_kinds_stand_first_and_the_rest_is_only_mentioned():
    entries = [Unpruned(f"fc{k}", "Linear", 1000, "never called") for k in range(3)]
    entries += [Unpruned("e", "Embedding", 50_000, "class not covered"), Unpruned("g", "GRU", 7, "class not covered")]
    large = "50,000 in Embedding 'e' (class not covered); 3,000 in Linear 'fc0', 'fc1' and others (never called)"
    assert shown(entries, most=2) == f"{large}; and others"
    assert shown(entries) == shown(entries, most=3) == f"{large}; 7 in GRU 'g' (class not covered)"
    assert shown([]) == ""


def views_of_one_storage():
    flat = torch.randn(16 * 4 + 4 * 4)
    model = net(
        lambda self, x: functional.linear(self.a(x), self.b.weight),
        a=nn.Linear(16, 4, bias=False),
        b=nn.Linear(4, 4, bias=False),
    )
    model.a.weight.data, model.b.weight.data = flat[:64].view(4, 16), flat[64:].view(4, 4)
    return model


def a(forward):
    return net(forward, a=nn.Linear(16, 16))


USES = {
    "calls alone": (mlp, {}),
    "tied layers that are called": (tied, {}),
    "an embedding's matrix": (embedding, {"head": "embedding"}),
    "experts": (lambda: experts(False), {}),
    "a transposed weight": (lambda: a(lambda self, x: self.a(x) @ self.a.weight.T), {"a": "mm"}),
    "a part of a weight": (lambda: a(lambda self, x: self.a(x) + self.a.weight[3]), {"a": "add"}),
    "a bias": (lambda: a(lambda self, x: self.a(x) * self.a.bias), {"a": "mul"}),
    "the first of several uses": (
        lambda: a(lambda self, x: self.a(x + self.a.weight.abs().sum()) @ self.a.weight),
        {"a": "abs"},
    ),
    "a shape or a view alone": (
        lambda: a(lambda self, x: self.a(x) + torch.zeros_like(self.a.weight[0]) + len(self.a.weight.T.detach())),
        {},
    ),
    "another layer of the same storage": (views_of_one_storage, {"b": "mm"}),
    "in attention": (
        lambda: net(lambda self, x: self.m(x, x, x)[0], m=nn.MultiheadAttention(16, 2)),
        {},
    ),
}


@pytest.mark.parametrize("case", USES)
def test_uses_outside_of_a_layers_calls_are_noticed(case):
    make, expected = USES[case]
    model = make()
    with evaluation_mode(model):
        assert functional_uses(model, X[:2]) == expected
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_call_that_fails_leaves_nothing_behind():
    def forward(self, x):
        try:
            self.a(x[:, :5])
        except RuntimeError:
            return x @ self.a.weight

    model = a(forward)
    assert functional_uses(model, X[:2]) == {"a": "mm"}, "the failed call is over"
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        functional_uses(mlp(), X[:2, :5])


def test_calls_know_whose_they_are():
    model = mlp()
    assert not Calls().of_another(model)
    own = Calls(network=network_digest(model))
    assert not own.of_another(model)
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    assert own.of_another(model)


class OwnAttention(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class OwnMemory(nn.GRU):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.EmbeddingBag(3, 2), "its rows are looked up, not multiplied with"),
        (nn.LSTMCell(3, 2), "a single cell, which is called step by step: LSTM, GRU and RNN are covered"),
        (nn.Bilinear(3, 2, 2), "a product of two inputs, not of one with a matrix"),
        (OwnAttention(4, 2), "its class has a forward of its own, or its weights are computed from others"),
        (OwnMemory(3, 2), "its class has a forward of its own, or its weights are computed from others"),
        (nn.PReLU(), None),
        (nn.LayerNorm((3, 2)), "class not covered"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_kinds_that_are_not_covered_say_why(module, reason):
    model = nn.ModuleDict({"own": module})
    found = [entry for entry in unpruned_weights(model, [], [], Calls()) if entry.name == "own"]
    own = sum(p.numel() for p in module.parameters(recurse=False) if p.dim() > 1)
    assert [(entry.reason, entry.weights) for entry in found] == ([] if reason is None else [(reason, own)])


def test_keys_and_values_of_attentions_own_are_accounted_for():
    model = nn.ModuleDict({"attend": nn.MultiheadAttention(6, 2, add_bias_kv=True)})
    parts = [f"attend.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    assert unpruned_weights(model, parts, [], Calls(parts)) == [
        Unpruned("attend", "MultiheadAttention", 12, "keys and values of its own are no matrix")
    ]


def test_sparse_tensors_on_the_way_are_no_use_of_a_weight():
    graph = torch.eye(2).to_sparse()
    model = a(lambda self, x: torch.sparse.mm(graph, self.a(x)) @ self.a.weight)
    assert functional_uses(model, X[:2]) == {"a": "mm"}
