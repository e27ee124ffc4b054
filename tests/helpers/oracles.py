"""Plain float64 definitions that the solvers are compared with: slow, short, and written independently of them."""

from __future__ import annotations

import heapq
from itertools import combinations, product

import numpy as np
import torch
from torch import Tensor


def plain_row(
    weight: np.ndarray, inverse: np.ndarray, features: int, pattern: tuple[int, int] | None = None
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Exact OBS of one row as defined: score, remove, compensate, downdate the whole inverse by a rank-1 product.

    Args:
        weight: ``[d]``.
        inverse: H^-1, ``[d, d]``.
        features: the first so many inputs are removed, the rest (a bias) stays.
        pattern: (N, M): of every M consecutive inputs N stay.

    Returns:
        The inputs in the order of removal, their increments w_q^2 / [H^-1]_qq, and by which factor the second cheapest
        removal was dearer at each step (1 is a tie).
    """
    weight, inverse = weight.copy(), inverse.copy()
    order, increments, gaps = [], [], []
    present = np.zeros(len(weight), dtype=bool)
    present[:features] = True
    while present.any():
        scores = np.full(len(weight), np.inf, dtype=weight.dtype)
        scores[present] = weight[present] ** 2 / inverse.diagonal()[present]
        pivot = int(scores.argmin())
        others = np.delete(scores, pivot)
        gaps.append(others.min() / scores[pivot] if len(others) and scores[pivot] > 0 else np.inf)
        order.append(pivot)
        increments.append(scores[pivot])
        column = inverse[:, pivot].copy()
        weight -= weight[pivot] / column[pivot] * column
        inverse -= np.outer(column, column) / column[pivot]
        weight[pivot] = 0.0
        present[pivot] = False
        if pattern:
            kept, width = pattern
            start = pivot // width * width
            if sum(start <= j < start + width for j in order) == width - kept:
                present[start : start + width] = False
    return order, np.array(increments), np.array(gaps)


def plain_layer(weight: Tensor, moment: Tensor, damping: float, bias: bool) -> dict:
    """Exact OBS of a layer: rows by `plain_row` on H = Psi + damping I, merged by a heap that takes the row with the
    cheapest next removal. Inputs that are always zero leave first.

    Returns:
        ``orders`` and ``gaps`` of the rows, ``sequence``: (row, input) in the layer's order, ``curve``: E after every
        count.
    """
    moment, values = moment.double().numpy(), weight.double().numpy()
    features = len(moment) - bias
    dead = [j for j in range(features) if moment[j, j] == 0]
    alive = [j for j in range(len(moment)) if j not in dead]
    hessian = moment[np.ix_(alive, alive)] + damping * np.eye(len(alive))
    # In float64 the downdates of a plain inverse lose more digits than our scaled ones when the inputs' sizes are far
    # apart (checked against rational arithmetic): extended precision, by Newton's iteration from the float64 inverse.
    inverse = np.linalg.inv(hessian).astype(np.longdouble)
    for _ in range(3):
        inverse = inverse @ (2 * np.eye(len(alive)) - hessian.astype(np.longdouble) @ inverse)
    result: dict = {"orders": [], "gaps": [], "sequence": [], "curve": [0.0]}
    costs = []
    for row in values:
        local, increments, gaps = plain_row(row[alive], inverse, len(alive) - bias)
        first = sorted(dead, key=lambda j: row[j] ** 2)
        result["orders"].append(first + [alive[j] for j in local])
        result["gaps"].append(gaps)
        costs.append([damping * row[j] ** 2 for j in first] + list(increments))
    for row, order in enumerate(result["orders"]):
        for position in range(len(dead)):
            result["sequence"].append((row, order[position]))
            result["curve"].append(result["curve"][-1] + costs[row][position])
    heap = [(cost[len(dead)], row, len(dead)) for row, cost in enumerate(costs) if len(cost) > len(dead)]
    heapq.heapify(heap)
    while heap:
        cost, row, position = heapq.heappop(heap)
        result["sequence"].append((row, result["orders"][row][position]))
        result["curve"].append(result["curve"][-1] + cost)
        if position + 1 < features:
            heapq.heappush(heap, (costs[row][position + 1], row, position + 1))
    result["curve"] = np.array(result["curve"], dtype=np.float64)
    return result


def damped_error(change: Tensor, moment: Tensor, damping: float) -> float:
    """tr(dW (Psi + damping I) dW^T)."""
    change = change.double()
    return float(((change @ moment.double()) * change).sum() + damping * change.square().sum())


def best_on_support(weight: np.ndarray, samples: np.ndarray, support: list[int], damping: float) -> float:
    """min ||A (w' - w)||^2 over w' on the support by lstsq, with A = [samples / sqrt(n); sqrt(damping) I]."""
    count, size = samples.shape
    system = np.concatenate([samples / np.sqrt(count), np.sqrt(damping) * np.eye(size)])
    target = system @ weight
    if not support:
        return float(target @ target)
    # Columns of one length: else those that are small beside others count as nothing.
    columns = system[:, support] / np.maximum(np.linalg.norm(system[:, support], axis=0), 1e-300)
    residual = target - columns @ np.linalg.lstsq(columns, target, rcond=None)[0]
    return float(residual @ residual)


def best_of_all_supports(weight: np.ndarray, samples: np.ndarray, damping: float, bias: bool) -> np.ndarray:
    """The least E of a layer after every count of removals, over all supports of all rows. ``weight``: [rows, d]."""
    rows, size = weight.shape
    features = size - bias
    per_row = []
    for row in weight:
        least = [
            min(
                best_on_support(row, samples, [j for j in range(size) if j not in removed], damping)
                for removed in combinations(range(features), count)
            )
            for count in range(features + 1)
        ]
        per_row.append(least)
    best = np.full(rows * features + 1, np.inf)
    for counts in product(range(features + 1), repeat=rows):
        total = sum(least[count] for least, count in zip(per_row, counts, strict=True))
        best[sum(counts)] = min(best[sum(counts)], total)
    return best


def best_single_swap(
    weight: np.ndarray, samples: np.ndarray, kept: np.ndarray, damping: float, bias: bool
) -> tuple[float, float, tuple[int, int] | None]:
    """One row: its error, the least error after one swap of a kept and a removed input, and that swap."""
    features = len(weight) - bias
    support = [int(j) for j in np.flatnonzero(kept)]
    error = best_on_support(weight, samples, support, damping)
    best, swap = np.inf, None
    for out in [j for j in support if j < features]:
        for new in [j for j in range(features) if not kept[j]]:
            changed = sorted({*support, new} - {out})
            value = best_on_support(weight, samples, changed, damping)
            if value < best:
                best, swap = value, (out, new)
    return error, best, swap


def mnist_like(rows: int = 24, features: int = 120, samples: int = 2000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight and input samples like MNIST's: correlated, non-negative, many inputs (almost) always zero.

    Returns:
        weight ``[rows, features + 1]``, samples ``[n, features]``; the condition number of Psi is beyond 1e8.
    """
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(samples, features // 6, generator=generator, dtype=torch.float64)
    loadings = torch.randn(features // 6, features, generator=generator, dtype=torch.float64)
    smooth = torch.cumsum(loadings, dim=1) / features**0.5
    inputs = (factors @ smooth + 0.01 * torch.randn(samples, features, generator=generator, dtype=torch.float64)).relu()
    spread = torch.logspace(-4, 0, features, dtype=torch.float64)[torch.randperm(features, generator=generator)]
    inputs = inputs * spread
    inputs[:, : features // 10] = 0.0
    weight = torch.randn(rows, features + 1, generator=generator, dtype=torch.float64) * 0.1
    return weight, inputs


def constrained_least_squares(weight, inputs, kept, damping):
    """Row by row, by lstsq on the samples, with sqrt(n * damping) (w' - w) as further equations."""
    count = len(inputs)
    root = (count * damping) ** 0.5
    result = torch.zeros_like(weight)
    for row in range(len(weight)):
        k = kept[row]
        equations = torch.cat([inputs[:, k], root * torch.eye(weight.shape[1], dtype=weight.dtype)[:, k]])
        target = torch.cat([inputs @ weight[row], root * weight[row]])
        result[row, k] = torch.linalg.lstsq(equations, target).solution
    return result
