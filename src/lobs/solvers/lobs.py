"""L-OBS as published: Algorithm 1 with the inverse kept fixed (Dong, Chen & Pan 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lobs.base.arguments import check_flag
from lobs.calibration.statistics import LayerStatistics
from lobs.solvers.base import Solver
from lobs.solvers.hessian import DAMPING, DampedHessian, check_damping, damp
from lobs.solvers.least_squares import solve_on_support
from lobs.solvers.path import PruningPath, RankedPath, with_bias_column
from lobs.solvers.ranking import Pattern, rank_by_score

# Removals of a row that are solved together: wider blocks gather larger triangles, narrower ones take more products.
BLOCK = 96
# Multiplications in the products, rows * d^3 / BLOCK: above this (about 10 minutes on 2 cores in float64) only
# resolve=True is offered.
MOST_PRODUCTS = 15 * 10**12


@dataclass(frozen=True)
class LOBS(Solver):
    """Score every weight once, remove in the order of the scores, compensate after each removal.

    With H = Psi + lambda I, the same for every output unit (paper, Figure 1), and H^-1 never updated::

        L_q = w_q^2 / (2 [H^-1]_qq)                    sensitivity, from the trained weights
        w  <- w - (w_q / [H^-1]_qq) H^-1 e_q           after every removal; removed weights are set back to zero

    The coefficients c_k of a unit's removals q_1, q_2, ... solve a triangular system, sum_{i<=k} [H^-1]_{q_k q_i} c_i =
    w_{q_k}, whose leading parts are those of all shorter sequences: one solve per unit gives the whole path.

    Args:
        damping: lambda, relative to Psi's mean diagonal.
        alpha: the paper's absolute form, lambda = 1/alpha (1e4 to 1e8 there); overrides ``damping``.
        resolve: replace the sequential compensation by least squares on the final mask, the best weights for it.
        pattern: N:M, kept of consecutive inputs; in a network's convolutions of consecutive channels.
    """

    line: ClassVar[str] = "L-OBS as published: scores and compensation from one inverse, kept fixed (Dong et al. 2017)"
    damping: float = DAMPING
    alpha: float | None = None
    resolve: bool = False
    pattern: str | Pattern | None = None

    def __post_init__(self) -> None:
        check_damping(self.damping, self.alpha)
        check_flag("resolve", self.resolve)

    def path(self, weight: Tensor, statistics: LayerStatistics) -> PruningPath:
        """The order of L_q and the compensation for every count.

        Returns:
            The path.

        Raises:
            SingularStatisticsError: the damped second moment cannot be inverted.
        """
        hessian = damp(statistics, self.damping, self.alpha)
        # Without damping a dead input has an infinite [H^-1]_qq: its weights cost nothing and leave first.
        sensitivities = hessian.sensitivities(weight)
        rank, total = rank_by_score(sensitivities, weight[:, : statistics.features] == 0, self.pattern)

        def compensate(kept: Tensor) -> Tensor:
            if self.resolve:
                return solve_on_support(weight, with_bias_column(kept, statistics.bias), hessian)
            return fixed_inverse.weights(kept)

        fixed_inverse = _FixedInverse(weight, rank, hessian)
        return RankedPath(
            weight, statistics, rank, total, compensate, damping=hessian.damping, sensitivities=sensitivities
        )


class _FixedInverse:
    """The sequential compensation: coefficients of all removals, solved once when first needed."""

    def __init__(self, weight: Tensor, rank: Tensor, hessian: DampedHessian) -> None:
        self.weight = weight
        self.rank = rank
        self.hessian = hessian
        self._coefficients: Tensor | None = None

    def weights(self, kept: Tensor) -> Tensor:
        """Return w - H^-1 c over the removals of the mask; entries of removed weights are meaningless."""
        if self._coefficients is None:
            self._coefficients = self._solve()
        hessian = self.hessian
        removed = ~with_bias_column(kept, hessian.bias)[:, hessian.alive]
        change = (self._coefficients * removed) @ hessian.inverse
        result = self.weight.clone()
        result[:, hessian.alive] -= (change / hessian.scale).to(result.dtype)
        return result

    def _solve(self) -> Tensor:
        """Coefficients c, ``[out, alive]``, in the scaled variables; zero for the bias."""
        hessian = self.hessian
        inverse = hessian.inverse
        rows, size = len(self.weight), len(hessian.alive)
        if rows * size**3 > MOST_PRODUCTS * BLOCK:
            raise ValueError(
                f"a layer of {rows} x {size} weights is too large for the sequential compensation with a fixed "
                f"inverse: use resolve=True (least squares on the final mask, which is also better)"
            )
        scaled = (self.weight[:, hessian.alive].double() * hessian.scale).to(inverse.dtype)
        features = size - hessian.bias  # the bias has a constant input: always alive, always last
        inputs = hessian.alive[:features]
        # Zeros come first, those that a pattern keeps as well: their coefficients are zero, and nothing fills them.
        order = self.rank[:, inputs].masked_fill(self.weight[:, inputs] == 0, -1).argsort(dim=1)
        # Forward substitution by blocks of each row's own order. Inside a block a small triangular system; what the
        # block does to all later removals is one product, with the block's coefficients put in their columns.
        coefficients = torch.zeros_like(scaled)
        residual = scaled.clone()
        for start in range(0, features, BLOCK):
            columns = order[:, start : start + BLOCK]
            system = inverse[columns[:, :, None], columns[:, None, :]]
            target = residual.gather(1, columns)[:, :, None]
            solved = torch.linalg.solve_triangular(system, target, upper=False)[:, :, 0]
            coefficients.scatter_(1, columns, solved)
            residual -= torch.zeros_like(scaled).scatter_(1, columns, solved) @ inverse
        return coefficients
