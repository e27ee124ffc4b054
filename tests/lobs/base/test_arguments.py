"""Arguments of the wrong type are refused by their name; every kind of number and iterable passes."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import lobs
from lobs.base.arguments import check_by_layer, check_module, check_names, check_number


@pytest.mark.parametrize("value", [None, 3, 0.5, float("nan"), Fraction(1, 3), np.float32(0.5), np.int64(2)])
def test_numbers_pass(value):
    check_number("density", value, "a share")
    check_by_layer("densities", {"fc": 0 if value is None else value}, pairs=False)
    check_by_layer("limits", {"fc": (0, 1 if value is None else value), "*": [0.5, 1]}, pairs=True)


@pytest.mark.parametrize("value", ["0.3", True, np.bool_(True), 1j, [0.3], torch.tensor(0.3), {}])
def test_everything_else_is_refused_with_its_type(value):
    with pytest.raises(TypeError, match=rf"density must be a share, a number; got .* \({type(value).__name__}\)$"):
        check_number("density", value, "a share")
    for pairs, entry in ((False, value), (True, (0.0, value)), (True, 0.5)):
        with pytest.raises(TypeError, match=r"shares must map layer names to .*densities, got 'fc': "):
            check_by_layer("shares", {"good": (0, 1) if pairs else 1, "fc": entry}, pairs)


@pytest.mark.parametrize("values", [["a", "b*"], ("a", "b*"), {"a": 1, "b*": 2}, (name for name in ("a", "b*"))])
def test_names_come_back_as_a_list(values):
    assert check_names("layers", values) == ["a", "b*"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("conv1", "layers must be a list of names, got the single string 'conv1'"),
        (7, "layers must be a list of layer names or patterns, got 7"),
        (["a", 7], "got 7 among them"),
        ([b"a"], "got b'a' among them"),
    ],
)
def test_what_is_no_list_of_names_is_refused(values, message):
    with pytest.raises(TypeError, match=message):
        check_names("layers", values)


def test_mappings_have_names_for_keys():
    check_by_layer("limits", None, pairs=True)
    for values, message in (([("fc", 0.5)], "got a list"), ({7: 0.5}, "got 7: 0.5"), ({None: 0.5}, "got None: 0.5")):
        with pytest.raises(TypeError, match=f"densities must map layer names to densities, {message}"):
            check_by_layer("densities", values, pairs=False)


def test_a_result_in_a_networks_place_is_told_apart(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(4, 3)).eval()
    inputs = torch.randn(8, 4)
    result = lobs.prune(network, method="magnitude", density=0.5, batches=[inputs])
    for call in (
        lambda: lobs.prune(result, method="magnitude", density=0.5, batches=[inputs]),
        lambda: lobs.save_sparse(result, tmp_path / "x"),
        lambda: lobs.compact(result, inputs),
        lambda: lobs.accelerate(result, inputs),
        lambda: lobs.keep_masks(result),
        lambda: lobs.refit(network, result, [inputs]),
    ):
        with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got PruneResult: give its .model"):
            call()
    check_module(network)
