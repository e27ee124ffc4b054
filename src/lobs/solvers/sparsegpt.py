"""SparseGPT (Frantar & Alistarh 2023): one sweep over the columns, one Cholesky factor for all rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lobs.solvers.base import Solver
from lobs.solvers.hessian import DAMPING, DampedHessian, damped_groups
from lobs.solvers.path import PruningPath, SolvedPath
from lobs.solvers.ranking import leaving_zeros, parse_pattern, row_ranks
from lobs.statistics import LayerStatistics


@dataclass(frozen=True)
class SparseGPT(Solver):
    """Columns from left to right; what is removed in a column is compensated by the columns to its right.

    With U the upper Cholesky factor of H^-1 = U^T U, [H^-1 of columns j..d]_jj = U_jj^2. In a block of columns the
    smallest w^2 / U_jj^2 are chosen, then column by column::

        W[:, j:] -= (W[:, j] * removed_j / U_jj) U[j, j:]

    The mask depends on the density, block by block, so the path is not nested: it is solved anew for every count. The
    blocks' quotas add up to exactly the count. Weights that are zero already leave first, and what others' compensation
    puts there is compensated in turn. The bias is the last column: never removed, compensates for all. In a grouped
    convolution every group has its own U, and the rows of all groups compete with each other.

    Args:
        damping: lambda, relative to the mean diagonal of Psi.
        block_size: columns whose weights compete with each other (128 in the paper).
        pattern: N:M: the weights of every M consecutive inputs of a unit compete, M - N of them leave.
    """

    by_group: ClassVar[bool] = False
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
        parsed = parse_pattern(self.pattern, statistics.features)
        hessians = damped_groups(statistics, self.damping)
        sweep = _Sweep(weight, hessians, parsed, self.block_size)
        damping = sum(hessian.damping for hessian in hessians) / len(hessians)
        return SolvedPath(weight, statistics, sweep.total, sweep.solve, damping, leaving=sweep.leaving)


class _Sweep:
    """What all counts share: the scaled weights ``[groups, rows, a]`` and U ``[groups, a, a]``.

    The ``a`` inputs are those that some group has ever seen; one that a group has not has the scale 0 there.
    """

    def __init__(
        self, weight: Tensor, hessians: list[DampedHessian], parsed: tuple[int, int] | None, block_size: int
    ) -> None:
        self.weight, self.parsed = weight, parsed
        self.features = hessians[0].size - hessians[0].bias
        self.zeros = weight[:, : self.features] == 0
        self.leaving = leaving_zeros(self.zeros, parsed)
        self.leaving_before = [0, *self.leaving.sum(0).cumsum(0).tolist()]  # a column
        kept, self.width = parsed or (0, block_size)
        share = (self.width - kept, self.width) if parsed else (1, 1)
        self.total = len(weight) * self.features * share[0] // share[1]

        self.alive = torch.cat([hessian.alive for hessian in hessians]).unique()
        self.scale, inverse = _together(hessians, self.alive)
        self.upper = torch.linalg.cholesky(inverse, upper=True)

    def solve(self, count: int) -> tuple[Tensor, Tensor]:
        """Weight and mask with ``count`` weights removed, at least all of `leaving`."""
        trained = self.weight[:, self.alive].unflatten(0, (len(self.upper), -1))
        work = trained.to(self.upper.dtype) * self.scale.to(self.upper.dtype)
        pivots = self.upper.diagonal(dim1=1, dim2=2).square()[:, None]
        kept = torch.ones_like(self.weight, dtype=torch.bool)
        for start in range(0, self.features, self.width):
            stop = min(start + self.width, self.features)
            inside = (self.alive >= start) & (self.alive < stop)
            columns = self.alive[inside] - start
            scores = work.new_zeros(len(self.weight), stop - start)
            scores[:, columns] = (work[..., inside].square() / pivots[..., inside]).flatten(0, 1)
            scores.masked_fill_(self.zeros[:, start:stop], -1.0)
            quota = self._quota(count, stop) - self._quota(count, start)
            kept[:, start:stop] = _keep_largest(scores, quota, self.parsed)
            if len(columns):
                removed = ~kept[:, start:stop] | self.zeros[:, start:stop]
                first = int(torch.searchsorted(self.alive, start))
                _eliminate_block(work, removed[:, columns].unflatten(0, work.shape[:2]), self.upper, first)
        result = self.weight.clone()
        solved = torch.where(self.scale > 0, work / self.scale, trained)
        result[:, self.alive] = solved.to(result.dtype).flatten(0, 1)
        return result.masked_fill_(~kept, 0.0), kept

    def _quota(self, count: int, column: int) -> int:
        """How many weights the columns before this one lose: the zeros that leave, and the same share of the others."""
        # Whole numbers that add up to the count, and never ask a group for more than M - N per row.
        zeros, all_zeros = self.leaving_before[column], self.leaving_before[-1]
        others = self.total * column // self.features - zeros
        return zeros + (count - all_zeros) * others // (self.total - all_zeros)


def _together(hessians: list[DampedHessian], alive: Tensor) -> tuple[Tensor, Tensor]:
    """The groups' scales ``[groups, 1, a]`` and C^-1 ``[groups, a, a]``, with 0 and the identity at dead inputs."""
    if len(hessians) == 1:
        return hessians[0].scale[None, None], hessians[0].inverse[None]
    inverse = torch.eye(len(alive), dtype=hessians[0].inverse.dtype, device=alive.device).repeat(len(hessians), 1, 1)
    scales = hessians[0].scale.new_zeros(len(hessians), 1, len(alive))
    for own, scale, hessian in zip(inverse, scales, hessians, strict=True):
        inside = torch.searchsorted(alive, hessian.alive)
        own[inside[:, None], inside] = hessian.inverse
        scale[0, inside] = hessian.scale
    return scales, inverse


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
    stop = start + removed.shape[2]
    errors = torch.zeros_like(work[..., start:stop])
    for offset in range(removed.shape[2]):
        column = start + offset
        error = work[..., column] * removed[..., offset] / upper[:, column, column, None]
        work[..., column:stop] -= error[..., None] * upper[:, None, column, column:stop]
        errors[..., offset] = error
    # One group's product is one of matrices, not a batch of one, which is rounded differently.
    work.squeeze(0)[..., stop:] -= errors.squeeze(0) @ upper.squeeze(0)[..., start:stop, stop:]
