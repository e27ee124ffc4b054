"""Attention of fewer heads: the same numbers as torch's, and heads leave where nothing of them is left."""

import copy

import pytest
import torch
from torch import nn

import lobs
from lobs.compaction.attention import CompactAttention

HEADS, WIDTH = 4, 12


def attention(**options):
    module = nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options}).eval()
    for entry in module.parameters():
        nn.init.normal_(entry, std=0.5)
    return module


@pytest.mark.parametrize("options", [{}, {"batch_first": False}, {"bias": False}, {"kdim": 5, "vdim": 7}], ids=str)
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("masks", ["none", "padding", "boolean", "floating", "per head"])
def test_its_parts_compute_what_the_whole_computes(options, need_weights, average, masks):
    module = attention(**options)
    query = torch.randn(2, 3, WIDTH)
    key, value = torch.randn(2, 5, options.get("kdim", WIDTH)), torch.randn(2, 5, options.get("vdim", WIDTH))
    given = {
        "none": {},
        "padding": {"key_padding_mask": torch.arange(5).expand(2, 5) > torch.tensor([[2], [3]])},
        "boolean": {"attn_mask": torch.arange(5) > torch.arange(3)[:, None]},
        "floating": {"attn_mask": torch.randn(3, 5)},
        "per head": {"attn_mask": torch.randn(2 * HEADS, 3, 5)},
    }[masks]
    if not module.batch_first:
        query, key, value = (entry.transpose(0, 1) for entry in (query, key, value))
    given |= {"need_weights": need_weights, "average_attn_weights": average}
    expected, found = module(query, key, value, **given), CompactAttention(module)(query, key, value, **given)
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] is None) == (expected[1] is None)
    if need_weights:
        torch.testing.assert_close(found[1], expected[1])


def test_without_a_batch_and_with_a_causal_mask():
    module, tokens = attention(), torch.randn(3, WIDTH)
    torch.testing.assert_close(CompactAttention(module)(tokens, tokens, tokens), module(tokens, tokens, tokens))
    with pytest.raises(ValueError, match="is_causal=True says what attn_mask is"):
        CompactAttention(module)(tokens, tokens, tokens, is_causal=True)


class Attends(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention, self.head = attention(**options), nn.Linear(WIDTH, 3)

    def forward(self, x, mask=None):
        x, _ = self.attention(x, x, x, attn_mask=mask, need_weights=False)
        return self.head(x)


def drop_heads(module, values=(), columns=()):
    """Empty some heads' value rows and out_proj's columns of others."""
    width = module.head_dim
    with torch.no_grad():
        for head in values:
            start = 2 * module.embed_dim + head * width
            module.in_proj_weight[start : start + width] = 0
        for head in columns:
            module.out_proj.weight[:, head * width : (head + 1) * width] = 0


def test_heads_that_see_nothing_or_are_not_read_leave_and_constants_go_into_the_bias():
    model, tokens = Attends(), torch.randn(2, 5, WIDTH)
    drop_heads(model.attention, values=[1], columns=[2])
    result = lobs.compact(model, tokens)
    assert isinstance(result.model.attention, CompactAttention)
    assert result.model.attention.kept_heads.tolist() == [0, 3]
    assert result.model.attention.num_heads == 2
    for part in ("q_proj", "k_proj", "v_proj"):
        assert result.layers[f"attention.{part}"].removed_units == tuple(range(3, 9))
    assert result.layers["attention.out_proj"].removed_inputs == tuple(range(3, 9))
    assert result.parameters - result.parameters_left == 6 * (3 * (WIDTH + 1) + WIDTH)
    for mask in (None, torch.randn(5, 5), torch.randn(3 * HEADS, 5, 5)):
        others = torch.randn(3, 5, WIDTH)
        torch.testing.assert_close(result.model(others, mask), model(others, mask))
    assert lobs.compact(result.model, tokens).parameters_left == result.parameters_left


def test_single_channels_of_a_head_stay_and_are_named():
    model = Attends()
    with torch.no_grad():
        model.attention.in_proj_weight[2 * WIDTH + 4] = 0
    result = lobs.compact(model, torch.randn(2, 5, WIDTH))
    assert type(result.model.attention) is nn.MultiheadAttention
    assert result.parameters_left == result.parameters
    ((reason, units),) = result.staying["attention.v_proj"].items()
    assert "a head" in reason
    assert units == (4,)


def test_outputs_that_are_not_read_leave_attention_whose_heads_all_stay():
    model = Attends()
    model.head.weight.data[:, [0, 7]] = 0
    result = lobs.compact(model, torch.randn(2, 5, WIDTH))
    assert result.layers["attention.out_proj"].removed_units == (0, 7)
    assert result.model.head.in_features == 10


def test_heads_stay_where_the_weights_are_used_or_two_calls_share_them():
    class Weights(Attends):
        def forward(self, x):
            x, weights = self.attention(x, x, x)
            return self.head(x), weights

    class Twice(Attends):
        def forward(self, x):
            x = self.attention(x, x, x)[0]
            return self.head(self.attention(x, x, x)[0])

    for model in (Weights(), Twice(), Attends(add_zero_attn=True)):
        drop_heads(model.attention, values=[1])
        result = lobs.compact(model, torch.randn(2, 5, WIDTH))
        assert result.parameters_left == result.parameters
        assert type(result.model.attention) is nn.MultiheadAttention


def test_channels_that_make_a_mask_stay():
    class Masked(Attends):
        def __init__(self):
            super().__init__()
            self.mask = nn.Linear(WIDTH, 5)

        def forward(self, x):
            return super().forward(x, self.mask(x).mean(0))

    model = Masked()
    model.mask.weight.data[2] = 0.0
    drop_heads(model.attention, values=[1])
    result = lobs.compact(model, torch.randn(2, 5, WIDTH))
    assert result.removed["mask"] == 0
    assert result.model.attention.num_heads == 3


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["gelu", nn.SiLU()], ids=str)
def test_torchs_transformer_layers_lose_heads_and_hidden_units(norm_first, activation):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 20, activation=activation, batch_first=True, norm_first=norm_first)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, 3)).eval()
    for entry in model.parameters():
        nn.init.normal_(entry, std=0.3)
    for place, block in enumerate(model[0].layers):
        drop_heads(block.self_attn, values=[place])
        block.linear1.weight.data[:4] = 0
        block.linear2.weight.data[:, 6:9] = 0
        block.linear2.weight.data[5] = 0
    model.double()
    result = lobs.compact(model, torch.randn(2, 5, WIDTH).double())
    assert result.difference < 1e-10
    for place, block in enumerate(result.model[0].layers):
        assert block.self_attn.num_heads == 3
        assert block.linear1.out_features == block.linear2.in_features == 13
        ((reason, units),) = result.staying[f"0.layers.{place}.linear2"].items()
        assert "LayerNorm" in reason
        assert units == (5,)
    inputs = torch.randn(4, 7, WIDTH).double()
    torch.testing.assert_close(result.model(inputs), model(inputs))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_heads_stay_in_a_stack_that_makes_nested_tensors():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 20, batch_first=True)
            self.stack, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(WIDTH, 3)

        def forward(self, x, padding):
            return self.head(self.stack(x, src_key_padding_mask=padding))

    model = Masked().eval()
    drop_heads(model.stack.layers[0].self_attn, values=[1])
    model.stack.layers[0].self_attn.out_proj.weight.data[3] = 0
    model.stack.layers[1].linear1.weight.data[:4] = 0
    padding = torch.arange(5) > torch.tensor([[2], [4]])
    result = lobs.compact(model, (torch.randn(2, 5, WIDTH), padding))
    assert result.removed["stack.layers.1.linear1"] == 4
    assert type(result.model.stack.layers[0].self_attn) is nn.MultiheadAttention
    ((reason, units),) = result.staying["stack.layers.0.self_attn.out_proj"].items()
    assert "enable_nested_tensor=True" in reason
    assert units == (3,)


def test_modes_stay():
    model = Attends(dropout=0.5)
    drop_heads(model.attention, values=[1])
    model.train()
    kept = copy.deepcopy(model.attention.state_dict())
    result = lobs.compact(model, torch.randn(2, 5, WIDTH))
    assert result.model.attention.training
    assert result.model.attention.q_proj.training
    assert all(torch.equal(entry, kept[key]) for key, entry in model.attention.state_dict().items())
