"""Which layers a network has, which of them share weights, and whose a bias is."""

import pytest
import torch
from torch import nn

from helpers.networks import compiled, tied, tied_by_data
from lobs.layers.linear import LinearView
from lobs.layers.matrix import VIEWS
from lobs.layers.network import bias_columns, memory_place, named_modules, prunable_layers, tied_layers


def test_layers_are_chosen_by_name_and_pattern():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.Linear(4, 2))
    assert list(prunable_layers(model)) == ["0", "3", "4"]
    assert list(prunable_layers(model, ["[34]"])) == ["3", "4"]
    with pytest.raises(ValueError, match=r"no layer fits 'head'; the network has 0, 3, 4"):
        prunable_layers(model, ["head"])
    with pytest.raises(TypeError, match="'1' is a ReLU"):
        prunable_layers(model, ["1"])
    with pytest.raises(TypeError, match="list of names"):
        prunable_layers(model, "3")
    with pytest.raises(ValueError, match="has no layer to prune"):
        prunable_layers(nn.ReLU())


def test_modules_with_one_weight_are_one_layer_under_the_first_name():
    model = nn.Sequential(tied(), nn.Linear(16, 16), tied_by_data())
    assert {name: list(members) for name, members in tied_layers(model).items()} == {
        "0.a": ["0.a", "0.b"],
        "1": ["1"],
        "2.a": ["2.a", "2.b"],
    }
    assert list(prunable_layers(model)) == ["0.a", "1", "2.a"]
    assert list(prunable_layers(model, ["*.b"])) == ["0.a", "2.a"]
    assert memory_place(model[0].a.weight) == memory_place(model[0].b.weight) != memory_place(model[1].weight)


def test_the_same_values_in_other_groups_or_shapes_are_other_layers():
    model = nn.Sequential(nn.Conv2d(4, 8, 1, groups=2, bias=False), nn.Conv2d(2, 8, 1, bias=False), nn.Linear(2, 8))
    model[1].weight = model[0].weight
    model[2].weight.data = model[0].weight.data.view(8, 2)
    assert list(tied_layers(model)) == ["0", "1", "2"]


@pytest.mark.parametrize("how", ["in place", "from outside"])
def test_a_compiled_network_is_refused(how):
    message = "its module '2' is compiled" if how == "in place" else "the network is compiled"
    with pytest.raises(ValueError, match=message):
        prunable_layers(compiled(how))


def test_layers_without_values_are_refused():
    for layer in (nn.LazyLinear(3), nn.Linear(3, 2, device="meta")):
        with pytest.raises(ValueError, match="layer '0' has no values yet"):
            prunable_layers(nn.Sequential(layer))


def test_a_bias_belongs_to_its_matrix_where_it_is_nobody_elses():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3), nn.Linear(3, 3))
    assert bias_columns(model) == {"0": True, "1": False, "2": True, "3": True}
    model[3].bias = model[2].bias
    assert bias_columns(model) == {"0": True, "1": False, "2": False, "3": False}
    shared = tied(bias=True)
    assert bias_columns(shared) == {"a": False}, "one weight, two biases"
    shared.b.bias = shared.a.bias
    assert bias_columns(shared) == {"a": True}


def test_a_module_of_several_layers_is_no_layer():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"'0' is a Sequential of several layers: all of them are '0\.\*'"):
        prunable_layers(model, ["0"])


def test_a_name_in_full_is_no_pattern():
    names = ("a[0]", "a0", "b*", "bc")
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})
    assert list(prunable_layers(model, ["a[0]"])) == ["a[0]"]
    assert list(prunable_layers(model, ["b*"])) == ["b*"]
    assert list(prunable_layers(model, ["a[01]", "bc"])) == ["a0", "bc"]
    assert list(prunable_layers(model, [])) == []
    assert list(prunable_layers(model, ["bc", "a0"])) == ["a0", "bc"], "in the order of definition"


def test_a_network_on_several_devices_is_refused():
    for model, where in (
        (nn.DataParallel(nn.Linear(2, 2)), "the network"),
        (nn.Sequential(nn.ReLU(), nn.DataParallel(nn.Linear(2, 2))), "its module '1'"),
    ):
        with pytest.raises(ValueError, match=rf"^{where} is wrapped for several devices \(DataParallel\)"):
            tied_layers(model)


def test_weights_without_numbers_are_nobody_elses():
    model = nn.Sequential(nn.Linear(0, 4), nn.Linear(0, 4))
    assert list(tied_layers(model)) == ["0", "1"]


def test_the_same_numbers_in_another_order_or_view_are_another_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data.T
    assert model[1].weight.data_ptr() == model[0].weight.data_ptr()
    assert list(tied_layers(model)) == ["0", "1", "2"]

    class Conv1D(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.nf, self.weight, self.bias = 4, weight, None

    both = nn.Sequential(nn.Linear(4, 4), Conv1D(nn.Parameter(torch.randn(4, 4))))
    both[1].weight = both[0].weight
    assert list(tied_layers(both)) == ["0", "1"]


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_a_registered_class_without_weight_or_bias_is_refused(missing, monkeypatch):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            setattr(self, "bias" if missing == "weight" else "weight", nn.Parameter(torch.ones(2, 2)))

    monkeypatch.setitem(VIEWS, Half, LinearView())
    with pytest.raises(ValueError, match="layer '0': Half is registered as a layer and has no weight or no bias"):
        tied_layers(nn.Sequential(Half()))


def test_a_bias_that_is_computed_is_the_layers_own():
    model = nn.Sequential(nn.Linear(3, 3))
    del model[0]._parameters["bias"]
    model[0].bias = torch.zeros(3)
    assert bias_columns(model) == {"0": True}


def test_only_modules_have_layers():
    with pytest.raises(TypeError):
        list(named_modules({"a": nn.Linear(2, 2)}))
    assert [name for name, _ in named_modules(nn.GRU(2, 2))] == ["", "ih_l0", "hh_l0"]
    assert [name for name, _ in named_modules(nn.ModuleDict({"m": nn.RNN(2, 2)}))] == ["", "m", "m.ih_l0", "m.hh_l0"]
