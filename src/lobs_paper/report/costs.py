"""What every method costs beside what it reaches: errors, iterations, seconds and peak memory, over the seeds."""

from __future__ import annotations

from collections.abc import Iterable

from lobs_paper.report.comparison import Comparison, measure
from lobs_paper.report.results import Experiment, MethodRuns, Run, Timing
from lobs_paper.report.selection import label_of
from lobs_paper.report.statistic import Statistic, fixed, over_seeds, significant, whole
from lobs_paper.report.tables import Record, Row, Table, mean_and_deviation

_ERRORS = ("error_before", "density", "error_after_pruning", "error_after_retraining")
_COSTS = (
    *("iterations", "prune_seconds", "retrain_seconds", "seconds"),
    *("prune_peak_mib", "retrain_peak_mib", "collect_peak_mib"),
)
METHOD_COLUMNS = (
    *("experiment", "method", "folder", "label", "seeds"),
    *(f"{name}_{kind}" for name in _ERRORS for kind in ("percent", "deviation")),
    *(f"{name}{kind}" for name in _COSTS for kind in ("", "_deviation")),
)


def method_records(experiments: Iterable[Experiment]) -> list[Record]:
    """Give one record per experiment and method, mean and sample standard deviation over the seeds."""
    records = []
    for experiment in experiments:
        for runs in experiment.methods:
            row = measure(runs)
            record: Record = {
                "experiment": experiment.name,
                "method": runs.method,
                "folder": runs.folder,
                "label": label_of(runs),
                "seeds": row.seeds,
            }
            for name, value in zip(_ERRORS, _errors(row), strict=True):
                record[f"{name}_percent"], record[f"{name}_deviation"] = mean_and_deviation(value)
            for name, value in _costs(experiment, runs, row).items():
                record[name], record[f"{name}_deviation"] = mean_and_deviation(value)
            records.append(record)
    return records


def method_table(experiment: Experiment) -> Table:
    """Give the same for one network as a table, one row per method."""
    columns = (
        *("method", "seeds", "error before %", "density %", "after pruning %", "after retraining %", "iterations"),
        *("pruning s", "retraining s", "both s", "peak MiB, pruning", "peak MiB, retraining"),
    )
    rows: list[Row] = []
    for runs in experiment.methods:
        row = measure(runs)
        before, density, *after = _errors(row)
        costs = _costs(experiment, runs, row)
        seconds = (fixed(costs[name], 1) for name in ("prune_seconds", "retrain_seconds", "seconds"))
        memory = (whole(costs[name]) for name in ("prune_peak_mib", "retrain_peak_mib"))
        errors = (fixed(before), significant(density), *map(fixed, after))
        rows.append((label_of(runs), str(row.seeds), *errors, whole(row.iterations), *seconds, *memory))
    return Table(columns, rows)


def collect_costs(experiment: Experiment) -> tuple[Statistic | None, Statistic | None]:
    """Give seconds and peak memory of the calibration pass, which all methods share."""
    timings = [timing for timing in experiment.timings if (timing.folder, timing.stage) == ("", "collect")]
    return over_seeds(entry.total for entry in timings), over_seeds(entry.peak_memory_mib for entry in timings)


def _errors(row: Comparison) -> tuple[Statistic | None, ...]:
    return row.original, row.density, row.after_pruning, row.after_retraining


def _costs(experiment: Experiment, runs: MethodRuns, row: Comparison) -> dict[str, Statistic | None]:
    timings = {(entry.seed, entry.folder, entry.stage): entry for entry in experiment.timings}
    prunes, retrains = (
        [timings.get((run.seed, run.folder, stage)) for run in runs.runs] for stage in ("prune", "retrain")
    )
    both = [_both(run, *pair) for run, *pair in zip(runs.runs, prunes, retrains, strict=True)]
    values = (
        row.iterations,
        over_seeds(entry.total if entry else None for entry in prunes),
        over_seeds(entry.total if entry else None for entry in retrains),
        over_seeds(both),
        over_seeds(entry.peak_memory_mib if entry else None for entry in prunes),
        over_seeds(entry.peak_memory_mib if entry else None for entry in retrains),
        collect_costs(experiment)[1],
    )
    return dict(zip(_COSTS, values, strict=True))


def _both(run: Run, prune: Timing | None, retrain: Timing | None) -> float | None:
    """Seconds of both stages; of pruning alone where nothing was retrained; None where a stage's are not known."""
    parts = [prune, retrain] if run.retrain else [prune]
    seconds = [entry.total if entry else None for entry in parts]
    known = [value for value in seconds if value is not None]
    return sum(known) if len(known) == len(seconds) else None
