"""What came out, in a few sentences; every number comes from the results."""

from __future__ import annotations

from collections.abc import Sequence

from lobs_paper.report import paper, summary, table2
from lobs_paper.report.comparison import DENSITY_POINTS, Comparison, measure
from lobs_paper.report.density import densities_of, error_at
from lobs_paper.report.results import Experiment
from lobs_paper.report.selection import label_of
from lobs_paper.report.statistic import fixed, over_seeds, significant, whole
from lobs_paper.report.summary import Line


def findings(experiments: Sequence[Experiment], lines: Sequence[Line]) -> list[str]:
    """Give the sentences of the first page.

    Args:
        experiments: what was measured.
        lines: the rows of Table 1 with their verdicts.

    Returns:
        A sentence or two each on the verdicts, the headline of every network, what was not reproduced, Table 2 and the
        bound; those without data are left out.
    """
    published = {row.experiment for row in paper.TABLE1}
    headlines = (_headline(entry) if entry.name in published else _unpublished(entry) for entry in experiments)
    texts = [_verdicts(lines), *headlines, _short_of(lines)]
    texts += [table2.finding(experiment) for experiment in experiments] + [_bound(experiments)]
    return [text for text in texts if text]


def _verdicts(lines: Sequence[Line]) -> str:
    counts = summary.counts([line for line in lines if line.row.seeds])
    if not counts:
        return ""
    total = sum(counts.values())
    named = [f"{number} {'is' if number == 1 else 'are'} {word}" for word, number in counts.items()]
    return f"Of {total} rows beside the paper's Table 1, {_and(named)}."


def _headline(experiment: Experiment) -> str:
    """L-OBS at the paper's density, and the method that leaves least there without any retraining."""
    published = next((row for row in paper.TABLE1 if (row.experiment, row.method) == (experiment.name, "lobs")), None)
    rows = {runs.folder: measure(runs, published) for runs in experiment.methods}
    lobs = rows.get("lobs")
    if published is None or lobs is None or not (lobs.after_pruning and lobs.density):
        return ""
    text = (
        f"{summary.title(experiment)} at {significant(lobs.density)}%: L-OBS leaves {fixed(lobs.after_pruning)}% right "
        f"after pruning (paper {fixed(published.after_pruning)}%)"
    )
    if lobs.after_retraining:
        text += (
            f" and {fixed(lobs.after_retraining)}% after {whole(lobs.iterations)} iterations "
            f"(paper {fixed(published.after_retraining)}%, {whole(published.iterations)})"
        )
    best = _least(experiment, rows, lobs)
    return f"{text}; {best}." if best else f"{text}."


def _unpublished(experiment: Experiment) -> str:
    """Of a network that Table 1 does not have: what is best and worst without retraining, least and most cut."""
    densities = densities_of(experiment)
    texts = []
    for percent in dict.fromkeys((*densities[:1], *densities[-1:])):
        found = [(error_at(runs, percent / 100), label_of(runs)) for runs in experiment.methods]
        ranked = sorted((error.mean, label, error) for error, label in found if error)
        named = [f"{label} {fixed(error)}%" for _, label, error in (*ranked[:1], *ranked[1:][-1:])]
        texts += [f"at {percent:g}% {' and '.join(named)}"] if named else []
    if not texts:
        return ""
    dense = over_seeds(train.test_error_percent for train in experiment.trains.values())
    return f"{summary.title(experiment)}, dense {fixed(dense)}%, without retraining: {'; '.join(texts)}."


def _least(experiment: Experiment, rows: dict[str, Comparison], lobs: Comparison) -> str:
    """The method cut only once that leaves least at L-OBS's density, without retraining."""
    found: list[tuple[float, str]] = []
    for runs in experiment.methods:
        row = rows[runs.folder]
        once = all(len(run.retrain.rounds) <= 1 for run in runs.runs if run.retrain)
        near = row.density and lobs.density and abs(row.density.mean - lobs.density.mean) <= DENSITY_POINTS / 10
        if once and near and row.after_pruning:
            found.append((row.after_pruning.mean, f"{label_of(runs)} leaves {fixed(row.after_pruning)}%"))
    if not found or lobs.after_pruning is None or min(found)[0] >= lobs.after_pruning.mean:
        return ""
    return f"without any retraining {min(found)[1]}"


def _short_of(lines: Sequence[Line]) -> str:
    missed = []
    for line in lines:
        judged = line.row.decisive
        if judged and judged.judgement == "not reproduced":
            name = f"{summary.label(line.row)} on {paper.network_of(line.row.experiment)}"
            missed.append(f"{name} ({judged.stage} {judged.ours - judged.papers:+.2f} points)")
    return f"Not reproduced: {_and(missed)}." if missed else ""


def _bound(experiments: Sequence[Experiment]) -> str:
    pairs = [
        (run.evaluate.bound, run.evaluate.output_error)
        for experiment in experiments
        for runs in experiment.methods
        for run in runs.runs
        if run.evaluate and run.evaluate.bound is not None and run.evaluate.output_error
    ]
    if not pairs:
        return ""
    broken = sum(bound < error for bound, error in pairs)
    ratios = [bound / error for bound, error in pairs]
    holds = f"holds in all {len(pairs)} runs" if not broken else f"fails in {broken} of {len(pairs)} runs"
    least, most = significant(min(ratios)), significant(max(ratios))
    return f"Theorem 3.2's bound {holds}; it is {least} to {most} times the measured error."


def _and(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
