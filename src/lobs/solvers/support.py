"""The best weights for a given mask: least squares on the support, all rows at once."""

from __future__ import annotations

import torch
from torch import Tensor

from lobs.solvers.hessian import DampedHessian, SingularStatisticsError

# Rows are solved together as long as their gathered systems stay below this.
BATCH_BYTES = 256 * 2**20


def solve_on_support(weight: Tensor, kept: Tensor, hessian: DampedHessian) -> Tensor:
    """OBS's compensation for a whole mask at once: least squares on its support.

    The minimum over W' with W'[~kept] = 0 of tr((W' - W) H (W' - W)^T).

    Per row, with K the kept and S the removed inputs, whichever of the two systems is smaller::

        w'_K = w_K + H_KK^-1 H_KS w_S              normal equations on the support
        w'   = w - H^-1[:, S] ([H^-1]_SS)^-1 w_S    the constraint's multipliers (paper, equation 5, for a set S)

    Args:
        weight: ``[out, d]``.
        kept: bool ``[out, d]``, True where a weight stays (the bias column stays).
        hessian: of the layer.

    Returns:
        ``[out, d]`` in the weight's dtype, zero where ``kept`` is False.

    Raises:
        SingularStatisticsError: the system of a row is singular: the damping is too small.
    """
    dtype = hessian.correlation.dtype
    scale = hessian.scale.to(dtype)
    scaled = weight[:, hessian.alive].to(dtype) * scale
    mask = kept[:, hessian.alive]
    solved = torch.empty_like(scaled)
    counts = mask.sum(1)
    size = scaled.shape[1]
    direct = counts * 2 <= size
    for rows, sizes, solve in (
        (direct.nonzero()[:, 0], counts, _on_kept),
        ((~direct).nonzero()[:, 0], size - counts, _on_removed),
    ):
        # Rows of similar size share a batch, so that little of it is padding.
        rows = rows[torch.argsort(sizes[rows])]
        start = 0
        while start < len(rows):
            width = max(1, int(sizes[rows[start]]))
            limit = max(1, BATCH_BYTES // (width * width * dtype.itemsize))
            batch = rows[start : start + limit]
            batch = batch[sizes[batch] <= max(width + 16, int(width * 1.15))]
            solved[batch] = solve(scaled[batch], mask[batch], hessian)
            start += len(batch)
    result = torch.where(kept, weight, torch.zeros_like(weight))
    result[:, hessian.alive] = (solved / scale).to(weight.dtype)
    return result.masked_fill_(~kept, 0.0)


def _on_kept(weight: Tensor, kept: Tensor, hessian: DampedHessian) -> Tensor:
    matrix = hessian.correlation
    index, valid = _padded_indices(kept)
    system = _gathered(matrix, index, valid)
    # C_K: (w - w_K): what the removed weights did, to be taken over by the kept ones
    target = (weight.masked_fill(kept, 0.0) @ matrix).gather(1, index).masked_fill(~valid, 0.0)
    update = _solve(system, target, hessian)
    result = weight.masked_fill(~kept, 0.0)
    return result.scatter_add(1, index, update)


def _on_removed(weight: Tensor, kept: Tensor, hessian: DampedHessian) -> Tensor:
    inverse = hessian.inverse
    index, valid = _padded_indices(~kept)
    if not index.shape[1]:
        return weight
    system = _gathered(inverse, index, valid)
    multipliers = _solve(system, weight.gather(1, index).masked_fill(~valid, 0.0), hessian)
    dense = torch.zeros_like(weight).scatter_add(1, index, multipliers)
    return (weight - dense @ inverse).masked_fill(~kept, 0.0)


def _padded_indices(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Per row the chosen columns first, cut at the longest row; and which of these entries are real."""
    width = int(chosen.sum(1).max()) if len(chosen) else 0
    index = torch.argsort(~chosen, dim=1, stable=True)[:, :width]
    return index, chosen.gather(1, index)


def _gathered(matrix: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """matrix[index, index] per row of ``index``, identity in the padding."""
    system = matrix[index[:, :, None], index[:, None, :]]
    if not valid.all():
        system.masked_fill_(~(valid[:, :, None] & valid[:, None, :]), 0.0)
        system.diagonal(dim1=1, dim2=2).add_((~valid).to(system.dtype))
    return system


def _solve(system: Tensor, target: Tensor, hessian: DampedHessian) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(system)
    if bool((info != 0).any()):
        raise SingularStatisticsError(
            f"the inputs on the support of {int((info != 0).sum())} rows are linearly dependent with damping "
            f"{hessian.damping:.3g}: use a larger damping"
        )
    return torch.cholesky_solve(target[:, :, None], factor)[:, :, 0]
