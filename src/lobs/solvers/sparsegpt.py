"""SparseGPT (Frantar & Alistarh 2023): one sweep over the columns, one Cholesky factor for all rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lobs.solvers.base import Solver
from lobs.solvers.hessian import DAMPING, DampedHessian, damp
from lobs.solvers.path import PruningPath, SolvedPath
from lobs.solvers.ranking import parse_pattern, row_ranks
from lobs.statistics import LayerStatistics


@dataclass(frozen=True)
class SparseGPT(Solver):
    """Columns from left to right; what is removed in a column is compensated by the columns to its right.

    With U the upper Cholesky factor of H^-1 = U^T U, [H^-1 of columns j..d]_jj = U_jj^2. In a block of columns the
    smallest w^2 / U_jj^2 are chosen, then column by column::

        W[:, j:] -= (W[:, j] * removed_j / U_jj) U[j, j:]

    The mask depends on the density, block by block, so the path is not nested: it is solved anew for every count. The
    blocks' quotas add up to exactly the count. The bias is the last column: never removed, compensates for all.

    Args:
        damping: lambda, relative to the mean diagonal of Psi.
        block_size: columns whose weights compete with each other (128 in the paper).
        pattern: N:M: the weights of every M consecutive inputs of a unit compete, M - N of them leave.
    """

    damping: float = DAMPING
    block_size: int = 128
    pattern: str | None = None

    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """A path that runs the sweep for each count.

        Returns:
            The path.

        Raises:
            SingularStatisticsError: the damped second moment cannot be inverted.
            ValueError: the block size is not positive or the pattern does not fit.
        """
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {self.block_size}")
        features = statistics.features
        parsed = parse_pattern(self.pattern, features)
        hessian = damp(statistics, self.damping)
        upper = torch.linalg.cholesky(hessian.inverse, upper=True)
        limit = features * len(weight)
        total = limit if parsed is None else limit // parsed[1] * (parsed[1] - parsed[0])

        def solve(count: int) -> tuple[Tensor, Tensor]:
            return _sweep(weight, hessian, upper, count, self.block_size, parsed)

        return SolvedPath(weight, statistics, total, solve, hessian.damping)


def _sweep(
    weight: Tensor,
    hessian: DampedHessian,
    upper: Tensor,
    count: int,
    block_size: int,
    parsed: tuple[int, int] | None,
) -> tuple[Tensor, Tensor]:
    rows, size = weight.shape
    features = size - hessian.bias
    position = torch.full((size,), -1, dtype=torch.long, device=weight.device)
    position[hessian.alive] = torch.arange(len(hessian.alive), device=weight.device)
    work = weight[:, hessian.alive].to(upper.dtype) * hessian.scale.to(upper.dtype)
    pivots = work.new_zeros(size)
    pivots[hessian.alive] = upper.diagonal().square()
    kept = torch.ones_like(weight, dtype=torch.bool)
    width = parsed[1] if parsed else block_size
    for start in range(0, features, width):
        stop = min(start + width, features)
        # Whole numbers that add up to the count, and never ask a group for more than M - N per row.
        quota = count * stop // features - count * start // features
        inside = position[start:stop]
        columns = inside[inside >= 0]
        scores = work.new_zeros(rows, stop - start)
        scores[:, inside >= 0] = work[:, columns].square() / pivots[start:stop][inside >= 0]
        kept[:, start:stop] = _keep_largest(scores, quota, parsed)
        if len(columns):
            _eliminate_block(work, ~kept[:, start:stop][:, inside >= 0], upper, int(columns[0]))
    result = weight.clone()
    result[:, hessian.alive] = (work / hessian.scale).to(weight.dtype)
    return result.masked_fill_(~kept, 0.0), kept


def _keep_largest(scores: Tensor, quota: int, parsed: tuple[int, int] | None) -> Tensor:
    """False at exactly ``quota`` of the smallest scores; with a pattern at most M - N of them per row."""
    order_key = scores
    if parsed:
        ranks = row_ranks(scores)
        order_key = scores.masked_fill(ranks >= parsed[1] - parsed[0], float("inf"))
    kept = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    kept[order_key.flatten().argsort(stable=True)[:quota]] = False
    return kept.reshape(scores.shape)


def _eliminate_block(work: Tensor, removed: Tensor, upper: Tensor, start: int) -> None:
    """Remove a block's chosen weights column by column; the columns after the block are updated by one product."""
    stop = start + removed.shape[1]
    errors = torch.zeros_like(work[:, start:stop])
    for offset in range(removed.shape[1]):
        column = start + offset
        error = work[:, column] * removed[:, offset] / upper[column, column]
        work[:, column:stop] -= torch.outer(error, upper[column, column:stop])
        errors[:, offset] = error
    work[:, stop:] -= errors @ upper[start:stop, stop:]
