"""Layers are what their weights say, by dtype and shape; what is not is refused in one sentence."""

import copy
import threading

import pytest
import torch
import torch.nn.utils.prune
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from helpers.networks import X, mlp, tied, tied_by_data
from lobs.layers.checks import (
    CHECKED_SAMPLES,
    check_changeable,
    check_filled,
    check_layers,
    check_owners,
    check_plain,
    check_product,
    independent_copy,
    lost_any,
    read_back,
)
from lobs.layers.linear import CHECKED_ROWS
from lobs.layers.matrix import VIEWS

KINDS = {
    "rows": (lambda: nn.Linear(6, 4), (9, 6)),
    "one row": (lambda: nn.Linear(6, 4, bias=False), (6,)),
    "sequences": (lambda: nn.Linear(6, 4), (2, 3, 6)),
    "many rows": (lambda: nn.Linear(6, 4), (CHECKED_ROWS + 9, 6)),
    "images": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), (3, 4, 5, 7)),
    "one image": (lambda: nn.Conv2d(4, 6, 3, bias=False), (4, 5, 7)),
    "groups": (lambda: nn.Conv2d(4, 6, (1, 2), groups=2, dilation=2, padding_mode="circular", padding=1), (2, 4, 5, 7)),
}


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_layers_pass_in_every_precision_and_small_deviations_do_not(kind, dtype, scale, seed):
    torch.manual_seed(seed)
    make, shape = KINDS[kind]
    module, inputs = make().to(dtype), (scale * torch.randn(shape)).to(dtype)
    output = module(inputs)
    check_product("layer", module, inputs, output)
    if dtype.itemsize >= 4:
        with pytest.raises(ValueError, match=r"does not give its weight times its inputs .*relative difference 0\.009"):
            check_product("layer", module, inputs, output * 1.01)


def test_products_that_cancel_may_leave_rounding():
    torch.manual_seed(0)
    module, inputs = nn.Linear(200, 3, bias=False), torch.randn(5, 100)
    with torch.no_grad():
        module.weight[:, 100:] = -module.weight[:, :100]
    inputs = torch.cat([inputs, inputs], 1)
    output = module(inputs)
    assert 0 < output.abs().max() < 1e-4
    check_product("layer", module, inputs, output)
    with pytest.raises(ValueError, match=r"relative difference 1\)"):
        check_product("layer", module, inputs, output + 1e-2)


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (None, torch.zeros(2, 4), "called with or gives no tensor"),
        (torch.zeros(2, 6), (torch.zeros(2, 4),), "an output of tuple, one tensor in and one out"),
        (torch.zeros(2, 6, dtype=torch.int64), torch.zeros(2, 4), "multiplies torch.int64 by torch.float32"),
        (torch.zeros(2, 5), torch.zeros(2, 4), r"is given \(2, 5\), which its class does not take"),
        (torch.zeros(2, 6), torch.zeros(3, 4), "has 2 samples and 3 output positions"),
        (torch.ones(2, 6), torch.full((2, 4), float("nan")), "does not give its weight times its inputs"),
        (torch.ones(0, 6), torch.full((2, 4), float("nan")), None),
        (torch.full((2, 6), float("inf")), torch.zeros(2, 4), None),
    ],
)
def test_what_is_no_product_is_refused_by_the_layers_name(inputs, output, message):
    module = nn.Linear(6, 4)
    if message is None:
        check_product("fc", module, inputs, output)
        return
    with pytest.raises(ValueError, match=rf"layer 'fc' \(Linear\) .*{message}.* exclude=\['fc'\]"):
        check_product("fc", module, inputs, output)


def test_a_weight_that_is_a_plain_tensor_has_to_become_a_parameter():
    module = nn.Linear(3, 2)
    del module._parameters["bias"]
    module.bias = torch.zeros(2)
    with pytest.raises(ValueError, match=r"layer 'a': its bias is .* \(module.bias = torch.nn.Parameter\(module.bias"):
        check_plain({"a": module})


def test_owners_that_compute_otherwise_are_named():
    model = nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.Conv2d(8, 4, 1, groups=2, bias=False), nn.Linear(4, 3))
    check_owners(model, ["0", "1", "2"])
    model[1].weight = model[0].weight
    message = r"layer '0' shares its weight with 'weight' of '1' \(Conv2d\), which computes with it in another way"
    with pytest.raises(ValueError, match=message):
        check_owners(model, ["0", "2"])
    check_owners(model, ["2"])
    check_owners(tied(), ["a"])


def test_calls_are_counted_in_their_order_and_modes_come_back():
    model = nn.Sequential(tied(bias=True), nn.Dropout(), *mlp()).train()
    model[3].eval()
    flags = {module: module.training for module in model.modules()}
    assert check_layers(model, X) == {"0.a": 2, "2": 1, "4": 1, "6": 1}
    assert check_layers(model, X, ["6", "0.*"]) == {"0.a": 2, "6": 1}
    assert check_layers(model, X[:0]) == {}
    assert {module: module.training for module in model.modules()} == flags
    model[2].register_forward_hook(lambda module, args, output: -output)
    with pytest.raises(ValueError, match=r"layer '2' \(Linear\) does not give its weight"):
        check_layers(model, X)
    check_layers(model, X, ["0.a", "4"])
    assert {module: module.training for module in model.modules()} == flags


def test_masks_are_read_back():
    model = nn.Sequential(nn.Linear(3, 2), nn.Conv2d(1, 2, 2))
    masks = {"0": torch.tensor([[True, False, True], [False, False, True]]), "1": torch.ones(2, 1, 2, 2).bool()}
    with torch.no_grad():
        model[0].weight.fill_(1).mul_(masks["0"])
        model[1].weight.fill_(1)
    assert read_back(model, masks) == {}
    with torch.no_grad():
        model[0].weight[0, 2] = 0
        model[1].weight[0] = 0
    assert read_back(model, masks) == {"0": 1, "1": 4}
    with torch.no_grad():
        model[0].weight[1] = float("nan")
    with pytest.raises(ValueError, match="layer '0': 2 weights that pruning removed are not zero"):
        read_back(model, masks)


def test_a_copy_shares_no_tensor_and_keeps_ties():
    model = nn.Sequential(tied(), nn.BatchNorm1d(16))
    copied = independent_copy(model)
    assert copied[0].a.weight is copied[0].b.weight
    places = [{tensor.data_ptr() for tensor in each.state_dict().values()} for each in (model, copied)]
    assert places[0].isdisjoint(places[1])
    model.lock = threading.Lock()
    with pytest.raises(
        ValueError, match=r"Sequential cannot be copied \(.*lock.*\): give a network that .*in_place=True"
    ):
        independent_copy(model)


@pytest.mark.parametrize("features", [64, 256, 1024])
def test_wide_layers_in_half_precision_are_checked_too(features):
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        module, inputs = nn.Linear(features, 64).to(dtype), torch.randn(64, features).to(dtype)
        output = module(inputs)
        check_product("l", module, inputs, output)
        for wrong in (2 * output, torch.zeros_like(output), 1.3 * output):
            with pytest.raises(ValueError, match="does not give its weight times its inputs"):
                check_product("l", module, inputs, wrong)


class Placed(lobs.layers.View):
    """Of a weight ``[out, in]``, with a matrix and a way back that are given."""

    def __init__(self, there, back):
        self.there, self.back = there, back

    def matrix(self, module, values):
        return self.there(values)

    def shaped(self, module, matrix):
        return self.back(matrix)

    def samples(self, module, inputs, chunk_bytes):
        yield inputs[None]

    def unit_axis(self, outputs):
        return -1

    def part(self, inputs, outputs):
        return inputs, outputs


@pytest.mark.parametrize(
    ("there", "back", "right"),
    [
        (lambda values: values.flip(0), lambda matrix: matrix.flip(0), True),
        (lambda values: values.flip(0), lambda matrix: matrix, False),
        (lambda values: values, lambda matrix: matrix.flip(1), False),
        (lambda values: values.T, lambda matrix: matrix, False),
        (lambda values: values, lambda matrix: matrix.flatten(), False),
    ],
    ids=["undone", "matrix alone", "shaped alone", "another shape", "no shape"],
)
def test_a_view_that_does_not_put_weights_back_is_refused(there, back, right, monkeypatch):
    class Own(nn.Linear):
        pass

    monkeypatch.setitem(VIEWS, Own, Placed(there, back))
    if right:
        check_plain({"a": Own(3, 2)})
        return
    with pytest.raises(ValueError, match=r"layer 'a': Placed of Own does not undo its matrix\(\) in shaped\(\)"):
        check_plain({"a": Own(3, 2)})


@pytest.mark.parametrize("changed", ["matrix", "shaped"])
def test_a_view_with_one_way_of_its_own_and_the_usual_one_back_is_refused(changed, monkeypatch):
    class Own(nn.Linear):
        pass

    kind = type("Half", (Placed,), {"matrix": lobs.layers.View.matrix, "shaped": lobs.layers.View.shaped})
    monkeypatch.setitem(VIEWS, Own, kind(None, None))
    check_plain({"a": Own(3, 2)})
    setattr(kind, changed, lambda self, module, values: values.flip(0))
    with pytest.raises(ValueError, match=r"layer 'a': Half of Own does not undo its matrix\(\) in shaped\(\)"):
        check_plain({"a": Own(3, 2)})


class Adapter(nn.Linear):
    """Merges something into its weight in one of its modes, and forgets to take it out again if so told."""

    forgets = False

    def train(self, mode=True):
        if mode != self.training and not (mode and self.forgets):
            with torch.no_grad():
                self.weight += 1.0 if mode else -1.0
        return super().train(mode)


class Forgetful(Adapter):
    forgets = True


class Harmless(nn.Linear):
    def train(self, mode=True):
        return super().train(mode)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", [Adapter, Forgetful])
def test_a_layer_whose_weight_changes_with_its_mode_is_refused(kind, training):
    layer = kind(3, 2)
    nn.init.constant_(layer.weight, 3.0)  # what is added and taken off again leaves no rounding
    layer.training = training
    before = layer.weight.clone()
    if kind is Forgetful and not training:  # to train it changes nothing, and back it does
        assert torch.equal(copy.deepcopy(layer).train().weight, before)
    with pytest.raises(ValueError, match=rf"layer 'a': train\(\) or eval\(\) of {kind.__name__} changes its weight"):
        check_plain({"a": layer})
    assert torch.equal(layer.weight, before)
    assert layer.training == training
    check_plain({"a": Harmless(3, 2)})


def pruned_by_torch(layer):
    return torch.nn.utils.prune.random_unstructured(layer, "weight", amount=1)


@pytest.mark.parametrize(
    ("change", "call"),
    [
        (pruned_by_torch, r"call torch\.nn\.utils\.prune\.remove\(module, 'weight'\) first"),
        (torch.nn.utils.weight_norm, r"call torch\.nn\.utils\.remove_weight_norm\(module, 'weight'\) first"),
        (torch.nn.utils.spectral_norm, r"call torch\.nn\.utils\.remove_spectral_norm\(module, 'weight'\) first"),
        (
            torch.nn.utils.parametrizations.orthogonal,
            r"call torch\.nn\.utils\.parametrize\.remove_parametrizations\(module, 'weight'\) first",
        ),
    ],
    ids=["pruned", "weight norm", "spectral norm", "parametrized"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_makes_a_computed_weight_plain_again_is_said(change, call):
    with pytest.raises(ValueError, match=f"layer 'a': its weight is computed from other tensors.*{call}, or leave"):
        check_plain({"a": change(nn.Linear(3, 3))})


def test_weights_and_biases_of_other_numbers_are_refused():
    check_plain({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2, bias=False, dtype=torch.float16)})
    with pytest.raises(ValueError, match=r"layer 'b': its weight is torch.complex64, and real floating-point numbers"):
        check_plain({"a": nn.Linear(3, 2), "b": nn.Linear(3, 2, dtype=torch.complex64)})
    layer = nn.Linear(3, 2)
    layer.bias = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ValueError, match=r"layer 'c': its bias is torch.int64"):
        check_plain({"c": layer})


def test_layers_without_weights_or_with_weights_that_are_no_numbers_are_refused():
    check_filled({"a": nn.Linear(1, 1), "meta": nn.Linear(3, 2, device="meta")})
    for width in (0, 3):
        with pytest.raises(ValueError, match=rf"layer 'b' has a weight of shape \({3 - width}, {width}\), in which"):
            check_filled({"a": nn.Linear(1, 1), "b": nn.Linear(width, 3 - width)})
    for value in (float("nan"), float("inf")):
        layer = nn.Linear(3, 2)
        with torch.no_grad():
            layer.weight[1, 2] = value
        with pytest.raises(ValueError, match="layer 'c': its weight holds NaN or infinite values"):
            check_filled({"c": layer})


def test_networks_made_in_inference_mode_cannot_be_changed():
    check_changeable(mlp())
    with torch.inference_mode():
        last = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"model was made in torch.inference_mode"):
        check_changeable(nn.Sequential(nn.Linear(2, 2), last))


@pytest.mark.parametrize(("start", "shared"), [(0, False), (1, True), (6, True), (11, True), (12, False)])
def test_weights_that_overlap_in_memory_are_found_and_neighbours_are_not(start, shared):
    """A weight in the middle, of six numbers, and an embedding that ends before it, within it, or behind it."""
    flat = torch.randn(24)
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Embedding(2, 3))
    model[0].weight.data = flat[6:12].view(2, 3)
    model[1].weight.data = flat[start : start + 6].view(2, 3)
    if not shared:
        check_owners(model, ["0"])
        return
    with pytest.raises(ValueError, match=r"layer '0' shares its weight with 'weight' of '1' \(Embedding\)"):
        check_owners(model, ["0"])


def test_weights_whose_columns_take_turns_share_none():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Embedding(4, 3))
    columns = torch.randn(4, 6)
    model[0].weight.data, model[1].weight.data = columns[:, ::2], columns[:, 1::2]
    check_owners(model, ["0"])
    model[1].weight.data = columns[:, ::2]
    with pytest.raises(ValueError, match="layer '0' shares its weight with 'weight' of '1'"):
        check_owners(model, ["0"])


@pytest.mark.parametrize(("share", "passes"), [(7.5, True), (8.5, False)])
def test_eight_units_of_rounding_are_what_cancelling_products_may_leave(share, passes):
    """Rounding is relative to ||W|| ||y|| / sqrt(features): here 4 * 4 / 2 over one sample of four features."""
    module, inputs = nn.Linear(4, 4, bias=False), torch.full((1, 4), 2.0)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(4, 4))
    assert not module(inputs).any()
    wrong = torch.zeros(1, 4)
    wrong[0, 2] = share * torch.finfo(torch.float32).eps * 4 * 4 / 2
    if passes:
        check_product("fc", module, inputs, wrong)
        return
    with pytest.raises(ValueError, match="does not give its weight times its inputs"):
        check_product("fc", module, inputs, wrong)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-3), (torch.float32, 1e-3), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)],
)
def test_outputs_may_differ_by_so_much_of_their_size(dtype, tolerance):
    """W y = 1 for one sample of one feature: the coarsest of the dtypes decides, here the weight's."""
    module, inputs = nn.Linear(1, 1, bias=False).to(dtype), torch.ones(1, 1, dtype=torch.float64)
    with torch.no_grad():
        module.weight.fill_(1)
    rounding = 8 * torch.finfo(dtype).eps
    for share, passes in ((0.98, True), (1.02, False)):
        # |1 - z| = tolerance |z| + rounding at z = (1 + rounding) / (1 - tolerance)
        output = (torch.ones(1, 1) + share * ((1 + rounding) / (1 - tolerance) - 1)).double()
        if passes:
            check_product("fc", module, inputs, output)
        else:
            with pytest.raises(ValueError, match="does not give its weight times its inputs"):
                check_product("fc", module, inputs, output)


@pytest.mark.parametrize("place", [0, -1])
def test_of_many_positions_the_first_and_the_last_are_looked_at(place):
    torch.manual_seed(0)
    module, inputs = nn.Conv1d(2, 3, 3).double(), torch.randn(1, 2, CHECKED_SAMPLES + 900, dtype=torch.float64)
    output = module(inputs).detach()
    check_product("conv", module, inputs, output)
    output[0, 1, place] += 1e3
    with pytest.raises(ValueError, match="does not give its weight times its inputs"):
        check_product("conv", module, inputs, output)


def test_weights_are_lost_where_a_mask_removes_one_that_was_not_zero():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]]))
        model[1].weight.fill_(1)
    zeros = model[0].weight == 0
    assert not lost_any(model, {})
    assert not lost_any(model, {"0": ~zeros, "1": torch.ones(2, 2).bool()})
    assert lost_any(model, {"0": ~zeros, "1": torch.eye(2).bool()})
    assert lost_any(model, {"0": zeros, "1": torch.ones(2, 2).bool()})


def test_parameters_that_share_their_memory_alone_share_it_in_a_copy_too():
    model = nn.Sequential(tied_by_data(), nn.Linear(16, 16))
    copied = independent_copy(model)
    pairs = [(each[0].a.weight, each[0].b.weight) for each in (model, copied)]
    assert all(one is not other and one.data_ptr() == other.data_ptr() for one, other in pairs)
    assert copied[0].a.weight.data_ptr() != model[0].a.weight.data_ptr() != copied[1].weight.data_ptr()
    for one, other in zip(model.parameters(), copied.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_tensor_with_a_graph_is_named_where_a_network_cannot_be_copied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].plain = torch.ones(2)
    independent_copy(model)
    model[1].memory = model[1].weight.sum(0)
    message = r"Sequential cannot be copied: 'memory' of its module '1' is a tensor that autograd computed: detach it"
    with pytest.raises(ValueError, match=message):
        independent_copy(model)
