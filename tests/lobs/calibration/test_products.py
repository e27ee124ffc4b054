"""Blocks of a product, and symmetry in place."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lobs.calibration.products import PRODUCT_ROWS, row_blocks, symmetrise


@settings(max_examples=50, deadline=None)
@given(features=st.integers(1, 5 * PRODUCT_ROWS))
def test_blocks_of_rows_are_equal_and_cover_a_product_once(features):
    blocks = row_blocks(features)
    assert [j for block in blocks for j in range(features)[block]] == list(range(features))
    sizes = [block.stop - block.start for block in blocks]
    assert len(blocks) == -(-features // PRODUCT_ROWS)
    assert max(sizes) <= PRODUCT_ROWS
    assert len(set(sizes[:-1])) <= 1


def test_wide_moments_are_symmetric_to_the_bit():
    moment = torch.randn(2, 7, 7, dtype=torch.float64)
    expected = (moment + moment.mT) / 2
    symmetrise(moment, block=3)
    assert torch.equal(moment, expected)
    assert torch.equal(moment, moment.mT)
    mirrored = moment.tril() + 5 * torch.randn(2, 7, 7, dtype=torch.float64).triu(1)
    symmetrise(mirrored, lower_only=True, block=3)
    assert torch.equal(mirrored, expected)
