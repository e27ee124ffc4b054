"""SparseGPT (Frantar & Alistarh 2023): one sweep over the columns, one Cholesky factor for all rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from lobs.base.arguments import check_count
from lobs.calibration.statistics import LayerStatistics
from lobs.solvers.base import Solver
from lobs.solvers.hessian import DAMPING, DampedHessian, check_damping, damped_groups
from lobs.solvers.path import PruningPath, SolvedPath
from lobs.solvers.ranking import Pattern, leaving_zeros, parse_pattern, row_ranks

# Groups of up to so many removals are measured after each of them, larger ones at these shares of their removals.
MEASURED = 64
SHARES = (0.0, 0.25, 0.45, 0.6, 0.7, 0.78, 0.84, 0.89, 0.93, 0.97, 1.0)


@dataclass(frozen=True)
class SparseGPT(Solver):
    """Columns from left to right; what is removed in a column is compensated by the columns to its right.

    With U the upper Cholesky factor of H^-1 = U^T U, [H^-1 of columns j..d]_jj = U_jj^2. In a block of columns the
    smallest w^2 / U_jj^2 are chosen, then column by column::

        W[:, j:] -= (W[:, j] * removed_j / U_jj) U[j, j:]

    The mask depends on the density, block by block, so the path is not nested: it is solved anew for every count. The
    blocks' quotas add up to exactly the count. Weights that are zero already leave first, and what others' compensation
    puts there is compensated in turn. The bias is the last column: never removed, compensates for all. The groups of a
    grouped convolution, each with its own U, are swept together; the count is shared out by what removals cost them.

    Args:
        damping: lambda, relative to the mean diagonal of Psi.
        block_size: columns whose weights compete with each other (128 in the paper).
        pattern: N:M: the weights of every M consecutive inputs (in a network's convolutions channels) of a unit
            compete, M - N of them leave.
    """

    line: ClassVar[str] = (
        "columns from left to right in blocks, one Cholesky factor for all rows (Frantar & Alistarh 2023)"
    )
    by_group: ClassVar[bool] = False
    damping: float = DAMPING
    block_size: int = 128
    pattern: str | Pattern | None = None

    def __post_init__(self) -> None:
        check_damping(self.damping)
        check_count("block_size", self.block_size, 1)

    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """A path that runs the sweep for each count.

        Returns:
            The path.

        Raises:
            SingularStatisticsError: the damped second moment cannot be inverted.
            ValueError: the pattern does not fit.
        """
        parsed = parse_pattern(self.pattern, statistics.features)
        hessians = damped_groups(statistics, self.damping)
        sweep = _Sweep(weight, statistics, hessians, parsed, self.block_size)
        damping = sum(hessian.damping for hessian in hessians) / len(hessians)
        return SolvedPath(weight, statistics, sweep.total, sweep.solve, damping, leaving=sweep.leaving)


class _Sweep:
    """What all counts share: the weights ``[groups, rows, d]``, and U ``[groups, a, a]`` over the inputs of any group.

    An input that some groups have seen and others never has the scale 0 in these.
    """

    def __init__(
        self,
        weight: Tensor,
        statistics: LayerStatistics,
        hessians: list[DampedHessian],
        parsed: Pattern | None,
        block_size: int,
    ) -> None:
        self.weight, self.statistics, self.parsed = weight.unflatten(0, (len(hessians), -1)), statistics, parsed
        self.features = statistics.features
        self.zeros = self.weight[..., : self.features] == 0
        self.leaving = leaving_zeros(self.zeros.flatten(0, 1), parsed)
        self.width = parsed.width if parsed else block_size
        kept, size, _ = parsed or Pattern(0, 1)
        self.most = self.weight.shape[1] * self.features // size * (size - kept)  # a group's removals
        self.total = len(hessians) * self.most
        # [groups, features + 1]: zeros that leave before each column
        before = self.leaving.unflatten(0, (len(hessians), -1)).sum(1).cumsum(1).cpu()
        self.leaving_before = torch.nn.functional.pad(before, (1, 0))
        self.free = self.leaving_before[:, -1]
        self.alive = torch.cat([hessian.alive for hessian in hessians]).unique()
        self.scale, inverse = _together(hessians, self.alive)
        self.upper = torch.linalg.cholesky(inverse, upper=True)

    def solve(self, count: int) -> tuple[Tensor, Tensor]:
        """Weight and mask ``[out, d]`` with ``count`` weights removed, at least all of `leaving`."""
        counts = torch.tensor([count])
        if len(self.weight) > 1:
            counts = self.free + torch.bincount(self._order[: count - int(self.free.sum())], minlength=len(self.weight))
        weight, kept = self._at(counts)
        return weight.flatten(0, 1), kept.flatten(0, 1)

    @cached_property
    def _order(self) -> Tensor:
        """The group that each of the layer's removals falls to, after the zeros: the one where it costs least."""
        others = (self.most - self.free)[:, None]
        removals = torch.arange(int(others.max()))
        if len(removals) <= MEASURED:
            costs = self._errors(torch.minimum(torch.arange(len(removals) + 1), others)).diff(dim=1)
        else:
            costs = self._interpolated(others, (removals + 0.5) / others.clamp_min(1))
        costs = costs.cummax(1).values.masked_fill(removals >= others, float("inf"))
        return costs.flatten().argsort(stable=True) // len(removals)

    def _interpolated(self, others: Tensor, places: Tensor) -> Tensor:
        """The logarithm of what a removal costs at these shares of each group's removals, between the measured ones."""
        shares = torch.tensor(SHARES)
        knots = (shares * others).round().long()
        slopes = self._errors(knots).diff(dim=1) / knots.diff(dim=1).clamp_min(1)
        logarithms = slopes.clamp_min(max(1e-9 * float(slopes.max()), 1e-300)).log()
        middles = (shares[1:] + shares[:-1]) / 2
        right = torch.searchsorted(middles, places).clamp(1, len(middles) - 1)
        part = (places - middles[right - 1]) / (middles[right] - middles[right - 1])
        return torch.lerp(logarithms.gather(1, right - 1), logarithms.gather(1, right), part.double())

    def _errors(self, removals: Tensor) -> Tensor:
        """Psi's error of every group after so many removals beyond its zeros ``[groups, k]``, non-decreasing."""
        moment, errors = self.statistics.second_moment.double(), []
        for count in removals.T:
            change = (self._at(self.free + count)[0] - self.weight).double()
            errors.append(((change @ moment) * change).sum((1, 2)).cpu())
        return torch.stack(errors, dim=1).cummax(1).values

    def _at(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and masks ``[groups, rows, d]`` with so many weights removed from each group."""
        trained = self.weight[..., self.alive]
        work = trained.to(self.upper.dtype) * self.scale.to(self.upper.dtype)
        pivots = self.upper.diagonal(dim1=1, dim2=2).square()[:, None]
        kept = torch.ones_like(self.weight, dtype=torch.bool)
        for start in range(0, self.features, self.width):
            stop = min(start + self.width, self.features)
            inside = (self.alive >= start) & (self.alive < stop)
            columns = self.alive[inside] - start
            scores = work.new_zeros(*work.shape[:2], stop - start)
            scores[..., columns] = work[..., inside].square() / pivots[..., inside]
            scores.masked_fill_(self.zeros[..., start:stop], -1.0)
            quotas = self._quotas(counts, stop) - self._quotas(counts, start)
            removed = _smallest(scores, quotas.to(scores.device), self.parsed)
            kept[..., start:stop] = ~removed
            if len(columns):
                removed |= self.zeros[..., start:stop]  # those that a pattern keeps as well
                _eliminate_block(work, removed[..., columns], self.upper, int(torch.searchsorted(self.alive, start)))
        result = self.weight.clone()
        result[..., self.alive] = torch.where(self.scale > 0, work / self.scale, trained).to(result.dtype)
        return result.masked_fill_(~kept, 0.0), kept

    def _quotas(self, counts: Tensor, column: int) -> Tensor:
        """What the columns before this one lose in each group: zeros that leave, and the same share of the others."""
        # Whole numbers that add up to the count, and never ask for more than a pattern's M - N per row.
        zeros = self.leaving_before[:, column]
        others = self.most * column // self.features - zeros
        return zeros + (counts - self.free) * others // (self.most - self.free).clamp_min(1)


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


def _smallest(scores: Tensor, quotas: Tensor, parsed: Pattern | None) -> Tensor:
    """True at exactly ``quotas[g]`` of the smallest of ``scores[g]``; with a pattern M - N of a row's group at most."""
    order_key = scores
    if parsed:
        stays = parsed.flat(row_ranks(parsed.grouped(scores)) >= parsed.size - parsed.kept)
        order_key = scores.masked_fill(stays, float("inf"))
    order = order_key.flatten(1).argsort(dim=1, stable=True)
    first = torch.arange(order.shape[1], device=order.device) < quotas[:, None]
    return torch.zeros_like(first).scatter_(1, order, first).reshape(scores.shape)


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
