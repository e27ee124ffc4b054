"""The report in short, for the first page and the interactive one: what was run, and a verdict per row of Table 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lobs_paper.report import paper
from lobs_paper.report.comparison import Comparison, compare
from lobs_paper.report.methods import style_of
from lobs_paper.report.reasons import facts_of
from lobs_paper.report.results import Experiment
from lobs_paper.report.statistic import DASH, fixed, over_seeds, significant
from lobs_paper.report.tables import Row, Table
from lobs_paper.report.why import why

# Data that nobody can download without an account.
_NOT_FETCHED = ("ImageNet",)
# The words for a row, in the order in which they are counted.
VERDICTS = ("better", "reproduced", "not reproduced", "not judged", "not run")


@dataclass(frozen=True)
class Line:
    """A row of the paper's Table 1 and ours beside it; `word` is one of VERDICTS, `reason` a few words or empty."""

    row: Comparison
    published: paper.PaperRow
    word: str
    reason: str


def lines(experiments: Sequence[Experiment]) -> list[Line]:
    """Give the paper's rows over all its networks, those that were not run included.

    Args:
        experiments: what was measured.

    Returns:
        A line per row and method of ours that stands for it, the paper's order within a network, networks that were
        not run at the end.
    """
    found = []
    for experiment in experiments:
        reasons = {facts.row.folder: why(facts) for facts in facts_of(experiment)}
        rows = [(row, row.paper) for row in compare(experiment)]
        found += [_line(row, published, reasons.get(row.folder, "")) for row, published in rows if published]
    there = {experiment.name for experiment in experiments}
    return found + [
        _line(Comparison(row.experiment, row.method, None, row, seeds=0), row, "")
        for row in paper.TABLE1
        if row.experiment not in there
    ]


def _line(row: Comparison, published: paper.PaperRow, reason: str) -> Line:
    if row.seeds == 0:
        return Line(row, published, "not run", _not_run(row.experiment))
    if row.decisive is None:
        return Line(row, published, "not judged", row.verdict.removeprefix("not judged: ").replace(DASH, ""))
    return Line(row, published, row.decisive.judgement, reason)


def _not_run(experiment: str) -> str:
    data = paper.DATA.get(experiment)
    return f"needs the {data} data set" if data in _NOT_FETCHED else ""


def counts(found: Sequence[Line]) -> dict[str, int]:
    """Give how many rows have each verdict; those that none has are left out."""
    numbers = {word: sum(line.word == word for line in found) for word in VERDICTS}
    return {word: number for word, number in numbers.items() if number}


def table(found: Sequence[Line]) -> Table:
    """Give the first page's table: a row per line."""
    columns = (
        *(
            "network",
            "method",
            "density %",
            "after pruning: paper",
            "ours",
            "±",
            "after retraining: paper",
            "ours",
            "±",
        ),
        *("source", "verdict", "why"),
    )
    rows: list[Row] = []
    for line in found:
        row, published = line.row, line.published
        density = significant(row.density) if row.density else f"{published.density:g}"
        errors = [
            cell
            for papers, ours in (
                (published.after_pruning, row.after_pruning),
                (published.after_retraining, row.after_retraining),
            )
            for cell in (fixed(papers), fixed(ours), difference(papers, ours.mean if ours else None))
        ]
        word = f"**{line.word}**" if row.decisive else line.word
        name = label(row)
        rows.append(
            (paper.network_of(row.experiment), name, density, *errors, mark(published), word, line.reason or DASH)
        )
    return Table(columns, rows, left=("method", "source", "verdict", "why"))


def label(row: Comparison) -> str:
    """Give our label of a row; the paper's where the method was not run."""
    return row.paper.label if row.folder is None and row.paper else style_of(row.method, row.folder).label


def difference(papers: float | None, ours: float | None) -> str:
    """Print ours less the paper's, in points; a dash where either is missing."""
    return DASH if papers is None or ours is None else f"{ours - papers:+.2f}"


def mark(published: paper.PaperRow) -> str:
    """Give the letters for where the paper's figures come from: recalled, and verified where one of them is."""
    return "r, v" if published.verified else "r"


def what_was_run(experiments: Sequence[Experiment]) -> list[str]:
    """Give a sentence per network: its data, its dense error, how many methods and seeds."""
    texts = []
    for experiment in experiments:
        error = over_seeds(train.test_error_percent for train in experiment.trains.values())
        numbers = {len(runs.runs) for runs in experiment.methods} or {len(experiment.trains)}
        count = " to ".join(map(str, sorted({min(numbers), max(numbers)}))) + f" seed{'s' * (max(numbers) > 1)}"
        dense = f", dense error {fixed(error)}%" if error else ""
        texts.append(f"{title(experiment)}: {len(experiment.methods)} methods, {count} each{dense}.")
    return texts


def machine(experiments: Sequence[Experiment]) -> str:
    """Say in general words where the runs were made, "CPU, 2 threads"; empty where no timing tells."""
    found = {
        f"{timing.device.upper()}, {timing.threads:.0f} threads"
        for experiment in experiments
        for timing in experiment.timings
        if timing.device and timing.threads
    }
    return " and ".join(sorted(found))


def data_of(experiment: Experiment) -> str:
    """Give the data's name as the metrics have it; as the paper has it where they name none, or the same in short."""
    papers = paper.DATA.get(experiment.name, "")
    named = experiment.data or papers
    return papers if named.casefold() == papers.casefold() else named


def title(experiment: Experiment) -> str:
    """Give an experiment's heading: network and data."""
    return ", ".join(part for part in (paper.network_of(experiment.name), data_of(experiment)) if part)
