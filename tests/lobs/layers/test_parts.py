"""Attention and recurrent modules in parts, against torch's own forward passes."""

import copy
import sys
from types import MethodType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import lobs
from helpers.networks import net
from lobs.layers import window_attention
from lobs.layers.checks import independent_copy
from lobs.layers.evaluation import evaluation_mode
from lobs.layers.parts import parts_of


def close(found, expected):
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected)
    elif expected is None:
        assert found is None
    else:
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other)


def agrees(module, *args, **kwargs):
    """Whether the parts give what the module gives; how often each was called."""
    module.double().eval()
    expected = module(*args, **kwargs)
    calls = {}
    handles = [
        part.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
        for name, part in parts_of(module).items()
    ]
    with evaluation_mode(module):
        found = module(*args, **kwargs)
    for handle in handles:
        handle.remove()
    close(found, expected)
    assert "forward" not in vars(module)
    return calls


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"kdim": 5, "vdim": 3},
        {"dropout": 0.3},
    ],
)
def test_attention(batch_first, options):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options)
    kdim, vdim = options.get("kdim", 8), options.get("vdim", 8)
    query, key, value = rand(4, 4, 8), rand(4, 4, kdim), rand(4, 4, vdim)
    assert agrees(module, query, key, value) == {"q_proj": 1, "k_proj": 1, "v_proj": 1}
    masked = torch.zeros(4, 4, dtype=torch.bool)
    masked[:, 3] = True
    agrees(module, query, key, value, key_padding_mask=masked, need_weights=False)
    causal = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)
    agrees(module, query, key, value, attn_mask=causal, is_causal=True, average_attn_weights=False)
    agrees(module, query[:, 0], key[:, 0], value[:, 0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False, "batch_first": True},
        {"num_layers": 2, "bidirectional": True},
        {"proj_size": 3, "bidirectional": True},
        {"nonlinearity": "relu", "num_layers": 2},
    ],
)
def test_recurrent(kind, options):
    if ("proj_size" in options and kind is not nn.LSTM) or ("nonlinearity" in options and kind is not nn.RNN):
        options = {key: value for key, value in options.items() if key not in ("proj_size", "nonlinearity")}
    torch.manual_seed(0)
    module = kind(5, 4, **options).double()
    inputs = rand(6, 3, 5)
    calls = agrees(module, inputs)
    assert calls["ih_l0"] == 1
    assert calls["hh_l0"] == (3 if options.get("batch_first") else 6)
    layers = module.num_layers * (2 if module.bidirectional else 1)
    rows = 6 if options.get("batch_first") else 3
    first = rand(layers, rows, module.proj_size or 4)
    first = (first, rand(layers, rows, 4)) if kind is nn.LSTM else first
    agrees(module, inputs, first)
    agrees(module, inputs[:, 0])
    for lengths, ordered in (([6, 4, 1], True), ([2, 6, 3], False)):
        packed = pack_padded_sequence(rand(6, 3, 5), torch.tensor(lengths), enforce_sorted=ordered)
        expected, found = module(packed), None
        with evaluation_mode(module):
            found = module(packed)
        close(pad_packed_sequence(found[0]), pad_packed_sequence(expected[0]))
        close(found[1], expected[1])


def test_parts_are_views_of_the_module_whatever_happens_to_it():
    module = nn.MultiheadAttention(8, 2)
    parts = parts_of(module)
    assert parts_of(module)["k_proj"] is parts["k_proj"]
    with torch.no_grad():
        parts["k_proj"].weight.fill_(7)
        parts["v_proj"].bias.fill_(3)
    assert (module.in_proj_weight[8:16] == 7).all()
    assert (module.in_proj_bias[16:] == 3).all()
    module.double()
    assert parts_of(module)["k_proj"].weight.dtype == torch.float64
    module.in_proj_weight = nn.Parameter(torch.zeros(24, 8))
    assert (parts_of(module)["q_proj"].weight == 0).all()
    assert list(dict(module.named_modules())) == ["", "out_proj"]
    assert "q_proj.weight" not in module.state_dict()
    other = copy.deepcopy(module)
    with torch.no_grad():
        parts_of(other)["q_proj"].weight.fill_(1)
    assert (module.in_proj_weight == 0).all()


def test_a_copy_made_inside_has_its_own_forward():
    model = nn.Sequential(nn.MultiheadAttention(8, 2))
    with evaluation_mode(model):
        copied = independent_copy(model)
        assert "forward" in vars(model[0])
    assert "forward" not in vars(copied[0])
    assert "forward" not in vars(model[0])


def test_classes_of_their_own_and_weights_that_are_computed_have_no_parts():
    class Own(nn.MultiheadAttention):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    assert not parts_of(Own(8, 2))
    normed = torch.nn.utils.parametrizations.weight_norm(nn.MultiheadAttention(8, 2), "in_proj_weight")
    assert not parts_of(normed)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["attention", "lstm"])
def test_a_part_s_rows_lie_input_by_input_however_the_module_wants_them(kind, batch_first):
    attention = kind == "attention"
    module = (
        nn.MultiheadAttention(8, 2, batch_first=batch_first) if attention else nn.LSTM(8, 4, batch_first=batch_first)
    ).eval()
    inputs, seen = torch.randn(5, 3, 8), []
    name = "k_proj" if attention else "ih_l0"
    handle = parts_of(module)[name].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    given = inputs if batch_first else inputs.transpose(0, 1)
    with evaluation_mode(module):
        module(given, given, given) if attention else module(given)
    handle.remove()
    assert torch.equal(seen[0], inputs)


def test_a_frozen_network_s_parts_are_refitted_and_left_frozen():
    torch.manual_seed(0)
    model = ATTENTION["attention"]().eval().requires_grad_(False)
    batches = list(torch.randn(96, 5, 8).split(32))
    result = lobs.prune(model, batches=batches, method="magnitude", density=0.4, refit=30)
    before, _ = result.before_refit["attend.in_proj_weight"], result.refit
    assert not torch.equal(before, result.model.attend.in_proj_weight)
    for network in (model, result.model):
        assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
        assert not any(
            p.requires_grad or p.grad is not None
            for part in parts_of(network.attend).values()
            for p in part.parameters()
        )


class Seq(nn.Module):
    def __init__(self, memory):
        super().__init__()
        self.memory, self.head = memory, nn.Linear(memory.hidden_size * (1 + memory.bidirectional), 3)

    def forward(self, x):
        return self.head(self.memory(x)[0][:, -1])


ATTENTION = {
    "attention": lambda: net(
        lambda self, x: self.head(self.attend(x, x, x)[0].mean(1)),
        attend=nn.MultiheadAttention(8, 2, batch_first=True),
        head=nn.Linear(8, 3),
    ),
    "encoder": lambda: net(
        lambda self, x: self.head(self.encode(x).mean(1)),
        encode=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        ),
        head=nn.Linear(8, 3),
    ),
    "decoder": lambda: net(
        lambda self, x: self.head(self.decode(x[:, :2], x).mean(1)),
        decode=nn.TransformerDecoderLayer(8, 2, 16, batch_first=True),
        head=nn.Linear(8, 3),
    ),
    "lstm": lambda: Seq(nn.LSTM(8, 6, batch_first=True, bidirectional=True)),
    "gru": lambda: Seq(nn.GRU(8, 6, num_layers=2, batch_first=True)),
}


@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize("way", ["one shot", "sequential", "best", "corrected"])
def test_networks_of_them_are_pruned(kind, way):
    torch.manual_seed(0)
    model = ATTENTION[kind]().eval()
    inputs = torch.randn(96, 5, 8)
    options = {
        "one shot": {"method": "exact_obs"},
        "sequential": {"method": "exact_obs", "sequential": True},
        "best": {},
        "corrected": {"method": "magnitude", "correct": "bias"},
    }[way]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    result = lobs.prune(model, batches=list(inputs.split(32)), density=0.4, **options)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not result.unpruned
    matrices = {key: value for key, value in result.model.named_parameters() if value.dim() > 1}
    left = sum(int((value != 0).sum()) for value in matrices.values()) / sum(v.numel() for v in matrices.values())
    assert left == pytest.approx(result.density) == pytest.approx(0.4, abs=0.02)
    dense, found = model(inputs), result.model(inputs)
    assert (found - dense).square().mean() < (dense - dense.mean(0)).square().mean()


def test_a_weight_of_attention_that_is_used_elsewhere_is_refused():
    model = net(
        lambda self, x: self.attend(x, x, x)[0] @ self.attend.in_proj_weight.T,
        attend=nn.MultiheadAttention(8, 2, batch_first=True),
    )
    with pytest.raises(ValueError, match=r"layer 'attend\.q_proj': its weight or bias is used outside of it"):
        lobs.prune(model.eval(), batches=[torch.randn(60, 3, 8)], method="magnitude", density=0.5)


def test_a_file_s_size_is_not_shared_out_between_parts():
    model = ATTENTION["attention"]().eval()
    with pytest.raises(ValueError, match=r"layer 'attend\.q_proj' is a part of a module's weight"):
        lobs.prune(model, batches=[torch.randn(60, 5, 8)], method="magnitude", size=2000, allocation="relative")


@pytest.mark.parametrize(("version", "layers"), [("", ["qkv", "proj"]), ("V2", ["proj"])])
@pytest.mark.parametrize("sequential", [False, True])
def test_torchvisions_window_attention_calls_its_layers(version, layers, sequential):
    swin = pytest.importorskip("torchvision.models.swin_transformer")
    torch.manual_seed(0)
    module = getattr(swin, f"ShiftedWindowAttention{version}")(8, [4, 4], [2, 2], 2).eval()
    x, calls = torch.randn(5, 7, 8, 8), []  # padded and shifted
    for name, layer in module.named_children():
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    expected = module(x)
    calls.clear()
    with evaluation_mode(module):
        close(module(x), expected)
    assert [name for name in calls if name in ("qkv", "proj")] == layers
    result = lobs.prune(module, batches=[x], method="exact_obs", density=0.5, sequential=sequential)
    assert set(layers) <= set(result.masks)
    assert {entry.name: entry.reason.split(" (")[0] for entry in result.unpruned if entry.kind == "Linear"} == (
        {} if "qkv" in layers else {"qkv": "used by a function"}
    )


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recurrent_modules_go_on_from_given_states(kind, bidirectional):
    """Sequences of several lengths in any order, a single sequence, and one of a single step."""
    torch.manual_seed(0)
    module = kind(5, 4, num_layers=2, bidirectional=bidirectional).double()
    layers = 4 if bidirectional else 2

    def first(*rows):
        return (rand(layers, *rows, 4), rand(layers, *rows, 4)) if kind is nn.LSTM else rand(layers, *rows, 4)

    for lengths, ordered in (([6, 4, 1], True), ([2, 6, 3], False), ([5, 5, 5], True), ([1, 1, 1], True)):
        steps = rand(max(lengths), len(lengths), 5)
        packed = pack_padded_sequence(steps, torch.tensor(lengths), enforce_sorted=ordered)
        states = first(len(lengths))
        expected = module(packed, states)
        with evaluation_mode(module):
            found = module(packed, states)
        close(tuple(found[0])[:2], tuple(expected[0])[:2])
        close(found[1], expected[1])
    agrees(module, rand(6, 5), first())
    agrees(module, rand(1, 3, 5), first(3))
    agrees(module, rand(1, 3, 5))


@pytest.mark.parametrize("enabled", [True, False])
def test_a_transformer_layers_fast_path_does_not_go_past_its_parts(enabled):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    before, calls = torch.backends.mha.get_fastpath_enabled(), []
    handle = parts_of(model.self_attn)["q_proj"].register_forward_hook(lambda *_: calls.append("q_proj"))
    inputs = torch.randn(3, 5, 8)
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        with torch.no_grad():
            expected = model(inputs)
            assert not calls
            with evaluation_mode(model):
                found = model(inputs)
            assert torch.backends.mha.get_fastpath_enabled() is enabled
            with evaluation_mode(nn.Linear(2, 2)):
                assert torch.backends.mha.get_fastpath_enabled() is enabled, "nothing here needs it off"
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        handle.remove()
    assert calls == ["q_proj"]
    close(found, expected)


def test_a_forward_that_an_object_has_for_itself_stays():
    def forward(self, query, key, value):
        return query, None

    for own in (forward, lambda query, key, value: (query, None)):
        model = nn.Sequential(nn.MultiheadAttention(8, 2))
        model[0].forward = MethodType(own, model[0]) if own is forward else own
        with evaluation_mode(model):
            assert vars(model[0])["forward"] == model[0].forward
            copied = independent_copy(model)
            query = torch.randn(3, 2, 8)
            assert model[0](query, query, query)[0] is query
        assert "forward" in vars(model[0])
        assert "forward" in vars(copied[0])


class ByKeyword(nn.Module):
    """Hands its layers' weights to torch's function by name, and one with another bias than its own."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = functional.linear(input=x, weight=self.qkv.weight, bias=2 * self.qkv.bias)
        x = functional.linear(x, bias=None, weight=self.qkv.weight)
        return functional.linear(functional.relu(x), self.proj.weight, bias=self.proj.bias)


def test_products_with_a_layers_own_weight_and_bias_are_its_calls_however_they_are_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "swin_of_the_tests", SimpleNamespace(ByKeyword=ByKeyword))
    monkeypatch.setattr(window_attention, "CLASSES", {"swin_of_the_tests": ("ByKeyword", "Missing"), "none": ("A",)})
    assert window_attention.WindowAttention().kinds == (ByKeyword,)
    torch.manual_seed(0)
    model, inputs, calls = ByKeyword().eval(), torch.randn(3, 6), []
    expected = model(inputs)
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    with evaluation_mode(model):
        close(model(inputs), expected)
    assert calls == ["proj"]
    assert torch.equal(model(inputs), expected)
    assert calls == ["proj"]
