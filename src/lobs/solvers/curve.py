"""Where a curve of errors is measured, and what it is between these counts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor

# Curves of so few counts are measured at all of them; of fewer, where each is solved anew.
EVERYWHERE, SOLVED_EVERYWHERE = 1000, 256
# Of larger layers at so many knots. Between these E follows a power of the count: 32 knots then miss a curve by 1 to 2%
# (median) and mostly by 10% at worst; 64 knots and straight lines missed it by 1% and by a third.
KNOTS = 32
# Where E rises so many times between two of them, and faster than this power of the count, up to so many more are set.
CLIFF, STEEP, HALVINGS = 8.0, 4.0, 16
# What is below this share of the largest error is rounding.
ROUNDING = 1e-24


def measured(counts: Iterable[int], errors_at: Callable[[int], Tensor], start: int) -> dict[int, Tensor]:
    """Errors at some counts, and between those where the curve jumps (inputs or weights of very different sizes).

    Args:
        counts: increasing.
        errors_at: a layer's errors at a count, float64, to be summed up.
        start: count up to which nothing is lost.

    Returns:
        By count, in their order.
    """
    found = {count: errors_at(count) for count in counts}
    for _ in range(HALVINGS):
        floor = ROUNDING * max(float(part.sum()) for part in found.values())
        steepest, middle = 1.0, None
        for (left, before), (right, after) in pairwise(sorted(found.items())):
            if left <= start or right - left == 1:
                continue
            rise = max(float(after.sum()), floor) / max(float(before.sum()), floor, sys.float_info.min)
            power = math.log(max(rise, 1.0)) / math.log((right - start) / (left - start))
            if rise > max(CLIFF, steepest) and power > STEEP:
                steepest, middle = rise, (left + right) // 2
        if middle is None:
            break
        found[middle] = errors_at(middle)
    return dict(sorted(found.items()))


def powers_between(knots: Tensor, errors: Tensor, counts: Tensor, start: Tensor | int) -> Tensor:
    """Errors between those at the knots: ``E = a (count - start)^b`` through both neighbours.

    Args:
        knots: counts, non-decreasing along the last axis.
        errors: float64, likewise shaped.
        counts: where the errors are wanted, within the knots.
        start: count up to which nothing is lost; from there to the next knot, and from an error that is 0 but for
            rounding, E is linear.

    Returns:
        Float64, in the shape of ``counts``.
    """
    right = torch.searchsorted(knots, counts).clamp(1, knots.shape[-1] - 1)
    low, high, before, after = (part.gather(-1, at) for part in (knots, errors) for at in (right - 1, right))
    linear = torch.lerp(before, after, _share(counts, low, high))
    share = _share(*((values - start).clamp_min(1).double().log() for values in (counts, low, high)))
    tiny = torch.finfo(torch.float64).tiny
    power = torch.lerp(before.clamp_min(tiny).log(), after.clamp_min(tiny).log(), share).exp()
    power = power.clamp(torch.minimum(before, after), torch.maximum(before, after))
    floor = ROUNDING * errors.amax(-1, keepdim=True)
    between = torch.where((low > start) & (before > floor), power, linear)
    return torch.where(counts == high, after, between)  # a knot's own error without rounding: level parts stay level


def _share(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Where values stand between two others, 0 to 1; 0 where these are the same."""
    return ((values - low).double() / (high - low)).nan_to_num(0.0)


def knot_counts(total: int, knots: int, everywhere: int = EVERYWHERE) -> list[int]:
    """Counts at which a curve is measured: all of a small layer's, else denser towards both ends."""
    if total <= max(everywhere, 4 * knots):
        return list(range(total + 1))
    third = knots // 3
    even = torch.linspace(0, 1, knots - 2 * third, dtype=torch.float64)
    finest = -math.log10(max(1000, 2 * knots))  # below the even steps, however many there are
    ends = torch.logspace(finest, -0.6, third, dtype=torch.float64)
    return (torch.cat([ends, even, 1 - ends]) * total).round().long().unique().tolist()
