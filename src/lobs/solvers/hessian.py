"""The damped, scaled second moment that every second-order solver factorises.

A layer's error is ``E = ||Z_hat - Z||_F^2 / n = tr(dW Psi dW^T)`` (paper, section 3.1), so its Hessian has one block
``2 Psi`` per output unit, all equal (Figure 1). The factor 2 changes no ranking and no compensation and is left out:
below, H = Psi + lambda I.

Inputs that are always zero decouple and are left out of the factorisation. The rest is scaled to a unit diagonal,
``C = S^-1 H S^-1`` with ``S = diag(H)^(1/2)``, on which scores and compensations are invariant: this is what makes
inputs of scales from 1e-8 to 1e8 harmless.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lobs.base.arguments import check_number
from lobs.calibration.statistics import LayerStatistics

# Relative to the mean diagonal. Chosen by measurement: see reports (layer error and test error hardly move between
# 1e-6 and 1e-3 on MNIST, below it float32 eliminations lose digits).
DAMPING = 1e-4
# A wider layer is factorised in float32: a float64 inverse of 25,088 inputs alone takes 5 GiB.
FLOAT64_FEATURES = 8192
# Of an input that is always zero, without damping: its weights cost nothing.
DEAD_SCALE = 1e-120


class SingularStatisticsError(ValueError):
    """The second moment cannot be inverted in the precision at hand; damping would make it so."""


@dataclass(frozen=True)
class DampedHessian:
    """H = Psi + damping I over the inputs that are ever non-zero, scaled to a unit diagonal.

    Attributes:
        alive: indices of those inputs in the layer's ``d`` (bias included).
        scale: square roots of H's diagonal over them, float64 ``[a]``; ``[out, a]`` where every row has its own H.
        correlation: C, ``[a, a]``, unit diagonal; ``[out, a, a]`` likewise.
        damping: lambda, in units of Psi.
        size: d.
        bias: whether the last input is the bias.
    """

    alive: Tensor
    scale: Tensor
    correlation: Tensor
    damping: float
    size: int
    bias: bool

    @cached_property
    def inverse(self) -> Tensor:
        """C^-1 by Cholesky; ``H^-1 = S^-1 C^-1 S^-1`` over the alive inputs.

        Raises:
            SingularStatisticsError: C is not positive definite in its precision.
        """
        factor = checked_cholesky(self.correlation, self.damping)
        return torch.cholesky_inverse(factor)

    @cached_property
    def inverse_diagonal(self) -> Tensor:
        """diag(H^-1) over all d inputs, float64; 1/lambda at dead inputs (infinite without damping)."""
        dead = float("inf") if self.damping == 0 else 1 / self.damping
        diagonal = self.scale.new_full((self.size,), dead)
        diagonal[self.alive] = self.inverse.diagonal().double() / self.scale.square()
        return diagonal

    def with_dead_inputs(self) -> DampedHessian:
        """The same H over all inputs: those that are always zero decouple, with lambda on the diagonal."""
        everything = torch.arange(self.size, device=self.alive.device)
        scale = self.scale.new_full((self.size,), self.damping**0.5)
        scale[self.alive] = self.scale
        correlation = torch.eye(self.size, dtype=self.correlation.dtype, device=scale.device)
        correlation[self.alive[:, None], self.alive] = self.correlation
        return DampedHessian(everything, scale, correlation, self.damping, self.size, self.bias)

    def sensitivities(self, weight: Tensor) -> Tensor:
        """L_q = w_q^2 / (2 [H^-1]_qq) of every weight but the biases (paper, equation 6), float64 ``[out, f]``."""
        features = self.size - self.bias
        return weight[:, :features].double().square() / (2 * self.inverse_diagonal[:features])


def damp(statistics: LayerStatistics, damping: float = DAMPING, alpha: float | None = None) -> DampedHessian:
    """Add damping to a layer's second moment, drop dead inputs, scale to a unit diagonal.

    Args:
        statistics: of a layer with one group.
        damping: lambda relative to the mean diagonal of Psi over inputs that are ever non-zero, the bias's 1 aside.
        alpha: the paper's absolute alternative, lambda = 1/alpha; overrides ``damping``.

    Returns:
        H, ready to be factorised.

    Raises:
        ValueError: damping is negative or alpha not positive, or the moment is not finite or has a negative diagonal.
    """
    check_damping(damping, alpha)
    moment = statistics.second_moment
    if moment.dim() != 2:
        raise ValueError(f"a solver takes one group at a time; these statistics have {len(moment)} groups")
    diagonal = _checked(moment.diagonal().double())
    alive = diagonal.nonzero()[:, 0]
    absolute = 1 / alpha if alpha is not None else damping * float(_mean_square(diagonal, statistics.bias))
    scale = (diagonal[alive] + absolute).sqrt()
    dtype = torch.float64 if len(alive) <= FLOAT64_FEATURES else torch.float32
    correlation = _scaled(moment, alive, 1 / scale, dtype)
    correlation.diagonal().fill_(1.0)
    return DampedHessian(alive, scale, correlation, absolute, len(moment), statistics.bias)


def damp_rows(statistics: LayerStatistics, rows: int, damping: float = DAMPING) -> DampedHessian:
    """`damp` of all groups of a grouped convolution at once: every row has the H of its group.

    Args:
        statistics: of a layer of several groups; inputs that are always zero decouple.
        rows: of the layer's weight.
        damping: as for `damp`, of each group's own mean diagonal.

    Returns:
        H by row; its `damping` is the groups' mean.

    Raises:
        ValueError: the moment is not finite or has a negative diagonal.
    """
    moment = statistics.second_moment.double()
    diagonal = _checked(moment.diagonal(dim1=1, dim2=2))
    absolute = damping * _mean_square(diagonal, statistics.bias)
    damped = diagonal + absolute[:, None]
    scale = torch.where(damped > 0, damped.sqrt(), DEAD_SCALE)
    correlation = moment * (1 / scale)[:, :, None] * (1 / scale)[:, None, :]
    correlation.diagonal(dim1=1, dim2=2).fill_(1.0)
    each = rows // len(moment)
    alive = torch.arange(moment.shape[-1], device=moment.device)
    scale, correlation = scale.repeat_interleave(each, 0), correlation.repeat_interleave(each, 0)
    return DampedHessian(alive, scale, correlation, float(absolute.mean()), len(alive), statistics.bias)


def check_damping(damping: float, alpha: float | None = None) -> None:
    """Refuse what `damp` cannot take.

    Raises:
        ValueError: damping is negative or not finite, or alpha not positive.
        TypeError: one is no number.
    """
    check_number("alpha", alpha, "1 / lambda")
    if alpha is not None and not alpha > 0:
        raise ValueError(f"alpha must be > 0 (the paper takes 1e4 to 1e8), got {alpha}")
    check_number("damping", damping, "lambda relative to the mean diagonal")
    if damping is None or not 0 <= damping < float("inf"):
        raise ValueError(f"damping must be >= 0, relative to the mean diagonal; got {damping}")


def damped_groups(statistics: LayerStatistics, damping: float = DAMPING) -> list[DampedHessian]:
    """`damp` of every group of a grouped convolution; of the layer itself where there is one group."""
    return [damp(statistics.group(index), damping) for index in range(statistics.groups)]


def _mean_square(diagonal: Tensor, bias: bool) -> Tensor:
    """Psi's mean diagonal over inputs that are ever non-zero, the bias's 1 aside, which would drown small ones."""
    inputs = diagonal[..., : diagonal.shape[-1] - bias]
    return inputs.sum(-1) / (inputs != 0).sum(-1).clamp_min(1)


def _checked(diagonal: Tensor) -> Tensor:
    if not torch.isfinite(diagonal).all() or (diagonal < 0).any():
        raise ValueError("the second moment has a diagonal that is negative or not finite")
    return diagonal


def _scaled(moment: Tensor, alive: Tensor, factors: Tensor, dtype: torch.dtype, rows: int = 2048) -> Tensor:
    """A moment's rows and columns multiplied by factors, over some of its inputs."""
    # In float64, because scales far apart leave float32's range; by blocks, because a wide layer's copy is 5 GiB.
    result = torch.empty(len(alive), len(alive), dtype=dtype, device=moment.device)
    for start in range(0, len(alive), rows):
        part = slice(start, start + rows)
        block = moment[part] if len(alive) == len(moment) else moment[alive[part]][:, alive]
        result[part] = (block * factors[part, None]).mul_(factors).to(dtype)
    return result


def checked_cholesky(matrix: Tensor, damping: float) -> Tensor:
    """The lower Cholesky factor of a matrix (or of several) with unit diagonal, or a named error when it is singular.

    Returns:
        The factor.

    Raises:
        SingularStatisticsError: a pivot is not positive, or so small that rounding decides it.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    size, failed = matrix.shape[-1], bool(info.any())
    smallest = float(factor.diagonal(dim1=-2, dim2=-1).min().square()) if size and not failed else 1.0
    # A pivot carries a rounding error of about sqrt(size) * eps; near that there is no digit left in the inverse.
    if failed or not smallest > 4 * size**0.5 * torch.finfo(matrix.dtype).eps:
        raise SingularStatisticsError(
            f"the second moment of {size} inputs is singular in {str(matrix.dtype)[6:]} (duplicated or linearly "
            f"dependent inputs, or fewer samples than inputs) with damping {damping:.3g}: use a larger damping "
            f"(relative to the mean diagonal; the default is {DAMPING:g})"
        )
    return factor


def recursive_inverse(samples: Tensor, alpha: float) -> Tensor:
    """(Psi + I/alpha)^-1 by the paper's sample-by-sample recursion (its equation for Psi_{j+1}^-1).

    For teaching and tests: n rank-1 updates of a d x d matrix where `DampedHessian.inverse` takes one factorisation::

        P <- P - P y y^T P / (n + y^T P y),   starting from P = alpha I

    Args:
        samples: ``[n, d]``, the bias's ones included where there is a bias.
        alpha: in [1e4, 1e8] in the paper.

    Returns:
        The inverse, float64 ``[d, d]``.

    Raises:
        ValueError: alpha is not positive, or samples is not a matrix.
    """
    if samples.dim() != 2 or not alpha > 0:
        raise ValueError(f"expected samples [n, d] and alpha > 0, got {tuple(samples.shape)} and {alpha}")
    count, size = samples.shape
    inverse = torch.eye(size, dtype=torch.float64, device=samples.device) * alpha
    for sample in samples.double():
        column = inverse @ sample
        inverse -= torch.outer(column, column) / (count + sample @ column)
    return inverse
