"""Our figures beside the paper's Table 1, and a verdict per row by the rules that RULES states to the reader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lobs_paper.report import paper
from lobs_paper.report.results import Experiment, MethodRuns
from lobs_paper.report.statistic import DASH, Statistic, over_seeds

Judgement = Literal["reproduced", "better", "not reproduced"]
Stage = Literal["after pruning", "after retraining"]
_WORST_FIRST: tuple[Judgement, ...] = ("not reproduced", "reproduced", "better")

# What still counts as the same. On 10,000 test images the difference of two independent errors has a standard
# deviation of 0.24 points near 3% and of 0.19 points near 1.8%.
AFTER_PRUNING_POINTS = 0.5
AFTER_RETRAINING_POINTS = 0.2
DENSITY_POINTS = 1.0

RULES = (
    f"An error counts as reproduced when it lies within {AFTER_PRUNING_POINTS} points of the paper's (after pruning) "
    f"or within {AFTER_RETRAINING_POINTS} points (after retraining); beyond that it is better or not reproduced. "
    "A row is as good as the worse of its two errors. Iterations are ours to choose and are stated, not judged. "
    f"Rows whose densities differ by more than {DENSITY_POINTS:g} point are not judged."
)
UNTIL_ORIGINAL = (
    "Until original error: the iteration, counted over all rounds, at which the network at its final density was first "
    "measured to be no worse than the dense one."
)


@dataclass(frozen=True)
class Judged:
    """One error of a row, ours (mean over the seeds) beside the paper's, in percent, and what that makes it."""

    stage: Stage
    ours: float
    papers: float
    judgement: Judgement


@dataclass(frozen=True)
class Comparison:
    """One row of Table 1: the paper's figures, ours over the seeds, or both; errors and densities in percent.

    `iterations_to_original` holds one value per retrained seed, None where the original error was not reached again.
    """

    experiment: str
    method: str
    folder: str | None
    paper: paper.PaperRow | None
    seeds: int
    original: Statistic | None = None
    density: Statistic | None = None
    after_pruning: Statistic | None = None
    after_retraining: Statistic | None = None
    iterations: Statistic | None = None
    iterations_to_original: tuple[float | None, ...] = ()

    @property
    def judged(self) -> tuple[Judged, ...]:
        """The errors that can be judged: those that both sides have, at comparable densities."""
        if self.paper is None or self.density is None or abs(self.density.mean - self.paper.density) > DENSITY_POINTS:
            return ()
        pairs: tuple[tuple[Stage, Statistic | None, float | None, float], ...] = (
            ("after pruning", self.after_pruning, self.paper.after_pruning, AFTER_PRUNING_POINTS),
            ("after retraining", self.after_retraining, self.paper.after_retraining, AFTER_RETRAINING_POINTS),
        )
        return tuple(
            Judged(stage, ours.mean, papers, judge(ours.mean, papers, points))
            for stage, ours, papers, points in pairs
            if ours is not None and papers is not None
        )

    @property
    def decisive(self) -> Judged | None:
        """The error that decides on the row: the worse one, after pruning where both are alike; None without any."""
        return min(self.judged, key=lambda part: _WORST_FIRST.index(part.judgement), default=None)

    @property
    def verdict(self) -> str:
        """Verdict of the row with the differences, or why there is none."""
        return _verdict(self)


def compare(experiment: Experiment) -> list[Comparison]:
    """Set an experiment's methods beside the paper's rows for its network.

    Args:
        experiment: what was measured.

    Returns:
        The paper's rows in its order, one per method of ours that stands for it, then our further methods.
    """
    rows = [row for row in paper.TABLE1 if row.experiment == experiment.name]
    compared: list[Comparison] = []
    for row in rows:
        ours = [runs for runs in experiment.methods if paper.paper_method(runs.method) == row.method]
        compared += [measure(runs, row) for runs in ours] or [
            Comparison(experiment.name, row.method, None, row, seeds=0)
        ]
    listed = {row.method for row in rows}
    further = [runs for runs in experiment.methods if paper.paper_method(runs.method) not in listed]
    return compared + [measure(runs, None) for runs in further]


def measure(runs: MethodRuns, row: paper.PaperRow | None = None) -> Comparison:
    """Summarise one method over its seeds.

    Args:
        runs: of the method.
        row: the paper's row to set beside it.

    Returns:
        The row; the error and density are those after all rounds, or of pruning where nothing was retrained.
    """
    outcomes = [run.outcome for run in runs.runs if run.outcome]
    retrains = [run.retrained for run in runs.runs if run.retrained]
    return Comparison(
        experiment=runs.experiment,
        method=runs.method,
        folder=runs.folder,
        paper=row,
        seeds=len(runs.runs),
        original=over_seeds(entry.error_before_percent for entry in outcomes),
        density=over_seeds(None if entry.density is None else 100 * entry.density for entry in outcomes),
        after_pruning=over_seeds(entry.error_after_pruning_percent for entry in outcomes),
        after_retraining=over_seeds(entry.error_after_retraining_percent for entry in retrains),
        iterations=over_seeds(entry.iterations for entry in retrains),
        iterations_to_original=tuple(entry.iterations_to_original for entry in retrains),
    )


def judge(ours: float, papers: float, points: float) -> Judgement:
    """Judge an error: reproduced within `points` of the paper's, better below, not reproduced above."""
    if ours < papers - points:
        return "better"
    return "reproduced" if ours <= papers + points else "not reproduced"


def _verdict(row: Comparison) -> str:
    if row.paper is None:
        return "no such row in the paper"
    if row.seeds == 0:
        return "not run"
    if row.density is None:
        return DASH
    if abs(row.density.mean - row.paper.density) > DENSITY_POINTS:
        return f"not judged: density {row.density.mean:.3g}% against {row.paper.density:g}%"
    if row.decisive is None:
        return DASH
    texts = [f"{part.stage} {part.judgement} ({part.ours - part.papers:+.2f} points)" for part in row.judged]
    if row.iterations is not None:
        texts.append(f"with {row.iterations.mean / row.paper.iterations:.2g} times the paper's iterations")
    return f"**{row.decisive.judgement}**: " + "; ".join(texts)
