"""Takes the curves of runs whose files are not here from the CSV files that an earlier report wrote for its figures.

git holds the runs' metrics and the report, DVC's cache their curves. Where only the former are at hand (a clean clone,
a pipeline that ran elsewhere), the report is still written in full: a figure's numbers stand beside it. What a run's
own files hold always comes first, and nothing is taken over for a run that has no metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from lobs_paper.report.paper import figure_stem
from lobs_paper.report.records import load_rows
from lobs_paper.report.results import (
    AccuracyPoint,
    DensityPoint,
    Experiment,
    Histogram,
    Latency,
    MethodRuns,
    PathPoint,
    RetrainPoint,
    Run,
    Timing,
)

Point = TypeVar("Point")
Key = tuple[str, float]
_TIMED_STAGE = "evaluate"  # the one that measures milliseconds
_SMALL = -3  # log10 of the sensitivity below which Figure 3 states a share


@dataclass(frozen=True)
class _Place:
    """Which run a row belongs to."""

    folder: str
    seed: float


@dataclass(frozen=True)
class _Bin:
    """A row of Figure 3's CSV."""

    log10_from: float
    log10_to: float
    weights: float


@dataclass(frozen=True)
class _TimingRow:
    """A row of timings.csv."""

    experiment: str
    seed: float
    folder: str
    stage: str
    total: float | None
    peak_memory_mib: float | None
    device: str
    threads: float | None


@dataclass(frozen=True)
class _LatencyRow:
    """A row of latency.csv."""

    experiment: str
    seed: float
    folder: str
    network: str
    batch: float
    before_ms: float
    after_ms: float


@dataclass(frozen=True)
class _Clock:
    """What an earlier report tells of the clock."""

    timings: list[_TimingRow]
    latencies: list[_LatencyRow]


def restore(experiments: Sequence[Experiment], reports_dir: Path) -> list[Experiment]:
    """Fill in what the runs lack from an earlier report.

    Args:
        experiments: as loaded from the runs.
        reports_dir: folder of the report; it need not exist.

    Returns:
        The experiments, each curve and timing either the runs' own or the earlier report's.

    Raises:
        ValueError: one of the report's CSV files is broken (named in the message).
    """
    clock = _Clock(
        load_rows(reports_dir / "timings.csv", _TimingRow), load_rows(reports_dir / "latency.csv", _LatencyRow)
    )
    return [_restored(experiment, reports_dir, clock) for experiment in experiments]


def _restored(experiment: Experiment, reports_dir: Path, clock: _Clock) -> Experiment:
    name = experiment.name
    curves: dict[str, dict[Key, list[Any]]] = {
        "density_curve": _rows(reports_dir / f"density-{name}.csv", DensityPoint),
        "first_layer_curve": _rows(reports_dir / f"{figure_stem(2, name)}.csv", AccuracyPoint),
        "retrain_curve": _rows(reports_dir / f"{figure_stem(4, name)}.csv", RetrainPoint),
        "paths": _rows(reports_dir / f"{figure_stem(5, name)}.csv", PathPoint),
    }
    bins = _rows(reports_dir / f"{figure_stem(3, name)}.csv", _Bin)

    def restored(run: Run) -> Run:
        key = (run.folder, float(run.seed))
        lacking = [curve for curve in curves if not getattr(run, curve) and key in curves[curve]]
        missing: dict[str, Any] = {curve: curves[curve][key] for curve in lacking}
        histogram = run.histogram or (_histogram(bins[key]) if key in bins else None)
        return replace(run, **missing, histogram=histogram)

    methods = [
        MethodRuns(runs.experiment, runs.method, runs.folder, [restored(run) for run in runs.runs])
        for runs in experiment.methods
    ]
    known = [*experiment.timings, *_timings(experiment, clock)]
    known.sort(key=lambda entry: (entry.seed, *(part for part in (entry.folder, entry.stage) if part)))
    return replace(experiment, methods=methods, timings=known)


def _rows(path: Path, cls: type[Point]) -> dict[Key, list[Point]]:
    """The points of a figure's CSV by run."""
    found: dict[Key, list[Point]] = {}
    for place, point in zip(load_rows(path, _Place), load_rows(path, cls), strict=True):
        found.setdefault((place.folder, place.seed), []).append(point)
    return found


def _histogram(bins: list[_Bin]) -> Histogram:
    counts = tuple(_plain(entry.weights) for entry in bins)
    below = sum(entry.weights for entry in bins if entry.log10_to <= _SMALL)
    edges = (bins[0].log10_from, *(entry.log10_to for entry in bins))
    return Histogram(edges, counts, below / sum(counts) if any(counts) else 0.0)


def _timings(experiment: Experiment, clock: _Clock) -> list[Timing]:
    """The timings of an earlier report for the runs that are still there and have none of their own."""
    there = {(run.seed, run.folder) for runs in experiment.methods for run in runs.runs}
    there |= {(seed, "") for seed in experiment.trains}
    own = {(entry.seed, entry.folder, entry.stage) for entry in experiment.timings}
    latencies: dict[tuple[float, str], list[Latency]] = {}
    for line in clock.latencies:
        if line.experiment == experiment.name:
            latency = Latency(line.network, int(line.batch), line.before_ms, line.after_ms)
            latencies.setdefault((line.seed, line.folder), []).append(latency)
    return [
        Timing(
            *(row.experiment, seed, row.folder, row.stage, row.total, row.peak_memory_mib, _plain(row.threads)),
            device=row.device or None,
            latency=tuple(latencies.get((seed, row.folder), ())) if row.stage == _TIMED_STAGE else (),
        )
        for row in clock.timings
        if row.experiment == experiment.name
        and ((seed := int(row.seed)), row.folder) in there
        and (seed, row.folder, row.stage) not in own
    ]


def _plain(number: Any) -> Any:
    """A whole number as such, as the stages write it: the next CSV then reads like this one."""
    return int(number) if number is not None and number.is_integer() else number
