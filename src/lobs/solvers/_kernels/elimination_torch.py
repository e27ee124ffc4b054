"""Exact OBS of many rows in batched tensor operations: for CUDA, and for blocks of inputs on any device.

The algorithm of `elimination_numba`, for all rows of a batch in step, with blocks B of inputs in the place of single
ones. With P = C^-1 and L L^T = P_BB, ``V = L^-1 P[B, :]`` and ``c = L^-1 w_B``::

    score of a block = ||c||^2 = w_B^T (P_BB)^-1 w_B,   w -= c^T V,   P -= V^T V

The entries of c^2 are what the block's inputs cost one after the other, so a path is exact inside a block as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Rows are eliminated together as long as their inverses stay below this.
BATCH_BYTES = {"cpu": 64 * 2**20, "cuda": 4 * 2**30}
# Directions between two products, and the share of eliminated inputs at which a batch is compacted.
LAZY = 32
COMPACT = 0.15


def eliminate(
    weight: Tensor, gone: Tensor, inverse: Tensor, group: Tensor, quota: Tensor, dtype: torch.dtype, block: int = 1
) -> tuple[Tensor, Tensor]:
    """Remove blocks of inputs one by one from every row, always the row's cheapest.

    Args:
        weight: scaled weights ``[rows, d]``.
        gone: bool likewise, weights that are zero and stay so; they leave with their block, at no cost.
        inverse: C^-1, ``[d, d]``, or ``[rows, d, d]`` where every row has its own.
        group: ``[d]``, the group of each input; -1 for inputs that are never removed (after all others).
        quota: how many inputs of each group are removed.
        dtype: of the elimination.
        block: this many consecutive inputs leave together; it divides the inputs that may leave.

    Returns:
        order: int32 ``[rows, sum(quota)]``, the inputs in the order in which they leave.
        increments: float64 of the same shape, by how much each raised the row's error; NaN marks a breakdown.
    """
    size = weight.shape[1]
    inverse = inverse.to(dtype)
    limit = BATCH_BYTES["cuda" if weight.is_cuda else "cpu"]
    copies = 4 if gone.any() else 1  # of a row's inverse, while it is made
    batch = max(1, limit // (copies * size * size * dtype.itemsize))
    orders, costs = [], []
    inverses = inverse.expand(len(weight), size, size).split(batch)
    for values, lost, matrix in zip(weight.to(dtype).split(batch), gone.split(batch), inverses, strict=True):
        matrix = _without(matrix, lost) if lost.any() else matrix
        order, increments = _Batch(values, matrix, group, quota, block).run()
        orders.append(order)
        costs.append(increments)
    return torch.cat(orders), torch.cat(costs)


def _without(inverse: Tensor, gone: Tensor) -> Tensor:
    """P - P[:, Z] (P_ZZ)^-1 P[Z, :] of each row, ``[rows, d, d]``; the identity's rows at the inputs Z gone."""
    identity = torch.eye(inverse.shape[-1], dtype=inverse.dtype, device=inverse.device)
    across, along = gone[:, :, None], gone[:, None, :]
    factor, info = torch.linalg.cholesky_ex(torch.where(across & along, inverse, identity))
    factor.masked_fill_((info != 0)[:, None, None], float("nan"))  # a breakdown, too
    half = torch.linalg.solve_triangular(factor, inverse * across, upper=False)
    return torch.where(across | along, identity, inverse - half.mT @ half)


class _Batch:
    """The state of some rows: w ``[r, m]``, P ``[r, m, m]``, P's diagonal blocks, and which blocks are still there."""

    def __init__(self, weight: Tensor, matrix: Tensor, group: Tensor, quota: Tensor, block: int) -> None:
        rows, size = weight.shape
        self.block = block
        self.units = int((group >= 0).sum()) // block
        self.total = int(quota.sum()) // block
        self.weight = weight.clone()
        self.matrix, self.shared = matrix, True
        self.index = torch.arange(size, device=weight.device).expand(rows, size)
        self.group = group[: self.units * block : block].expand(rows, self.units)
        self.left = (quota // block).repeat(rows, 1)
        self.present = torch.ones(rows, self.units, dtype=torch.bool, device=weight.device)
        # P's diagonal blocks [r, units, block, block], kept up to date at every step for the scores
        part = matrix[:, : self.units * block, : self.units * block].unflatten(2, (self.units, block))
        blocks = part.unflatten(1, (self.units, block)).diagonal(dim1=1, dim2=3).movedim(-1, 1)
        self.diagonal = blocks.clone(memory_format=torch.contiguous_format)

    def run(self) -> tuple[Tensor, Tensor]:
        """Eliminate to the end; see `eliminate`."""
        order, costs = [], []
        gone = 0
        steps = max(1, LAZY // self.block)
        for start in range(0, self.total, steps):
            directions = self.weight.new_zeros(len(self.weight), 0, self.weight.shape[1])
            for _ in range(min(steps, self.total - start)):
                columns, cost, found = self._step(directions)
                directions = torch.cat([directions, found], dim=1)
                order.append(self.index.gather(1, columns))
                costs.append(cost)
                gone += self.block
            if self.shared:  # the first product: the rows' own matrices come into being
                self.matrix, self.shared = torch.baddbmm(self.matrix, directions.mT, directions, alpha=-1), False
            else:
                self.matrix.baddbmm_(directions.mT, directions, alpha=-1)
            if gone > COMPACT * self.weight.shape[1]:
                self._compact()
                gone = 0
        if not order:
            empty = self.weight.new_zeros(len(self.weight), 0)
            return empty.int(), empty.double()
        return torch.cat(order, dim=1).int(), torch.cat(costs, dim=1).double()

    def _step(self, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Remove each row's cheapest block: its columns ``[r, b]``, their costs, the directions V ``[r, b, m]``."""
        rows, width = self.weight.shape
        used = self.units * self.block
        unit = self._scores().argmin(dim=1)
        columns = unit[:, None] * self.block + torch.arange(self.block, device=unit.device)
        select = columns[:, :, None].expand(-1, -1, width)
        current = self.matrix.gather(1, select)
        past = directions.gather(2, columns[:, None, :].expand(-1, directions.shape[1], -1))
        current = torch.baddbmm(current, past.mT, directions, alpha=-1)
        pivot = current.gather(2, columns[:, None, :].expand(-1, self.block, -1))
        factor, info = torch.linalg.cholesky_ex(pivot)
        values = self.weight.gather(1, columns)
        found = torch.cat([current, values[:, :, None]], dim=2)
        if self.block == 1:  # threads that share a batch of such small systems wait for each other
            found /= factor
        else:
            found = torch.linalg.solve_triangular(factor, found, upper=False)
        found, steps = found[:, :, :width], found[:, :, width]
        # C has a unit diagonal, so no pivot of a principal submatrix's inverse is below 1.
        broken = (info != 0) | (factor.diagonal(dim1=1, dim2=2) ** 2 < 0.5).any(1)
        cost = steps.square().masked_fill(broken[:, None], float("nan"))
        self.weight -= torch.bmm(steps[:, None, :], found)[:, 0]
        self.weight.scatter_(1, columns, 0.0)
        parts = found[:, :, :used].unflatten(2, (self.units, self.block))
        self.diagonal -= torch.einsum("rkua,rkub->ruab", parts, parts)
        self.present.scatter_(1, unit[:, None], False)
        self.left.scatter_add_(1, self.group.gather(1, unit[:, None]), self.left.new_full((rows, 1), -1))
        return columns, cost, found

    def _scores(self) -> Tensor:
        """w_B^T (P_BB)^-1 w_B of every block, infinite where it may not leave."""
        parts = self.weight[:, : self.units * self.block].unflatten(1, (self.units, self.block))
        free = self.present & (self.left.gather(1, self.group) > 0)
        if self.block == 1:
            scores = parts[..., 0].square() / self.diagonal[..., 0, 0]
        else:
            identity = torch.eye(self.block, dtype=parts.dtype, device=parts.device)
            blocks = torch.where(free[..., None, None], self.diagonal, identity)
            factor = torch.linalg.cholesky_ex(blocks)[0]
            scores = torch.linalg.solve_triangular(factor, parts[..., None], upper=False).square().sum((2, 3))
        return scores.masked_fill(~free, float("inf"))

    def _compact(self) -> None:
        """Drop what has been eliminated; every row has lost equally many."""
        width = self.weight.shape[1]
        kept = int(self.present[0].sum())
        unit = self.present.nonzero()[:, 1].reshape(len(self.weight), kept)
        inside = (unit[:, :, None] * self.block + torch.arange(self.block, device=unit.device)).flatten(1)
        fixed = torch.arange(self.units * self.block, width, device=unit.device).expand(len(unit), -1)
        columns = torch.cat([inside, fixed], dim=1)
        size = columns.shape[1]
        matrix = self.matrix.gather(1, columns[:, :, None].expand(-1, -1, width))
        self.matrix = matrix.gather(2, columns[:, None, :].expand(-1, size, -1))
        self.weight = self.weight.gather(1, columns)
        self.index = self.index.gather(1, columns)
        self.group = self.group.gather(1, unit)
        select = unit[:, :, None, None].expand(-1, -1, self.block, self.block)
        self.diagonal = self.diagonal.gather(1, select)
        self.present = torch.ones_like(unit, dtype=torch.bool)
        self.units = kept
