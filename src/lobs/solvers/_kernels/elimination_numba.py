"""Exact OBS of many rows on the CPU, compiled: one thread works on one row at a time.

A row's removals are a pivoted Cholesky factorisation of the inverse P = C^-1, the pivot being the cheapest weight::

    v = P[:, p] / sqrt(P_pp),   increment = (w_p / sqrt(P_pp))^2,   w -= (w_p / sqrt(P_pp)) v,   P -= v v^T

Blocked: inside a block of `LAZY` removals only the pivot's row of P is brought up to date (from the block's v), then
one product updates all of P. Only P's lower triangle is stored, and the last index moves into the removed one's
place, so that P shrinks with every removal: 1/3 d^3 operations per row instead of 2 d^3.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from lobs.solvers._kernels.rows import over_rows

# Removals between two products. 8, 16, 32 took 0.31, 0.28, 0.27 s for LeNet-300-100's first layer; wide rows gain
# from 64, which halves the traffic of a triangle that no longer fits the cache.
LAZY, LAZY_WIDE, WIDE = 32, 64, 2048
# Tile of the product: 8 directions of this many columns stay in the first-level cache for as many rows.
TILE_COLUMNS, TILE_ROWS = 512, 16

# Sums may be reordered and contracted; nothing here relies on the absence of infinities.
compiled = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})


def eliminate(
    weight: Tensor, gone: Tensor, inverse: Tensor, group: Tensor, quota: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Remove weights one by one from every row, always the row's cheapest.

    Args:
        weight: scaled weights ``[rows, d]``.
        gone: bool likewise, weights that are zero and stay so: they leave first, those beyond their group's quota
            without a place in the order.
        inverse: C^-1, ``[d, d]``.
        group: ``[d]``, the group of each input; -1 for inputs that are never removed.
        quota: how many inputs of each group are removed.
        dtype: of the elimination.

    Returns:
        order: int32 ``[rows, sum(quota)]``, the inputs in the order in which they leave.
        increments: float64 of the same shape, by how much each raised the row's error; NaN marks a breakdown (a pivot
            below its bound of 1 by more than rounding explains).
    """
    # Inputs that stay come first: the kernel fills gaps from the end and never moves them.
    position = torch.argsort(group >= 0, stable=True)
    first = int((group < 0).sum())
    matrix = inverse[position][:, position].to(dtype).numpy()
    rows, zeros = weight[:, position].to(dtype).numpy(), gone[:, position].numpy()
    groups, quotas = group[position].numpy().astype(np.int32), quota.numpy().astype(np.int32)
    order = np.zeros((len(rows), int(quotas.sum())), np.int32)
    increments = np.full(order.shape, np.nan)
    lazy = LAZY if len(matrix) < WIDE else LAZY_WIDE

    def task(part: slice) -> None:
        _eliminate_rows(rows[part], zeros[part], matrix, first, groups, quotas, lazy, order[part], increments[part])

    over_rows(task, len(rows))
    return position.int()[torch.from_numpy(order).long()], torch.from_numpy(increments)


@compiled
def _eliminate_rows(weights, gone, inverse, first, groups, quotas, lazy, order, increments):
    size = len(inverse)
    stride = (size + 15) // 16 * 16  # rows start on a cache line: a tenth less time
    matrix = np.empty((size, stride), inverse.dtype)
    directions = np.empty((lazy, stride), inverse.dtype)
    for row in range(len(weights)):
        for i in range(size):
            matrix[i, : i + 1] = inverse[i, : i + 1]
        group, left = groups.copy(), quotas.copy()
        _eliminate_row(
            weights[row].copy(), gone[row], matrix, directions, first, group, left, order[row], increments[row]
        )


@compiled
def _eliminate_row(weight, gone, matrix, directions, first, group, left, order, increments):
    diagonal = np.diag(matrix).copy()
    index = np.arange(len(weight))
    column = np.empty_like(weight)
    lazy, size, done, zeros = len(directions), len(weight), 0, gone.sum()
    while zeros > 0 or done < len(order):
        directions[:] = 0
        used = 0
        while used < lazy and (zeros > 0 or done < len(order)):
            if zeros > 0:
                pivot = _next_gone(gone, index, first)
                zeros -= 1
            else:
                pivot = _cheapest(weight, diagonal, group, left, first, size)
            _current_row(matrix, directions, used, pivot, size, column)
            if not column[pivot] > 0.5:  # C has a unit diagonal, so no principal submatrix has an inverse below 1
                return
            inverse_root = 1 / np.sqrt(column[pivot])
            step = weight[pivot] * inverse_root
            if left[group[pivot]] > 0:
                order[done] = index[pivot]
                increments[done] = step * step
                left[group[pivot]] -= 1
                done += 1
            direction = directions[used]
            for j in range(size):
                value = column[j] * inverse_root
                direction[j] = value
                weight[j] -= step * value
                diagonal[j] -= value * value
            used += 1
            size -= 1
            weight[pivot], diagonal[pivot] = weight[size], diagonal[size]
            index[pivot], group[pivot] = index[size], group[size]
            _move_last(matrix, directions, used, pivot, size)
        _downdate(matrix, directions, used, size)


@compiled
def _next_gone(gone, index, first):
    """Where the first of the weights is that are gone already; there is one."""
    place = first
    while not gone[index[place]]:
        place += 1
    return place


@compiled
def _cheapest(weight, diagonal, group, left, first, size):
    """Where w^2 / P_jj is smallest among the inputs that may still leave."""
    best, place = np.inf, first
    for j in range(first, size):
        score = weight[j] * weight[j] / diagonal[j]
        if score < best and left[group[j]] > 0:
            best, place = score, j
    return place


@compiled
def _current_row(matrix, directions, used, pivot, size, column):
    """Row ``pivot`` of P: what is stored less what the block has removed since."""
    for j in range(pivot + 1):
        column[j] = matrix[pivot, j]
    for j in range(pivot + 1, size):
        column[j] = matrix[j, pivot]
    for k in range(used):
        direction = directions[k]
        factor = direction[pivot]
        for j in range(size):
            column[j] -= factor * direction[j]


@compiled
def _move_last(matrix, directions, used, hole, last):
    """Index ``last`` takes the place of a removed one in the lower triangle and in the block's directions."""
    if hole == last:
        return
    for k in range(used):
        directions[k, hole] = directions[k, last]
    for j in range(hole):
        matrix[hole, j] = matrix[last, j]
    matrix[hole, hole] = matrix[last, last]
    for i in range(hole + 1, last):
        matrix[i, hole] = matrix[last, i]


@compiled
def _downdate(matrix, directions, used, size):
    """Lower triangle of ``P -= V^T V``, eight directions at a time: one load and store of P for eight products."""
    for left in range(0, size, TILE_COLUMNS):
        for top in range(left, size, TILE_ROWS):
            bottom = min(size, top + TILE_ROWS)
            right = min(left + TILE_COLUMNS, bottom)
            for k in range(0, used, 8):
                part = directions[k : k + 8]
                v0, v1, v2, v3 = part[0, left:right], part[1, left:right], part[2, left:right], part[3, left:right]
                v4, v5, v6, v7 = part[4, left:right], part[5, left:right], part[6, left:right], part[7, left:right]
                for i in range(top, bottom):
                    c0, c1, c2, c3 = part[0, i], part[1, i], part[2, i], part[3, i]
                    c4, c5, c6, c7 = part[4, i], part[5, i], part[6, i], part[7, i]
                    row = matrix[i, left:right]
                    for j in range(len(row)):
                        row[j] -= (c0 * v0[j] + c1 * v1[j] + c2 * v2[j] + c3 * v3[j]) + (
                            c4 * v4[j] + c5 * v5[j] + c6 * v6[j] + c7 * v7[j]
                        )
