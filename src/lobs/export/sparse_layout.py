"""How many bytes a sparse tensor takes in each layout that `lobs.save_sparse` knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

VALUE_BYTES = 4  # a weight or a bias, float32


@dataclass(frozen=True)
class FileCosts:
    """What a network's sparse file holds besides the pruned layers' weights (`lobs.export.sparse.file_costs`).

    Attributes:
        fixed: bytes of everything else: biases, other tensors, the header at its largest.
        value_bytes: of one weight of each layer.
        copies: how many times each layer's weight is written.
    """

    fixed: int
    value_bytes: Mapping[str, int]
    copies: Mapping[str, int]


def layout_bytes(kept: Tensor, weights: int, value_bytes: int = VALUE_BYTES) -> dict[str, Tensor]:
    """Bytes of one sparse tensor in each layout that `lobs.save_sparse` knows.

    With ``k`` values kept of ``w``, ``b`` bytes each (a place is an index into the flattened tensor)::

        dense      b w
        bitmask    ceil(w / 8) + b k             a bit per place
        blocks     2 ceil(w / 256) + (1 + b) k   how many lie in each block of 256 places, and each one's place in it
        positions  (p + b) k                     each one's place: p = 1 up to w = 2^8, 2 up to 2^16, 4 up to 2^31, 8

    All depend on the count alone, not on where the values lie: that makes the size of a file a budget.

    Args:
        kept: values that are kept, any shape.
        weights: of the tensor in all.
        value_bytes: of one value.

    Returns:
        By layout, float64 in the shape of ``kept``.
    """
    kept = kept.double()
    return {
        "dense": torch.full_like(kept, value_bytes * weights),
        "bitmask": ceil(weights / 8) + value_bytes * kept,
        "blocks": 2 * ceil(weights / 2**8) + (1 + value_bytes) * kept,
        "positions": (position_type(weights).itemsize + value_bytes) * kept,
    }


def position_type(weights: int) -> torch.dtype:
    """The smallest integer that counts so many places."""
    types = {2**8: torch.uint8, 2**16: torch.uint16, 2**31: torch.int32}
    return next((dtype for most, dtype in types.items() if weights <= most), torch.int64)


def sparse_bytes(kept: Tensor, weights: int, value_bytes: int = VALUE_BYTES) -> Tensor:
    """Bytes of the smallest of the layouts of `layout_bytes`; a file's header and its biases are not counted here."""
    return torch.stack(list(layout_bytes(kept, weights, value_bytes).values())).amin(dim=0)
