"""The best weights for a given mask: least squares on the support, all rows at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lobs.solvers._kernels.rows import side_by_side
from lobs.solvers.hessian import DampedHessian, SingularStatisticsError

# Rows are solved at the same time as long as their gathered systems stay below this; by one thread, in its cache.
BATCH_BYTES, CACHED_BYTES = 256 * 2**20, 8 * 2**20
# Fewer operations are done before threads have started.
FEWEST_OPERATIONS = 2**24


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
    # C_KS w_S for all rows at once: what the removed weights did, to be taken over by the kept ones.
    pulls = torch.zeros_like(scaled)
    pulls[direct] = _times(scaled[direct].masked_fill(mask[direct], 0.0), _of_rows(hessian.correlation, direct))
    inverse = hessian.correlation if direct.all() else hessian.inverse  # made once, before threads ask for it

    def solve(rows: Tensor) -> None:
        if direct[rows[0]]:
            system = _of_rows(hessian.correlation, rows)
            solved[rows] = _on_kept(scaled[rows], mask[rows], pulls[rows], system, hessian)
        else:
            solved[rows] = _on_removed(scaled[rows], mask[rows], _of_rows(inverse, rows), hessian)

    sizes = torch.where(direct, counts, size - counts)
    at_once = torch.get_num_threads() * int(sizes.max()) ** 2 * dtype.itemsize if len(sizes) else 0
    few = float(sizes.double().pow(3).sum()) < FEWEST_OPERATIONS
    together = weight.is_cuda or few or at_once > BATCH_BYTES
    batches = [rows for chosen in (direct, ~direct) for rows in _batches(chosen, sizes, dtype.itemsize, together)]
    if together:
        for rows in batches:
            solve(rows)
    else:
        side_by_side(solve, batches)
    result = torch.where(kept, weight, torch.zeros_like(weight))
    result[:, hessian.alive] = (solved / scale).to(weight.dtype)
    return result.masked_fill_(~kept, 0.0)


def _batches(chosen: Tensor, sizes: Tensor, itemsize: int, together: bool) -> Iterator[Tensor]:
    """Indices of the chosen rows in batches whose systems fit the memory, rows of similar size together."""
    limit = BATCH_BYTES if together else CACHED_BYTES
    rows = chosen.nonzero()[:, 0]
    rows = rows[torch.argsort(sizes[rows])]
    most = len(rows) if together else -(-len(rows) // (4 * torch.get_num_threads()))
    while len(rows):
        width = max(1, int(sizes[rows[0]]))
        batch = rows[: max(1, min(most, limit // (width * width * itemsize)))]
        # Little of a batch may be padding.
        batch = batch[sizes[batch] <= max(width + 16, int(width * 1.15))]
        yield batch
        rows = rows[len(batch) :]


def _of_rows(matrix: Tensor, rows: Tensor) -> Tensor:
    """The matrices of some rows, where every row has its own; else the one of all."""
    return matrix if matrix.dim() == 2 else matrix[rows]


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """Each row times its matrix, or the one of all."""
    return rows @ matrix if matrix.dim() == 2 else torch.bmm(rows[:, None], matrix)[:, 0]


def _on_kept(weight: Tensor, kept: Tensor, pull: Tensor, correlation: Tensor, hessian: DampedHessian) -> Tensor:
    index, valid = _padded_indices(kept)
    system = _gathered(correlation, index, valid)
    update = _solve(system, pull.gather(1, index).masked_fill(~valid, 0.0), hessian)
    return weight.masked_fill(~kept, 0.0).scatter_add(1, index, update)


def _on_removed(weight: Tensor, kept: Tensor, inverse: Tensor, hessian: DampedHessian) -> Tensor:
    index, valid = _padded_indices(~kept)
    if not index.shape[1]:
        return weight
    system = _gathered(inverse, index, valid)
    multipliers = _solve(system, weight.gather(1, index).masked_fill(~valid, 0.0), hessian)
    dense = torch.zeros_like(weight).scatter_add(1, index, multipliers)
    return (weight - _times(dense, inverse)).masked_fill(~kept, 0.0)


def _padded_indices(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Per row the chosen columns first, cut at the longest row; and which of these entries are real."""
    width = int(chosen.sum(1).max()) if len(chosen) else 0
    index = torch.argsort(~chosen, dim=1, stable=True)[:, :width]
    return index, chosen.gather(1, index)


def _gathered(matrix: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """matrix[index, index] per row of ``index`` (of each row's own matrix), identity in the padding."""
    if matrix.dim() == 2:
        system = matrix[index[:, :, None], index[:, None, :]]
    else:
        across = matrix.gather(1, index[:, :, None].expand(-1, -1, matrix.shape[2]))
        system = across.gather(2, index[:, None, :].expand(-1, index.shape[1], -1))
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
