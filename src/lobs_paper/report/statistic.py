"""Numbers over seeds: mean and spread, and how they are printed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

DASH = "-"


@dataclass(frozen=True)
class Statistic:
    """Mean over the seeds, from two seeds on their sample standard deviation, and the ends; false without any value."""

    mean: float = math.nan
    deviation: float = math.nan
    count: int = 0
    low: float = math.nan
    high: float = math.nan

    def __bool__(self) -> bool:
        return self.count > 0


def statistic(values: Iterable[float | None]) -> Statistic:
    """Summarise the values that are there, one per seed; None and NaN are not."""
    present = [float(value) for value in values if value is not None and value == value]
    if not present:
        return Statistic()
    finite = len(present) > 1 and all(map(math.isfinite, present))
    deviation = statistics.stdev(present) if finite else math.nan
    return Statistic(math.fsum(present) / len(present), deviation, len(present), min(present), max(present))


def fixed(value: Statistic | float | None, digits: int = 2) -> str:
    """Print with a fixed number of decimals, "3.10" or "3.10 ± 0.12"; a dash for None."""
    return _show(value, lambda number: f"{number:.{digits}f}")


def significant(value: Statistic | float | None, digits: int = 3) -> str:
    """Print with a number of significant digits, "0.00123" or "586 ± 12" (two for the spread); a dash for None."""
    return _show(value, lambda number: _rounded(number, digits), lambda number: _rounded(number, 2))


def whole(value: Statistic | float | None) -> str:
    """Print a count, thousands separated by commas, "1,234" or "1,234 ± 5"; a dash for None."""
    return _show(value, lambda number: f"{number:,.0f}")


def _rounded(number: float, digits: int) -> str:
    """Significant digits without an exponent for large numbers: their whole part is printed."""
    large = 10**digits <= abs(number) < 1e9
    return f"{number:,.0f}" if large else f"{number:.{digits}g}"


def _show(
    value: Statistic | float | None,
    show: Callable[[float], str],
    show_deviation: Callable[[float], str] | None = None,
) -> str:
    """Print mean and deviation; no deviation where all seeds agree."""
    if isinstance(value, Statistic):
        spread = f" ± {(show_deviation or show)(value.deviation)}" if value.deviation > 0 else ""
        return show(value.mean) + spread if value else DASH
    return DASH if value is None or value != value else show(value)
