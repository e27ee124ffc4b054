"""Table 2, Net-Trim against L-OBS at one density: the paper's figures beside ours, and how many inputs each used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lobs_paper.report import paper
from lobs_paper.report.results import Experiment, MethodRuns
from lobs_paper.report.selection import label_of
from lobs_paper.report.statistic import DASH, Statistic, fixed, over_seeds, significant, whole
from lobs_paper.report.tables import Record, Row, Table, mean_and_deviation

# Methods whose densities differ by more than this are not compared.
SAME_DENSITY_POINTS = 0.1
_METHODS = ("net_trim", "net_trim_cascade", "lobs")

COLUMNS = (
    *("experiment", "method", "folder", "label", "source", "seeds"),
    *(f"{name}_{kind}" for name in ("density", "error_after_pruning") for kind in ("paper_percent", "percent")),
    *("density_deviation", "error_after_pruning_deviation", "samples", "samples_deviation"),
)
CAPTION = (
    "Right after pruning, without retraining. Input vectors: how many of each layer's a method was given. L-OBS sums "
    f'them up as they stream by and keeps none; Net-Trim keeps its own in memory. "{paper.UNSURE}": recalled from the '
    "published table without a second source, and it is not known to us whether its density is that of one layer or of "
    "the network; ours is that of the network."
)


@dataclass(frozen=True)
class Entry:
    """One row: the paper's figures, ours over the seeds, or both."""

    method: str
    runs: MethodRuns | None
    published: paper.Table2Row | None
    density: Statistic | None = None
    after_pruning: Statistic | None = None
    samples: Statistic | None = None

    @property
    def label(self) -> str:
        """As tables print it."""
        return label_of(self.runs) if self.runs else label_of(MethodRuns("", self.method, self.method, []))


def entries(experiment: Experiment) -> list[Entry]:
    """Give the rows.

    Args:
        experiment: what was measured.

    Returns:
        Net-Trim's and L-OBS's rows, the paper's also where we have none; nothing for another network.
    """
    if experiment.name != paper.TABLE2_EXPERIMENT or not experiment.methods:
        return []
    published = {row.method: row for row in paper.TABLE2}
    rows: list[Entry] = []
    for method in _METHODS:
        ours = [runs for runs in experiment.methods if runs.method == method]
        rows += [_entry(experiment, runs, published.get(method)) for runs in ours]
        if not ours and method in published:
            rows.append(Entry(method, None, published[method]))
    return rows


def _entry(experiment: Experiment, runs: MethodRuns, published: paper.Table2Row | None) -> Entry:
    prunes = [run.prune for run in runs.runs if run.prune]
    return Entry(
        runs.method,
        runs,
        published,
        density=over_seeds(None if entry.density is None else 100 * entry.density for entry in prunes),
        after_pruning=over_seeds(entry.error_after_pruning_percent for entry in prunes),
        samples=over_seeds(_samples(experiment, runs)),
    )


def _samples(experiment: Experiment, runs: MethodRuns) -> Iterable[float | None]:
    """Per seed the input vectors used: all that were streamed, or those that were kept; None where not known."""
    for run in runs.runs:
        collect = experiment.collects.get(run.seed)
        if runs.method == "lobs":
            yield collect.images if collect else None
        elif run.prune and run.prune.samples_kept:
            yield run.prune.samples_kept
        else:
            yield (collect.samples or None) if collect else None


def records(experiments: Iterable[Experiment]) -> list[Record]:
    """Give the table's records in full precision."""
    found = []
    for experiment in experiments:
        for entry in entries(experiment):
            density, density_deviation = mean_and_deviation(entry.density)
            error, error_deviation = mean_and_deviation(entry.after_pruning)
            samples, samples_deviation = mean_and_deviation(entry.samples)
            published = entry.published
            values = (
                *(experiment.name, entry.method, entry.runs.folder if entry.runs else None, entry.label),
                *(published.source if published else None, len(entry.runs.runs) if entry.runs else 0),
                *(published.density if published else None, density),
                *(published.after_pruning if published else None, error),
                *(density_deviation, error_deviation, samples, samples_deviation),
            )
            found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def table(experiment: Experiment) -> Table:
    """Give the table; without rows for a network that it is not about."""
    columns = (
        *("method", "density %, paper", "ours", "after pruning %, paper", "ours"),
        *("input vectors per layer", "source of the paper's figures"),
    )
    rows: list[Row] = []
    for entry in entries(experiment):
        published = entry.published
        rows.append(
            (
                entry.label,
                significant(published.density if published else None),
                significant(entry.density),
                fixed(published.after_pruning if published else None),
                fixed(entry.after_pruning),
                whole(entry.samples),
                published.source if published else DASH,
            )
        )
    return Table(columns, rows)


def finding(experiment: Experiment) -> str:
    """Say in a sentence how the errors compare; empty where Net-Trim or L-OBS was not run.

    Args:
        experiment: what was measured.

    Returns:
        A sentence for each of our Net-Trim rows: at one density the errors; at two, which method errs less with fewer
        weights, or that the two cannot be compared.
    """
    measured = [entry for entry in entries(experiment) if entry.density and entry.after_pruning]
    lobs = next((entry for entry in measured if entry.method == "lobs"), None)
    if lobs is None or lobs.density is None or lobs.after_pruning is None:
        return ""
    texts = []
    for entry in measured:
        if entry.method == "lobs" or entry.density is None or entry.after_pruning is None:
            continue
        if abs(entry.density.mean - lobs.density.mean) > SAME_DENSITY_POINTS:
            texts.append(_at_different_densities(entry, lobs))
            continue
        texts.append(
            f"At {lobs.density.mean:.3g}% {entry.label} leaves an error of {fixed(entry.after_pruning)}%, "
            f"{lobs.label} one of {fixed(lobs.after_pruning)}%."
        )
    return " ".join(texts)


def _at_different_densities(*pair: Entry) -> str:
    """Which of two methods errs less although it keeps fewer weights; that they are not compared where neither does."""
    known = [(e.density.mean, e.after_pruning, e.label) for e in pair if e.density and e.after_pruning]
    (fewer, smaller, first), (more, larger, second) = sorted(known, key=lambda entry: entry[0])
    if smaller.mean <= larger.mean:
        return (
            f"{first} leaves an error of {fixed(smaller)}% at {fewer:.3g}%, {second} one of {fixed(larger)}% at "
            f"{more:.3g}%, with more weights."
        )
    return (
        f"{pair[0].label} and {pair[1].label} are not at the same density ({known[0][0]:.3g}% and {known[1][0]:.3g}%), "
        "so their errors are not compared."
    )
