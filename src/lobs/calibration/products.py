"""How products of samples are formed: in chunks whose rounding stays small, half of a symmetric one, in place."""

from __future__ import annotations

from torch import Tensor

# Rounding in a float32 product grows with the samples summed in it; at this many it stays near 1e-6.
CHUNK_SAMPLES = 4096
# A wider product is formed in blocks of rows of at most so many, without those above the diagonal.
PRODUCT_ROWS = 1024


def row_blocks(features: int) -> list[slice]:
    """Rows of a product of so many features, cut into equal blocks of at most `PRODUCT_ROWS`."""
    width = -(-features // max(1, -(-features // PRODUCT_ROWS)))
    return [slice(start, min(start + width, features)) for start in range(0, features, max(1, width))]


def symmetrise(moment: Tensor, lower_only: bool = False, block: int = 256) -> None:
    """Average a product with its transpose in place, by blocks: these stay in the cache, a wide layer's copy is 5 GiB.

    Args:
        moment: ``[groups, d, d]``.
        lower_only: what stands above the diagonal does not count, the rest is mirrored.
        block: rows and columns at a time.
    """
    for i in range(0, moment.shape[-1], block):
        for j in range(0, i + 1, block):
            lower = moment[:, i : i + block, j : j + block]
            upper = moment[:, j : j + block, i : i + block]
            if not lower_only:
                mean = (lower + upper.mT) / 2
                lower.copy_(mean)
            elif i == j:
                mean = lower.tril() + lower.tril(-1).mT
            else:
                mean = lower
            upper.copy_(mean.mT)
