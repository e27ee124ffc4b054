"""Layers are what their weights say, by dtype and shape; what is not is refused in one sentence."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.networks import X, mlp, tied
from lobs.layers.checks import check_layers, check_owners, check_plain, check_product, independent_copy, read_back
from lobs.layers.linear import CHECKED_ROWS

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
