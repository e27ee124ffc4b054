"""Bytes of sparse tensors by count, against a byte-by-byte account of each layout."""

from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lobs.export.sparse_layout import layout_bytes, position_type, sparse_bytes


def test_bytes_are_those_of_the_smaller_format():
    kept = torch.arange(0, 480)
    # dense, a bit per weight, a byte of place in blocks of 256, two bytes of place
    expected = [min(4 * 480, 60 + 4 * k, 2 * 2 + 5 * k, 6 * k) for k in range(480)]
    assert sparse_bytes(kept, 480).tolist() == expected
    assert (sparse_bytes(kept, 477).diff() >= 0).all()
    assert sparse_bytes(torch.tensor([1000, 100_000]), 1_000_000).tolist() == [8 * 1000, 2 * 3907 + 5 * 100_000]
    assert sparse_bytes(torch.tensor(1000), 1_000_000, value_bytes=2) == 6 * 1000


@settings(max_examples=50, deadline=None)
@given(
    weights=st.integers(1, 3000),
    share=st.floats(0, 1),
    value_bytes=st.sampled_from([1, 2, 4, 8]),
)
def test_layouts_are_the_sums_of_their_parts(weights, share, value_bytes):
    kept = round(share * weights)
    values = kept * value_bytes
    place = 1 if weights <= 256 else 2
    found = layout_bytes(torch.tensor(kept), weights, value_bytes)
    assert {name: int(size) for name, size in found.items()} == {
        "dense": weights * value_bytes,
        "bitmask": ceil(weights / 8) + values,
        "blocks": 2 * ceil(weights / 256) + kept + values,
        "positions": kept * place + values,
    }
    assert int(sparse_bytes(torch.tensor(kept), weights, value_bytes)) == min(map(int, found.values()))


@pytest.mark.parametrize(
    ("weights", "dtype"),
    [
        (1, torch.uint8),
        (256, torch.uint8),
        (257, torch.uint16),
        (2**16, torch.uint16),
        (2**16 + 1, torch.int32),
        (2**31, torch.int32),
        (2**31 + 1, torch.int64),
    ],
)
def test_places_are_counted_by_the_smallest_integer(weights, dtype):
    assert position_type(weights) == dtype
