"""From scores to the order in which weights leave: by count, never by threshold; ties by position."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor


class Pattern(NamedTuple):
    """N:M, of every M inputs of a unit N are kept in the end.

    Attributes:
        kept: N.
        size: M.
        step: how far apart a group's inputs are: 1, or the places in a convolution's kernel, whose channels then make
            up the groups, each place by itself. That is what sparse tensor cores read.
    """

    kept: int
    size: int
    step: int = 1

    @property
    def width(self) -> int:
        """How many columns next to each other hold whole groups."""
        return self.size * self.step

    def grouped(self, values: Tensor) -> Tensor:
        """``[..., features]`` as ``[..., groups, M]``."""
        return values.unflatten(-1, (-1, self.size, self.step)).transpose(-1, -2).flatten(-3, -2)

    def flat(self, groups: Tensor) -> Tensor:
        """``[..., groups, M]`` as ``[..., features]`` again."""
        return groups.unflatten(-2, (-1, self.step)).transpose(-1, -2).flatten(-3)


def read_pattern(pattern: str | Pattern) -> Pattern:
    """``"2:4"`` -> (2, 4): of every 4 consecutive inputs of a unit, 2 are kept in the end.

    Returns:
        The pattern.

    Raises:
        ValueError: the text is not of that form, or 0 <= N < M does not hold.
    """
    if isinstance(pattern, Pattern):
        return pattern
    match = re.fullmatch(r"(\d+):(\d+)", str(pattern))
    if not match or not 0 <= int(match[1]) < int(match[2]):
        raise ValueError(f"pattern must read N:M with 0 <= N < M (kept of consecutive inputs), got {pattern!r}")
    return Pattern(int(match[1]), int(match[2]))


def parse_pattern(pattern: str | Pattern | None, features: int) -> Pattern | None:
    """A pattern for a layer of so many inputs.

    Returns:
        The pattern, None for none.

    Raises:
        ValueError: the text is no pattern (`read_pattern`), or M does not divide the inputs.
    """
    if pattern is None:
        return None
    found = read_pattern(pattern)
    if features % found.width:
        what = f"{features} inputs" if found.step == 1 else f"{features // found.step} input channels"
        raise ValueError(f"pattern {found.kept}:{found.size}: {found.size} does not divide the layer's {what}")
    return found


def leaving_zeros(zeros: Tensor, parsed: Pattern | None) -> Tensor:
    """The weights that leave before all others: zeros, the first M - N of every group where a pattern keeps N.

    Args:
        zeros: bool ``[out, features]``, where the weight is zero.
        parsed: from `parse_pattern`.

    Returns:
        bool ``[out, features]``.
    """
    if parsed is None:
        return zeros
    grouped = parsed.grouped(zeros)
    return parsed.flat(grouped & (grouped.cumsum(-1) <= parsed.size - parsed.kept))


def rank_by_score(
    scores: Tensor, zeros: Tensor, pattern: str | Pattern | None = None, per_row: bool = False
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
        removable = parsed.flat(row_ranks(parsed.grouped(scores)) < parsed.size - parsed.kept)
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
