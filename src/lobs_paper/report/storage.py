"""What every method's network takes on disk, and how fast it is before and after compaction, over the seeds.

The final network: after retraining, or as it was pruned where nothing was retrained. Bytes and units follow from the
metrics; milliseconds are those of the latest run.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple

from lobs_paper.report.results import Experiment, Latency, MethodRuns, Run, Storage
from lobs_paper.report.selection import label_of
from lobs_paper.report.statistic import Statistic, fixed, over_seeds, significant, whole
from lobs_paper.report.tables import Record, Row, Table, mean_and_deviation

_BYTES = ("dense_bytes", "sparse_bytes", "compact_bytes")
_COUNTS = ("parameters", "compact_parameters", "removed_units")
_TIMES = ("single_before_ms", "single_after_ms", "batch_before_ms", "batch_after_ms")
STORAGE_COLUMNS = (
    *("experiment", "method", "folder", "label", "seeds"),
    *(f"{name}{kind}" for name in (*_BYTES, *_COUNTS, *_TIMES) for kind in ("", "_deviation")),
    *("batch", "not_compacted"),
)
LATENCY_COLUMNS = ("experiment", "seed", "folder", "network", "batch", "before_ms", "after_ms")


def storage_records(experiments: Iterable[Experiment]) -> list[Record]:
    """Give one record per experiment and method whose files were measured, mean and deviation over the seeds."""
    records = []
    for experiment in experiments:
        for runs in _measured(experiment):
            record: Record = {
                "experiment": experiment.name,
                "method": runs.method,
                "folder": runs.folder,
                "label": label_of(runs),
                "seeds": len(_taken(runs)),
            }
            for name, value in _values(experiment, runs).items():
                record[name], record[f"{name}_deviation"] = mean_and_deviation(value)
            record["batch"] = _batch(experiment, runs)
            record["not_compacted"] = next((taken.not_compacted for taken in _taken(runs) if taken.not_compacted), None)
            records.append(record)
    return records


def latency_records(experiments: Iterable[Experiment]) -> list[Record]:
    """Give the milliseconds as measured, one record per seed, network and batch."""
    return [
        dict(zip(LATENCY_COLUMNS, (experiment.name, entry.seed, entry.folder, *astuple(row)), strict=True))
        for experiment in experiments
        for entry in experiment.timings
        for row in entry.latency
    ]


def storage_table(experiment: Experiment) -> Table:
    """Give the same for one network as a table, one row per method; without rows where nothing was measured."""
    methods = _measured(experiment)
    batches = {_batch(experiment, runs) for runs in methods} - {None}
    many = f"batch of {', '.join(str(batch) for batch in sorted(batches, key=str))}" if batches else "batch"
    columns = (
        *("method", "dense KiB", "sparse KiB", "times smaller", "compacted KiB", "units removed", "parameters left"),
        *("1 image, ms", "compacted, ms", f"{many}, ms", "compacted, ms "),
    )
    rows: list[Row] = []
    for runs in methods:
        values = _values(experiment, runs)
        kib = [fixed(_scaled(values[name], 1 / 1024), 1) for name in _BYTES]
        dense, sparse = values["dense_bytes"], values["sparse_bytes"]
        times = fixed(dense.mean / sparse.mean, 1) if dense and sparse else fixed(None)
        counts = (whole(values["removed_units"]), whole(values["compact_parameters"]))
        spent = (significant(values[name]) for name in _TIMES)
        rows.append((label_of(runs), *kib[:2], times, kib[2], *counts, *spent))
    return Table(columns, rows)


def _measured(experiment: Experiment) -> list[MethodRuns]:
    return [runs for runs in experiment.methods if _taken(runs)]


def _taken(runs: MethodRuns) -> list[Storage]:
    final = (
        run.evaluate.retrained_storage if run.retrain else run.evaluate.storage for run in runs.runs if run.evaluate
    )
    return [taken for taken in final if taken]


def _values(experiment: Experiment, runs: MethodRuns) -> dict[str, Statistic | None]:
    taken = _taken(runs)
    values = {name: over_seeds(getattr(entry, name) for entry in taken) for name in (*_BYTES, *_COUNTS[:2])}
    units = (None if entry.removed_units is None else sum(entry.removed_units.values()) for entry in taken)
    values["removed_units"] = over_seeds(units)
    pairs = [_latencies(experiment, run) for run in runs.runs]
    for index, name in enumerate(("single", "batch")):
        rows = [pair[index] for pair in pairs if pair]
        values[f"{name}_before_ms"] = over_seeds(row.before_ms for row in rows)
        values[f"{name}_after_ms"] = over_seeds(row.after_ms for row in rows)
    return values


def _batch(experiment: Experiment, runs: MethodRuns) -> int | None:
    """Images in the larger batch; of all seeds alike."""
    return next((pair[1].batch for run in runs.runs if (pair := _latencies(experiment, run))), None)


def _latencies(experiment: Experiment, run: Run) -> tuple[Latency, Latency] | None:
    """The final network's times on one image and on the larger batch."""
    place = (run.seed, run.folder, "evaluate")
    timing = next((entry for entry in experiment.timings if (entry.seed, entry.folder, entry.stage) == place), None)
    part = "retrained" if run.retrain else "pruned"
    rows = sorted((row for row in timing.latency if row.network == part), key=lambda row: row.batch) if timing else []
    return (rows[0], rows[-1]) if rows else None


def _scaled(value: Statistic | None, factor: float) -> Statistic | None:
    if value is None:
        return None
    deviation = None if value.deviation is None else value.deviation * factor
    return Statistic(value.mean * factor, deviation, value.count)
