"""The test errors after pruning with each correction from calibration data, beside the one that was made."""

from __future__ import annotations

from lobs_paper.report.results import Experiment, MethodRuns
from lobs_paper.report.selection import label_of
from lobs_paper.report.statistic import fixed, over_seeds
from lobs_paper.report.tables import Row, Table

_TITLES = {
    "none": "as pruned",
    "bias": "biases corrected",
    "batch_norm": "batch norms estimated anew",
    "both": "both",
}


def table(experiment: Experiment) -> Table:
    """Give one row per method whose network was corrected; without rows where none was."""
    methods = [runs for runs in experiment.methods if _measured(runs)]
    names = [name for name in _TITLES if any(name in found for runs in methods for found, _ in _measured(runs))]
    rows: list[Row] = []
    for runs in methods:
        measured = _measured(runs)
        errors = (fixed(over_seeds(found.get(name) for found, _ in measured)) for name in names)
        made = sorted({_TITLES.get(correction, correction) for _, correction in measured})
        rows.append((label_of(runs), *errors, ", ".join(made)))
    return Table(("method", *(_TITLES[name] for name in names), "made"), rows, left=("made",))


def _measured(runs: MethodRuns) -> list[tuple[dict[str, float], str]]:
    return [
        (run.prune.corrections, run.prune.correction)
        for run in runs.runs
        if run.prune and run.prune.corrections and run.prune.correction
    ]
