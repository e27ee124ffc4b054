"""Better than greedy: swap kept and removed weights while the layer's error falls."""

from __future__ import annotations

import torch
from torch import Tensor

from lobs.solvers.hessian import DampedHessian
from lobs.solvers.least_squares import solve_on_support
from lobs.solvers.path import PruningPath, RankedPath, with_bias_column

# A row stops when its best swap lowers its error by less than this share of it.
LEAST_GAIN = 1e-9


def refine(weight: Tensor, kept: Tensor, hessian: DampedHessian, swaps: int | None = None) -> Tensor:
    """A mask with as many weights per row and an error that is no larger: steepest descent over single swaps.

    Weights that are zero already take no part: none comes back, none leaves for another.

    With K a row's kept and S its removed inputs, w the best weights on K, G = H_KK^-1, B = G H_KS, and for every s in S
    the residual's gradient r_s = [H (w_trained - w)]_s and the Schur complement t_s = H_ss - H_sK B_s, removing q and
    taking back s changes the row's error by exactly::

        w_q^2 / G_qq  -  (r_s + B_qs w_q / G_qq)^2 / (t_s + B_qs^2 / G_qq)

    Each row makes its best swap until none lowers its error, or ``swaps`` times. Runs on the CPU, in float64.

    Args:
        weight: the trained weight ``[out, d]``.
        kept: bool ``[out, d]``, True where a weight stays, from any method; the bias column is left alone.
        hessian: of the layer.
        swaps: at most this many per row; None: until no swap helps.

    Returns:
        The new mask, bool ``[out, d]``; `lobs.solvers.least_squares.solve_on_support` gives its weights.

    Raises:
        SingularStatisticsError: a row's support is singular.
        ValueError: the shapes differ, or ``swaps`` is negative.
    """
    if kept.shape != weight.shape or kept.dtype != torch.bool:
        raise ValueError(
            f"kept must be a bool mask of shape {tuple(weight.shape)}, got {kept.dtype} {tuple(kept.shape)}"
        )
    if swaps is not None and swaps < 0:
        raise ValueError(f"swaps must be >= 0 or None, got {swaps}")
    from lobs.solvers._kernels.swaps_numba import swap_rows

    nonzero = with_bias_column(weight[:, : hessian.size - hessian.bias] != 0, hessian.bias)
    support = kept & nonzero
    silent = nonzero.clone()
    silent[:, hessian.alive] = False
    solved = solve_on_support(weight.double(), support, hessian)
    if silent.any():  # such a weight is worth swapping for any other, and saves lambda w^2 where it comes back
        hessian = hessian.with_dead_inputs()
    alive = hessian.alive
    matrix = hessian.correlation.double().cpu()
    scale = hessian.scale.cpu()
    trained = weight[:, alive].double().cpu() * scale
    solved = solved[:, alive].cpu() * scale
    mask, candidates = support[:, alive].cpu(), nonzero[:, alive].cpu()
    free = len(alive) - int(hessian.bias)  # the bias is the last input
    limit = weight.shape[1] ** 2 if swaps is None else swaps
    refined = swap_rows(trained, solved, mask, candidates, matrix, free, limit, LEAST_GAIN)
    support[:, alive] = refined.to(kept.device)
    return support | (kept & ~nonzero)


class RefinedPath(PruningPath):
    """A nested path whose masks are refined at every count that is asked for.

    `layer_error` stays the curve of the path it refines: an upper bound of the refined error.

    Args:
        path: the nested path, with an exact curve.
        hessian: of the layer.
    """

    def __init__(self, path: RankedPath, hessian: DampedHessian) -> None:
        super().__init__(path.weight, path.statistics, path.total, path.damping, path.sensitivities, path.rank)
        self._path = path
        self._hessian = hessian
        self._latest: tuple[int, Tensor] | None = None

    def at(self, count: int) -> tuple[Tensor, Tensor]:
        """The layer with exactly ``count`` weights removed: weight and mask, see `PruningPath.at`."""
        kept, bias = self.kept(count), self.statistics.bias
        support = with_bias_column(kept & ~self.zeros, bias)
        return solve_on_support(self.weight, support, self._hessian), with_bias_column(kept, bias)

    def kept(self, count: int) -> Tensor:
        """The refined mask; the latest one is remembered."""
        self._check(count)
        if self._latest is None or self._latest[0] != count:
            mask = with_bias_column(self._path.kept(count), self.statistics.bias)
            if self.free < count < self.total:
                mask = refine(self.weight, mask, self._hessian)
            self._latest = count, mask[:, : self.statistics.features]
        return self._latest[1]

    def _exact_curve(self) -> Tensor | None:
        return self._path._exact_curve()
