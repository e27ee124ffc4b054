"""The swaps of `refine`, compiled: one thread works on one row at a time.

A row's state is the sweep tableau of its kept inputs K, one line per kept input over all d columns::

    T[k, s] = (H_KK^-1 H_Ks)_k  for a removed s,      T[k, j] = -(H_KK^-1)_kj  for a kept j

Removing or inserting an input is one rank-1 update of T. For removed inputs ``schur`` holds H_ss - H_sK T[:, s] and
``gradient`` the residual's gradient; for kept ones `BLOCKED` and 0, so that the search needs no test. An input that may
not come back is `BLOCKED` as well.
"""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

from lobs.solvers._kernels.rows import over_rows

BLOCKED = 1e300

compiled = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=True)


def swap_rows(
    trained: Tensor,
    solved: Tensor,
    kept: Tensor,
    candidates: Tensor,
    matrix: Tensor,
    free: int,
    limit: int,
    least_gain: float,
) -> Tensor:
    """Swap kept and removed inputs of every row while its error falls.

    Args:
        trained: the scaled weights before pruning, float64 ``[rows, d]``.
        solved: the best scaled weights on the mask.
        kept: bool ``[rows, d]``.
        candidates: likewise, False where an input may not come back; True where it is kept now.
        matrix: C, float64 ``[d, d]``, unit diagonal.
        free: inputs from here on are never swapped.
        limit: most swaps per row.
        least_gain: share of a row's error that a swap must gain.

    Returns:
        The new mask.
    """
    gradient = (trained - solved) @ matrix
    errors = ((trained - solved) * gradient).sum(1).clamp_min_(0).numpy()
    result = kept.clone().contiguous()
    values, mask, gradients, system = solved.numpy(), result.numpy(), gradient.numpy(), matrix.contiguous().numpy()
    barred = ~candidates.numpy()

    def task(part: slice) -> None:
        for row in range(part.start, part.stop):
            if 0 < mask[row, :free].sum() < free:
                _swap_row(
                    values[row], mask[row], barred[row], gradients[row], errors[row], system, free, limit, least_gain
                )

    over_rows(task, len(values))
    return result


@compiled
def _swap_row(values, kept, barred, gradient, error, matrix, free, limit, least_gain):
    size = len(matrix)
    inputs = np.flatnonzero(kept)  # the input of each line of the tableau
    count = len(inputs)
    table = np.empty((count, size))
    weight = np.zeros(count)
    schur = np.ones(size)
    schur[barred] = BLOCKED
    unused = np.zeros(size)
    for line in range(count):
        _insert(table, inputs, weight, schur, unused, matrix, line, line, inputs[line])
    for line in range(count):
        weight[line] = values[inputs[line]]
        gradient[inputs[line]] = 0.0
    for _ in range(limit):
        gain, line, new = _best_swap(table, inputs, weight, schur, gradient, free)
        if new < 0 or not gain > least_gain * error:
            return
        kept[inputs[line]] = False
        kept[new] = True
        _remove(table, inputs, weight, schur, gradient, line)
        inputs[line] = new
        _insert(table, inputs, weight, schur, gradient, matrix, count, line, new)
        error = max(error - gain, 0.0)  # below zero by rounding, it would let swaps pass that gain nothing


@compiled
def _best_swap(table, inputs, weight, schur, gradient, free):
    """The largest decrease of the error, the line that leaves and the input that enters."""
    best, best_line, best_new = -1.0, -1, -1
    for line in range(len(inputs)):
        if inputs[line] >= free:
            continue
        row = table[line]
        inverse = -1 / row[inputs[line]]
        ratio = weight[line] * inverse
        cost = weight[line] * ratio
        most = 0.0
        for s in range(free):
            value = gradient[s] + row[s] * ratio
            most = max(most, value * value / (schur[s] + row[s] * row[s] * inverse))
        if most - cost > best:
            best, best_line, best_new = most - cost, line, -1
            for s in range(free):
                value = gradient[s] + row[s] * ratio
                score = value * value / (schur[s] + row[s] * row[s] * inverse)
                if schur[s] < BLOCKED / 2 and score >= most * (1 - 1e-12):
                    best_new = s
                    break
    return best, best_line, best_new


@compiled
def _remove(table, inputs, weight, schur, gradient, line):
    """Input ``inputs[line]`` leaves; its line is free for another one."""
    old = inputs[line]
    row = table[line]
    inverse = -1 / row[old]
    ratio = weight[line] * inverse
    for other in range(len(inputs)):
        if other != line:
            target = table[other]
            factor = target[old] * inverse
            weight[other] += target[old] * ratio
            for j in range(len(row)):
                target[j] += factor * row[j]
            target[old] = factor
    for j in range(len(row)):
        schur[j] += row[j] * row[j] * inverse
        gradient[j] += row[j] * ratio
    schur[old] = inverse
    for other in range(len(inputs)):
        if other != line:
            gradient[inputs[other]] = 0.0
    gradient[old] = ratio


@compiled
def _insert(table, inputs, weight, schur, gradient, matrix, lines, line, new):
    """Input ``new`` takes ``line``; the first ``lines`` lines hold the other inputs."""
    row = table[line]
    row[:] = matrix[new]
    for other in range(lines):
        if other != line:
            factor = table[other, new]
            source = matrix[inputs[other]]
            for j in range(len(row)):
                row[j] -= factor * source[j]
    for other in range(lines):
        if other != line:
            row[inputs[other]] = table[other, new]
    inverse = 1 / schur[new]
    ratio = gradient[new] * inverse
    row[new] = 0.0
    for other in range(lines):
        if other != line:
            target = table[other]
            factor = target[new] * inverse
            weight[other] -= target[new] * ratio
            for j in range(len(row)):
                target[j] -= factor * row[j]
            target[new] = factor
    for j in range(len(row)):
        schur[j] -= row[j] * row[j] * inverse
        gradient[j] -= row[j] * ratio
        row[j] *= inverse
    row[new] = -inverse
    weight[line] = ratio
    schur[new] = BLOCKED
    gradient[new] = 0.0
    for other in range(lines):
        gradient[inputs[other]] = 0.0
