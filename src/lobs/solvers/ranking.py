"""From scores to the order in which weights leave: by count, never by threshold; ties by position."""

from __future__ import annotations

import re

import torch
from torch import Tensor


def parse_pattern(pattern: str | None, features: int) -> tuple[int, int] | None:
    """``"2:4"`` -> (2, 4): of every 4 consecutive inputs of a unit, 2 are kept in the end.

    Returns:
        N and M, None for no pattern.

    Raises:
        ValueError: the text is not of that form, 0 <= N < M does not hold, or M does not divide the inputs.
    """
    if pattern is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", str(pattern))
    if not match or not 0 <= int(match[1]) < int(match[2]):
        raise ValueError(f"pattern must read N:M with 0 <= N < M (kept of consecutive inputs), got {pattern!r}")
    kept, group = int(match[1]), int(match[2])
    if features % group:
        raise ValueError(f"pattern {pattern}: {group} does not divide the layer's {features} inputs")
    return kept, group


def leaving_zeros(zeros: Tensor, parsed: tuple[int, int] | None) -> Tensor:
    """The weights that leave before all others: zeros, the first M - N of every group where a pattern keeps N.

    Args:
        zeros: bool ``[out, features]``, where the weight is zero.
        parsed: N and M from `parse_pattern`.

    Returns:
        bool ``[out, features]``.
    """
    if parsed is None:
        return zeros
    kept, group = parsed
    grouped = zeros.unflatten(1, (-1, group))
    return (grouped & (grouped.cumsum(2) <= group - kept)).flatten(1)


def rank_by_score(
    scores: Tensor, zeros: Tensor, pattern: str | None = None, per_row: bool = False
) -> tuple[Tensor, int]:
    """Ranks of all weights: those that are zero first, then the smallest score first.

    Args:
        scores: ``[out, features]``.
        zeros: bool likewise, where the weight is zero.
        pattern: N:M; in each group only the M-N smallest scores may leave.
        per_row: every row loses its n-th weight before any row loses its (n+1)-th (Wanda's comparison group), zeros
            counted.

    Returns:
        rank: int32 ``[out, features]``; weights that never leave have ranks >= total.
        total: how many weights may leave.

    Raises:
        ValueError: a score is NaN, or the pattern does not fit.
    """
    if torch.isnan(scores).any():
        raise ValueError("a score is NaN: the layer's weight or its statistics are not finite")
    rows, features = scores.shape
    scores = scores.masked_fill(zeros, float("-inf"))
    removable = torch.ones_like(scores, dtype=torch.bool)
    parsed = parse_pattern(pattern, features)
    if parsed:
        kept, group = parsed
        within = row_ranks(scores.reshape(-1, group))
        removable = (within < group - kept).reshape(rows, features)
    total = int(removable.sum())
    if per_row:
        keys = row_ranks(scores.masked_fill(~removable, float("inf"))).masked_fill(zeros & removable, -1)
        order = torch.argsort(scores.flatten(), stable=True)
        order = order[torch.argsort(keys.flatten()[order], stable=True)]
    else:
        order = torch.argsort(scores.masked_fill(~removable, float("inf")).flatten(), stable=True)
        if parsed:  # an infinite score that may leave goes before one that may not
            order = order[torch.argsort(~removable.flatten()[order], stable=True)]
    return ranks_of_order(order).reshape(rows, features), total


def row_ranks(scores: Tensor) -> Tensor:
    """The rank of each entry within its row, smallest first, ties by position."""
    return scores.argsort(dim=-1, stable=True).argsort(dim=-1)


def ranks_of_order(order: Tensor) -> Tensor:
    """The inverse permutation of ``order``, as int32."""
    rank = torch.empty(order.numel(), dtype=torch.int32, device=order.device)
    rank[order] = torch.arange(order.numel(), dtype=torch.int32, device=order.device)
    return rank
