"""What a figure draws: which methods, in which panel, with which numbers behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lobs_paper.report.methods import style_of
from lobs_paper.report.results import Experiment, MethodRuns, Run

PLACE = ("experiment", "method", "folder", "seed")
# More lines than this in one panel cannot be told apart: they get two.
_MOST_LINES = 6


def place(runs: MethodRuns, run: Run) -> dict[str, Any]:
    """Give the first fields of every record."""
    return dict(zip(PLACE, (runs.experiment, runs.method, runs.folder, run.seed), strict=True))


def point_records(experiment: Experiment, curve: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Give one record per point of a curve, over all methods and seeds.

    Args:
        experiment: what was measured.
        curve: an attribute of `Run`.
        columns: the attributes of its points.

    Returns:
        The records.
    """
    return [
        {**place(runs, run), **{column: getattr(point, column) for column in columns}}
        for runs in experiment.methods
        for run in runs.runs
        for point in getattr(run, curve)
    ]


def distinct(experiment: Experiment, curve: str) -> tuple[list[MethodRuns], str]:
    """Join methods that have the same curve on all seeds that they share: one criterion, used in several ways.

    Args:
        experiment: whose methods.
        curve: an attribute of `Run`.

    Returns:
        The methods to draw, those without a curve left out, each with all seeds of those that it stands for; and
        sentences on the others.
    """
    kept: list[MethodRuns] = []
    twins: list[list[str]] = []
    for runs in experiment.methods:
        present = [run for run in runs.runs if getattr(run, curve)]
        index = next((i for i, other in enumerate(kept) if _same(present, other.runs, curve)), None)
        if index is not None:
            kept[index] = _joined(kept[index], present)
            twins[index].append(label_of(runs))
        elif present:
            kept.append(MethodRuns(runs.experiment, runs.method, runs.folder, present))
            twins.append([])
    return kept, "".join(map(_twins_note, kept, twins))


def _same(some: Sequence[Run], others: Sequence[Run], curve: str) -> bool:
    """Whether two methods share a seed, and their curves are equal on all that they share."""
    known = {run.seed: getattr(run, curve) for run in others}
    shared = [run for run in some if run.seed in known]
    return bool(shared) and all(getattr(run, curve) == known[run.seed] for run in shared)


def _joined(first: MethodRuns, more: Sequence[Run]) -> MethodRuns:
    """A method with the runs of another one on the seeds that it lacks."""
    seeds = {run.seed for run in first.runs}
    runs = sorted([*first.runs, *(run for run in more if run.seed not in seeds)], key=lambda run: run.seed)
    return MethodRuns(first.experiment, first.method, first.folder, runs)


def _twins_note(first: MethodRuns, labels: Sequence[str]) -> str:
    if not labels:
        return ""
    names = labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
    return f" {names} {'has' if len(labels) == 1 else 'have'} the same curve as {label_of(first)}."


def label_of(runs: MethodRuns) -> str:
    """Give a method's label as every table and figure prints it."""
    return style_of(runs.method, runs.folder).label


def panels_of(methods: Sequence[MethodRuns]) -> list[list[MethodRuns]]:
    """Share many methods out between two panels: the layer-wise ones, and their competitors with L-OBS.

    Args:
        methods: to draw.

    Returns:
        The methods of each panel; one panel where they are few or all of one kind.
    """
    layer_wise = [runs for runs in methods if style_of(runs.method).layer_wise]
    others = [runs for runs in methods if not style_of(runs.method).layer_wise or runs.method == "lobs"]
    split = len(methods) > _MOST_LINES and len(others) < len(methods) and len(others) > 1
    return [layer_wise, others] if split else [list(methods)]


def panels_note(groups: Sequence[Sequence[MethodRuns]]) -> str:
    """Give the sentence on what stands in which panel; empty for a single one."""
    if len(groups) == 1:
        return ""
    beside = " and L-OBS" if any(runs.method == "lobs" for runs in groups[1]) else ""
    return f" On the left the methods that work layer by layer, on the right the others{beside}."


def samples_note(experiment: Experiment) -> str:
    """Give the words on how a layer's error E is summed up."""
    shapes = [layer.shape for runs in experiment.methods for run in runs.runs for layer in run.layers]
    positions = " (of a convolution: positions in its output)" if any(len(shape) > 2 for shape in shapes) else ""
    return f"summed over units, mean over samples{positions}"


def over_seeds_note(drawn: Sequence[MethodRuns], experiment: Experiment) -> str:
    """Give the sentence on what a line shows where there are several seeds; empty where there is one.

    Args:
        drawn: the methods with the runs that their lines show.
        experiment: whose methods they are.

    Returns:
        The sentence.
    """
    counts = {len(runs.runs) for runs in drawn}
    if max(counts, default=1) == 1:
        return ""
    own = {(runs.method, runs.folder): len(runs.runs) for runs in experiment.methods}
    joined = any(len(runs.runs) > own[runs.method, runs.folder] for runs in drawn)
    return (
        f" Lines: mean over the seeds{', over those of all methods where several have one curve' if joined else ''}; "
        f"bands: from the least to the largest seed.{' Lines of one seed have no band.' if 1 in counts else ''}"
    )
