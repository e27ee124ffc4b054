"""The report's tables: records in full precision for CSV, and rounded, over the seeds, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lobs_paper.report.comparison import Comparison, compare
from lobs_paper.report.methods import style_of
from lobs_paper.report.results import Experiment, Layer, MethodRuns, Prune, Retrain, Round, Run, Timing
from lobs_paper.report.selection import label_of
from lobs_paper.report.statistic import DASH, Statistic, fixed, over_seeds, significant, whole

Record = dict[str, Any]
Row = tuple[str, ...]

# A network of more layers has them as rows, and not all of them in a figure.
MANY_LAYERS = 8
STAGES = ("train", "collect", "prune", "retrain", "evaluate")
_PLACE = ("experiment", "method", "folder", "seed")


@dataclass(frozen=True)
class Table:
    """A Markdown table of finished texts; the first column and those named in `left` are aligned left, others right."""

    columns: Row
    rows: list[Row]
    left: Row = ()

    def markdown(self) -> str:
        """Give the table as GitHub's Markdown, without a final newline."""
        rule = ("---", *("---" if name in self.left else "---:" for name in self.columns[1:]))
        escaped = ([cell.replace("|", "\\|") for cell in line] for line in (self.columns, rule, *self.rows))
        return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


_COMPARED = ("original_error", "density", "error_after_pruning", "error_after_retraining")
TABLE1_COLUMNS = (
    *("experiment", "method", "folder", "label", "paper_label", "source", "seeds"),
    *(f"{name}_{kind}" for name in _COMPARED for kind in ("paper_percent", "percent", "deviation")),
    *("iterations_paper", "iterations", "iterations_deviation"),
    *("iterations_to_original", "seeds_at_original", "verdict"),
)


def table1_records(experiments: Iterable[Experiment]) -> list[Record]:
    """Give Table 1 with one record per paper row and method; None where either side has no figure."""
    return [_table1_record(row) for experiment in experiments for row in compare(experiment)]


def _table1_record(row: Comparison) -> Record:
    record: Record = {
        "experiment": row.experiment,
        "method": row.method,
        "folder": row.folder,
        "label": _label(row),
        "paper_label": row.paper.label if row.paper else None,
        "source": row.paper.source if row.paper else None,
        "seeds": row.seeds,
    }
    ours = (row.original, row.density, row.after_pruning, row.after_retraining)
    for name, published, value in zip(_COMPARED, _published(row), ours, strict=False):
        record[f"{name}_paper_percent"] = published
        record[f"{name}_percent"], record[f"{name}_deviation"] = mean_and_deviation(value)
    record["iterations_paper"] = row.paper.iterations if row.paper else None
    record["iterations"], record["iterations_deviation"] = mean_and_deviation(row.iterations)
    reached = over_seeds(row.iterations_to_original)
    record["iterations_to_original"], _ = mean_and_deviation(reached)
    record["seeds_at_original"] = reached.count if reached else 0
    record["verdict"] = row.verdict.replace("**", "")
    return record


def table1(experiment: Experiment) -> Table:
    """Give Table 1's rows for one network, the paper's columns beside ours."""
    names = ("original error %", "density %", "after pruning %", "after retraining %", "iterations")
    pairs = (column for name in names for column in (f"{name}, paper", "ours"))
    columns = ("method", *pairs, "until original error", "source of the paper's figures", "verdict")
    rows: list[Row] = []
    for row in compare(experiment):
        ours = (row.original, row.density, row.after_pruning, row.after_retraining, row.iterations)
        printers = (fixed, significant, fixed, fixed, whole)
        cells = [show(value) for show, *pair in zip(printers, _published(row), ours, strict=True) for value in pair]
        source = row.paper.source if row.paper else DASH
        rows.append((_label(row), *cells, until_original(row.iterations_to_original), source, row.verdict))
    return Table(columns, rows)


def _published(row: Comparison) -> tuple[float | None, ...]:
    """The paper's figures in the order of the columns."""
    paper = row.paper
    if paper is None:
        return (None,) * 5
    return (paper.original, paper.density, paper.after_pruning, paper.after_retraining, paper.iterations)


def mean_and_deviation(value: Statistic | None) -> tuple[float | None, float | None]:
    """Give a statistic's two fields of a record; two empty ones for None."""
    return (value.mean, value.deviation) if value else (None, None)


def _label(row: Comparison) -> str:
    """Our label of the row; the paper's where the method was not run."""
    if row.folder is None and row.paper is not None:
        return row.paper.label
    return style_of(row.method, row.folder).label


def until_original(iterations: Sequence[float | None]) -> str:
    """Print after how many iterations the original error was reached again, and by how many seeds unless by all.

    Args:
        iterations: one per retrained seed, None where it was not reached.

    Returns:
        The text; a dash when nothing was retrained.
    """
    reached = over_seeds(iterations)
    if reached is None:
        return "not reached" if iterations else DASH
    missed = reached.count < len(iterations)
    return whole(reached) + (f" ({reached.count} of {len(iterations)} seeds)" if missed else "")


_LAYER_NUMBERS = ("error", "relative_error", "sensitivity_threshold", "bound_contribution", "damping")
LAYER_COLUMNS = (*_PLACE, "layer", "shape", "density", "kept", *_LAYER_NUMBERS)


def layer_records(experiments: Iterable[Experiment]) -> list[Record]:
    """Give one record per experiment, method, seed and layer."""
    return [
        {
            **_place(run),
            "layer": layer.name,
            "shape": _shape(layer),
            **{key: getattr(layer, key) for key in ("density", "kept", *_LAYER_NUMBERS)},
        }
        for run in _runs(experiments)
        for layer in run.layers
    ]


def layers_table(experiment: Experiment) -> Table:
    """Give the layers' densities and relative errors, means over the seeds.

    Args:
        experiment: what was measured.

    Returns:
        One row per method; for a network of many layers one row per layer, two columns per method.
    """
    names = list(dict.fromkeys(layer.name for run in _runs([experiment]) for layer in run.layers))
    if len(names) > MANY_LAYERS:
        return _layers_down(experiment, names)
    columns = ("method", "all %", *(f"{name} %" for name in names), *(f"{name} relative E" for name in names))
    rows: list[Row] = []
    for runs in experiment.methods:
        layers = {name: [layer for run in runs.runs for layer in run.layers if layer.name == name] for name in names}
        errors = [over_seeds(layer.relative_error for layer in entries) for entries in layers.values()]
        if any(layers.values()):
            numbers = (*map(_mean_density, layers.values()), *(significant(e.mean, 2) if e else DASH for e in errors))
            rows.append((label_of(runs), _mean_density([run.prune for run in runs.runs if run.prune]), *numbers))
    return Table(columns, rows)


def _layers_down(experiment: Experiment, names: Sequence[str]) -> Table:
    methods = [runs for runs in experiment.methods if any(run.layers for run in runs.runs)]
    columns = ("layer", *(f"{label_of(runs)}{what}" for runs in methods for what in (" %", ": relative E")))
    rows: list[Row] = []
    for name in names:
        cells: list[str] = []
        for runs in methods:
            layers = [layer for run in runs.runs for layer in run.layers if layer.name == name]
            error = over_seeds(layer.relative_error for layer in layers)
            cells += [_mean_density(layers), significant(error.mean, 2) if error else DASH]
        rows.append((name, *cells))
    return Table(columns, rows)


def _mean_density(entries: Iterable[Layer] | Iterable[Prune]) -> str:
    density = over_seeds(entry.density for entry in entries)
    return significant(100 * density.mean) if density else DASH


def layer_table(runs: MethodRuns) -> Table:
    """Give one method's layers, mean and spread over the seeds; without rows where no layers are known."""
    columns = ("layer", "shape", "density %", "kept", "E", "relative E", "threshold", "bound term", "damping")
    grouped: dict[str, list[Layer]] = {}
    for run in runs.runs:
        for layer in run.layers:
            grouped.setdefault(layer.name, []).append(layer)
    rows: list[Row] = []
    for name, layers in grouped.items():
        kept = whole(over_seeds(layer.kept for layer in layers))
        numbers = [significant(over_seeds(getattr(layer, key) for layer in layers)) for key in _LAYER_NUMBERS]
        rows.append((name, _shape(layers[0]), _density(layers), kept, *numbers))
    return Table(columns, rows)


def _shape(layer: Layer) -> str:
    return "x".join(map(str, layer.shape))


BOUND_COLUMNS = (*_PLACE, "output_error", "bound", "bound_over_error")


def bound_records(experiments: Iterable[Experiment]) -> list[Record]:
    """Give the measured output error and Theorem 3.2's bound, one record per method and seed."""
    records = []
    for run in _runs(experiments):
        if run.evaluate:
            error, bound = run.evaluate.output_error, run.evaluate.bound
            ratio = bound / error if bound is not None and error else None
            records.append({**_place(run), "output_error": error, "bound": bound, "bound_over_error": ratio})
    return records


def bound_table(experiment: Experiment) -> Table:
    """Give the measured output error and the bound, one row per method, over seeds."""
    rows: list[Row] = []
    for runs in experiment.methods:
        records = [record for record in bound_records([experiment]) if record["folder"] == runs.folder]
        pairs = [(record["bound"], record["output_error"]) for record in records]
        known = [(bound, error) for bound, error in pairs if bound is not None and error is not None]
        holds = ("yes" if all(bound >= error for bound, error in known) else "no") if known else DASH
        numbers = [significant(over_seeds(record[key] for record in records)) for key in BOUND_COLUMNS[4:]]
        rows.append((label_of(runs), *numbers, holds))
    return Table(("method", "measured output error", "bound", "bound / measured", "bound holds"), rows)


_ROUND_NUMBERS = ("round", "density", "error_after_pruning_percent", "error_after_retraining_percent", "iterations")
RETRAINING_COLUMNS = (*_PLACE, *_ROUND_NUMBERS)
_OUTCOME_HEADER = ("density %", "after pruning %", "after retraining %", "iterations")


def retraining_records(experiments: Iterable[Experiment]) -> list[Record]:
    """Give one record per method, seed and round of pruning and retraining."""
    return [
        {**_place(run), **{key: getattr(entry, key) for key in _ROUND_NUMBERS}}
        for run in _runs(experiments)
        if run.retrain
        for entry in run.retrain.rounds
    ]


def retraining_table(experiment: Experiment) -> Table:
    """Give the outcome of the retraining, one row per method, over seeds."""
    rows: list[Row] = []
    for runs in experiment.methods:
        retrains = [run.retrained for run in runs.runs if run.retrained]
        rounds = ", ".join(map(str, sorted({len(entry.rounds) for entry in retrains})))
        exact = ("yes" if all(entry.masks_exact for entry in retrains) else "no") if retrains else DASH
        reached = until_original([entry.iterations_to_original for entry in retrains])
        rows.append((label_of(runs), rounds or DASH, *_outcome(retrains), reached, exact))
    return Table(("method", "rounds", *_OUTCOME_HEADER, "until original error", "masks exact"), rows)


def rounds_table(experiment: Experiment) -> Table:
    """Give the rounds of the iterative methods, one row per method and round, over seeds."""
    rows: list[Row] = []
    for runs in experiment.methods:
        rounds = [entry for run in runs.runs if run.retrain for entry in run.retrain.rounds]
        numbers = sorted({entry.round for entry in rounds})
        if len(numbers) > 1:
            for number in numbers:
                entries = [entry for entry in rounds if entry.round == number]
                rows.append((label_of(runs), str(number), *_outcome(entries)))
    return Table(("method", "round", *_OUTCOME_HEADER), rows)


def _outcome(entries: Sequence[Retrain] | Sequence[Round]) -> Row:
    """Density, both errors and iterations over the seeds."""
    return (
        _density(entries),
        fixed(over_seeds(entry.error_after_pruning_percent for entry in entries)),
        fixed(over_seeds(entry.error_after_retraining_percent for entry in entries)),
        whole(over_seeds(entry.iterations for entry in entries)),
    )


def top5_table(experiment: Experiment) -> Table:
    """Give the errors among the five largest outputs, one row per method, over seeds; without rows for few classes."""
    networks = ("dense", "pruned", "retrained")
    rows: list[Row] = []
    for runs in experiment.methods:
        known = [run for run in runs.runs if run.evaluate and run.evaluate.top5]
        shown = networks if any(run.retrained for run in known) else networks[:2]
        errors = [over_seeds(run.evaluate.top5.get(name) if run.evaluate else None for run in known) for name in shown]
        if known:
            density = _density(run.prune for run in known if run.prune)
            rows.append((label_of(runs), density, *map(fixed, errors), *(DASH,) * (len(networks) - len(shown))))
    return Table(("method", "density %", "dense %", "after pruning %", "after retraining %"), rows)


def spread_table(experiment: Experiment) -> Table:
    """Give mean, deviation and range of both errors, one row per method with several seeds; without rows for none."""
    columns = ("method", "seeds", *(f"after {what} %{end}" for what in ("pruning", "retraining") for end in _RANGE))
    rows: list[Row] = []
    for runs in experiment.methods:
        outcomes = [run.outcome for run in runs.runs if run.outcome]
        pruned = [entry.error_after_pruning_percent for entry in outcomes]
        retrained = [run.retrained.error_after_retraining_percent for run in runs.runs if run.retrained]
        if len(runs.runs) > 1:
            seeds = ", ".join(str(run.seed) for run in runs.runs)
            rows.append((label_of(runs), seeds, *_spread(pruned), *_spread(retrained)))
    return Table(columns, rows)


_RANGE = ("", ", least", ", largest")


def _spread(values: Sequence[float | None]) -> Row:
    """Mean with deviation, least and largest."""
    present = [value for value in values if value is not None]
    ends = (min(present), max(present)) if present else (None, None)
    return (fixed(over_seeds(present)), *map(fixed, ends))


TIMING_COLUMNS = ("experiment", "seed", "folder", "stage", "total", "peak_memory_mib", "device", "threads")


def timing_records(experiments: Iterable[Experiment]) -> list[Record]:
    """Give one record per timings.json."""
    return [
        {column: getattr(timing, column) for column in TIMING_COLUMNS}
        for experiment in experiments
        for timing in experiment.timings
    ]


def timing_table(experiment: Experiment) -> Table:
    """Give seconds and peak memory of every stage, over seeds."""
    columns = ("stage", "method", "seconds", "peak memory MiB", "slowest layer", "its seconds", "machine")
    grouped: dict[tuple[str, str], list[Timing]] = {}
    for timing in sorted(experiment.timings, key=_pipeline_order):
        grouped.setdefault((timing.stage, timing.folder), []).append(timing)
    rows: list[Row] = []
    for (stage, folder), timings in grouped.items():
        seconds = fixed(over_seeds(timing.total for timing in timings), 1)
        memory = whole(over_seeds(timing.peak_memory_mib for timing in timings))
        machines = ", ".join(sorted({_machine(timing) for timing in timings}))
        rows.append((stage, folder or DASH, seconds, memory, *_slowest_layer(timings), machines))
    return Table(columns, rows)


def _pipeline_order(timing: Timing) -> tuple[bool, str, int]:
    """First the stages of the dense network, then method by method, each in the order in which the stages run."""
    order = STAGES.index(timing.stage) if timing.stage in STAGES else len(STAGES)
    return (timing.folder != "", timing.folder, order)


def _slowest_layer(timings: Sequence[Timing]) -> Row:
    """The layer with the largest mean time over the seeds, and that time; dashes where none was measured."""
    names = dict.fromkeys(name for timing in timings for name in timing.layers)
    means = {name: over_seeds(timing.layers.get(name) for timing in timings) for name in names}
    known = {name: value for name, value in means.items() if value is not None}
    slowest = max(known, key=lambda name: known[name].mean, default=None)
    return (slowest, fixed(known[slowest])) if slowest else (DASH, DASH)


def _machine(timing: Timing) -> str:
    """The machine in general words, "CPU, 2 threads"."""
    device = timing.device.upper() if timing.device else None
    threads = None if timing.threads is None else f"{timing.threads:.0f} threads"
    return ", ".join(part for part in (device, threads) if part) or DASH


def _density(entries: Iterable[Layer] | Iterable[Prune] | Iterable[Retrain] | Iterable[Round]) -> str:
    """Mean density over the seeds in percent."""
    return significant(over_seeds(None if entry.density is None else 100 * entry.density for entry in entries))


def _runs(experiments: Iterable[Experiment]) -> Iterable[Run]:
    return (run for experiment in experiments for runs in experiment.methods for run in runs.runs)


def _place(run: Run) -> Record:
    return {key: getattr(run, key) for key in _PLACE}
