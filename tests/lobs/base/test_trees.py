"""Tensors in containers: what they hold, copies of them, and some rows."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from lobs.base.trees import copied, cut, divisible, leaves, length

X, Y = torch.arange(12.0).reshape(4, 3), torch.arange(4)
Pair = namedtuple("Pair", "left right")


@dataclass
class Both:
    one: torch.Tensor
    more: list


class Thing:
    def __init__(self, values):
        self.values, self.parts = values, {"again": self}


def same(found, expected):
    assert type(found) is type(expected)
    found, expected = list(leaves(found)), list(leaves(expected))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


TREES = [
    X,
    (X, [Y, None, 2.5]),
    {"a": X, "b": {"c": (Y,)}},
    UserDict(a=X, b=[Y]),
    OrderedDict(b=Y, a=X),
    Pair(X, Y),
    Both(X, [Y, Y]),
]


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: type(tree).__name__)
def test_a_copy_is_of_the_same_kind_and_shares_no_memory(tree):
    made = copied(tree)
    same(made, tree)
    places = {leaf.data_ptr() for leaf in leaves(tree) if isinstance(leaf, torch.Tensor)}
    assert not [leaf for leaf in leaves(made) if isinstance(leaf, torch.Tensor) and leaf.data_ptr() in places]
    assert all(leaf.is_meta for leaf in leaves(copied(tree, torch.device("meta"))) if isinstance(leaf, torch.Tensor))


def test_leaves_come_in_order_those_of_objects_too_and_none_of_them_for_ever():
    assert list(leaves([1, {"a": (2, []), "b": "3"}, None])) == [1, 2, [], "3", None]
    assert [leaf is X for leaf in leaves(Thing(X))] == [True]


def test_an_object_that_moves_as_one_piece_is_copied_whole():
    packed = torch.nn.utils.rnn.pack_sequence([X, X[:2]])
    made = copied(packed)
    assert torch.equal(made.data, packed.data)
    assert made.data.data_ptr() != packed.data.data_ptr()
    assert cut(packed, 2, torch.tensor([0])) is packed
    assert length(packed) is None


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: type(tree).__name__)
def test_rows_are_cut_wherever_they_stand(tree):
    places = torch.tensor([3, 1])
    made = cut(tree, 4, places)
    assert type(made) is type(tree)
    for found, whole in zip(leaves(made), leaves(tree), strict=True):
        if isinstance(whole, torch.Tensor):
            assert torch.equal(found, whole[places])


def test_lists_of_that_length_are_cut_and_tuples_are_not():
    pictures = [torch.rand(4, size) for size in (2, 3, 4, 5)]
    assert [part is pictures[place] for part, place in zip(cut(pictures, 4, torch.tensor([2, 0])), (2, 0), strict=True)]
    assert len(cut(tuple(pictures), 4, torch.tensor([2, 0]))) == 4
    assert cut(torch.rand(5, 2), 4, torch.tensor([0])).shape == (5, 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (X, 4),
        ([X, X], 2),
        ((X, Y), 4),
        (("a", None, X), 4),
        ({"flag": True, "x": X}, 4),
        (Both(X, []), 4),
        (torch.tensor(1.0), None),
        ("a", None),
        ({}, None),
    ],
)
def test_the_first_tensor_or_a_list_says_how_many_inputs_there_are(value, expected):
    assert length(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((X, Y), True),
        ((X, torch.tensor(2.0), "a", None), True),
        ([torch.rand(3), torch.rand(2), torch.rand(5), torch.rand(1)], True),
        ({"x": X, "edges": torch.zeros(2, 7)}, False),
        ((X, Thing(Y)), False),
    ],
)
def test_inputs_are_taken_one_by_one_where_all_belongs_to_one_each(value, expected):
    assert divisible(value, 4) is expected
