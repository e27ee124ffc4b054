"""Where and why our figures differ from the paper's: per row of Table 1, only for the direction that was measured.

A reason is a tuple of sentences, looked up by experiment, method, error and judgement. A sentence is a function of the
row's facts: all its numbers come from the results, and it gives None where what it rests on was not measured or is not
so. What is left is what the page says.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

from lobs_paper.report import paper
from lobs_paper.report.comparison import DENSITY_POINTS, Comparison, Judged, Judgement, Stage, compare
from lobs_paper.report.density import error_at
from lobs_paper.report.methods import style_of
from lobs_paper.report.results import Experiment, MethodRuns, PathPoint, Prune, Retrain, Run
from lobs_paper.report.selection import label_of
from lobs_paper.report.statistic import DASH, fixed, over_seeds, significant, whole
from lobs_paper.report.table2 import SAME_DENSITY_POINTS
from lobs_paper.report.tables import MANY_LAYERS

NO_REASON = "We have no explanation that our measurements support."
_WORDS: dict[Judgement, str] = {"better": "better", "reproduced": "reproduced", "not reproduced": "worse"}

# Share of the error of guessing from which a network is said to be no better.
USELESS = 0.9


@dataclass(frozen=True)
class Facts:
    """What a sentence can rest on: the row, its runs, all rows of the experiment, and the error that was judged."""

    row: Comparison
    runs: MethodRuns
    rows: list[Comparison]
    experiment: Experiment
    judged: Judged | None = None

    @property
    def density(self) -> float:
        """Share of weights kept, percent."""
        return self.row.density.mean if self.row.density else math.nan


Sentence: TypeAlias = Callable[[Facts], str | None]


def paragraphs(experiment: Experiment) -> list[str]:
    """Give the page's list, an entry per row of Table 1 that was run.

    Args:
        experiment: what was measured.

    Returns:
        Markdown list items; none for a network that the paper does not have.
    """
    facts = facts_of(experiment)
    if not any(row.paper for entry in facts for row in entry.rows):
        return []
    return [text for entry in facts if (text := _paragraph(entry))]


def facts_of(experiment: Experiment) -> list[Facts]:
    """Give the facts of every row of Table 1 that was run."""
    rows = compare(experiment)
    runs = {entry.folder: entry for entry in experiment.methods}
    return [Facts(row, runs[row.folder], rows, experiment) for row in rows if row.folder is not None]


def _paragraph(facts: Facts) -> str | None:
    row = facts.row
    head = f"- **{style_of(row.method, row.folder).label}**"
    if row.paper is None:
        sentences = _join(_WITHOUT_ROW.get(row.method, ()), facts)
        return f"{head}: {row.verdict}. {sentences}" if sentences else None
    if not row.judged:
        return f"{head}: {row.verdict}." if row.verdict != DASH else None
    lines = [head]
    for judged in row.judged:
        ours = row.after_pruning if judged.stage == "after pruning" else row.after_retraining
        text = f"  - {judged.stage} {fixed(ours)}%, the paper's {judged.papers:.2f}%: {_WORDS[judged.judgement]}."
        lines.append(f"{text} {explain(facts, judged)}".rstrip())
    return "\n".join(lines)


def explain(facts: Facts, judged: Judged) -> str:
    """Give the reasons for one judged error.

    Args:
        facts: of its row.
        judged: the error.

    Returns:
        The sentences that hold; `NO_REASON` where none does, nothing for an error that is reproduced.
    """
    if judged.judgement == "reproduced":
        return ""
    return _join(sentences_for(facts, judged), replace(facts, judged=judged)) or NO_REASON


def sentences_for(facts: Facts, judged: Judged) -> tuple[Sentence, ...]:
    """Give what may explain an error, whether it holds or not."""
    experiment, method = facts.row.experiment, facts.row.method
    keys = ((experiment, method), (None, method), (experiment, None), (None, None))
    return next((REASONS[key] for place in keys if (key := (*place, judged.stage, judged.judgement)) in REASONS), ())


def _join(sentences: tuple[Sentence, ...], facts: Facts) -> str:
    return " ".join(text for sentence in sentences if (text := sentence(facts)))


# Rule of allocation -> in words, how it shares a budget out between the layers.
_SHARED_BY = {
    **dict.fromkeys(("global", "relative"), "equal slopes of their relative errors"),
    "fisher": "equal slopes of their errors times the loss's curvature in their outputs",
    "theorem": "equal slopes of their terms in Theorem 3.2's bound",
    **dict.fromkeys(("measured", "measured_joint"), "what the pruned network's outputs lose"),
}


def shared_budget(facts: Facts) -> str | None:
    """Say how the budget was shared out, where the automatic rule did it."""
    runs = facts.runs.runs
    if not all(_shares_budget(run) for run in runs):
        return None
    densities = {layer.name: 0.0 for layer in runs[0].layers}
    spared: dict[str, tuple[float, float]] = {}
    for name in densities:
        layers = [layer for run in runs for layer in run.layers if layer.name == name]
        density = over_seeds(layer.density for layer in layers)
        error = over_seeds(layer.relative_error for layer in layers)
        even = over_seeds(_relative_error_at(run, name, facts.density / 100) for run in runs)
        densities[name] = 100 * density.mean if density else math.nan
        if error and even and even.mean > error.mean:
            spared[name] = even.mean, error.mean
    listed = ", ".join(f"{name} keeps {density:.3g}%" for name, density in densities.items())
    if len(densities) > MANY_LAYERS:
        listed = f"its {len(densities)} layers keep {min(densities.values()):.3g}% to {max(densities.values()):.3g}%"
    how = _SHARED_BY[str(runs[0].prune and runs[0].prune.allocation)]
    text = f"Our budget is shared out between the layers by {how}: {listed}."
    if spared:
        name, (even_error, error_here) = max(spared.items(), key=lambda pair: pair[1][0] - pair[1][1])
        text += (
            f" With {facts.density:.3g}% in every layer {name}'s relative error would be {even_error:.2g} instead of "
            f"{error_here:.2g}."
        )
    return text + " How the paper shared its budgets out is not known to us."


def _shares_budget(run: Run) -> bool:
    """Whether the layers are those of one pruning whose budget was shared out by an automatic rule."""
    rounds = len(run.retrain.rounds) if run.retrain else 1
    return rounds <= 1 and bool(run.layers) and run.prune is not None and run.prune.allocation in _SHARED_BY


def _relative_error_at(run: Run, layer: str, density: float) -> float | None:
    """A layer's relative error at a density, linear between the two points of its path that enclose it."""
    points = sorted((point for point in run.paths if point.layer == layer), key=lambda point: point.density)
    for below, above in itertools.pairwise(points):
        if below.density <= density <= above.density:
            return _between(below, above, density)
    return None


def _between(below: PathPoint, above: PathPoint, density: float) -> float | None:
    if below.relative_error is None or above.relative_error is None:
        return None
    width = above.density - below.density
    share = (density - below.density) / width if width else 0.0
    return below.relative_error + share * (above.relative_error - below.relative_error)


def network(facts: Facts) -> str:
    """Say that the dense network matters."""
    return (
        "The network matters too: networks of one shape that were trained differently can differ widely in what is "
        "left of them at one density, and how the paper trained its own is not known to us."
    )


def last_round(facts: Facts) -> str | None:
    """Say of which round an iterative method's error is."""
    rounds = [run.retrain.rounds for run in facts.runs.runs if run.retrain and len(run.retrain.rounds) > 1]
    if not rounds or any(entry[-2].density is None for entry in rounds):
        return None
    before = over_seeds(100 * entry[-2].density for entry in rounds if entry[-2].density is not None)
    count = over_seeds(len(entry) for entry in rounds)
    text = (
        f"Ours is that of the last round of {whole(count)}, which starts from a network already retrained at "
        f"{significant(before)}%; whether the paper's is that of one cut is not known to us."
    )
    at_once = _at_once(facts)
    return f"{text} {at_once}" if at_once else text


def _at_once(facts: Facts) -> str | None:
    """What one cut from the dense network leaves, at the measured densities around the row's."""
    measured = {point.density for run in facts.runs.runs for point in run.density_curve}
    above = min((density for density in measured if 100 * density >= facts.density), default=None)
    below = max((density for density in measured if 100 * density <= facts.density), default=None)
    around = [density for density in dict.fromkeys((above, below)) if density]
    errors = [f"{fixed(error_at(facts.runs, density))}% at {100 * density:.3g}%" for density in around]
    if not errors:
        return None
    return f"Cut from the dense network at once, by the same rule, it errs in {' and in '.join(errors)} of the weights."


def diagonal(facts: Facts) -> str:
    """Say what OBD's criterion does not know."""
    text = (
        f"OBD's criterion knows only the diagonal of the loss's Hessian near a minimum, which says little about "
        f"removing {100 - facts.density:.3g}% of the weights at once (LeCun et al. removed a few percent at a time)."
    )
    other = next((row for row in facts.rows if row.method == "magnitude" and row.density and row.after_pruning), None)
    if other is None or other.density is None or other.after_pruning is None or facts.row.after_pruning is None:
        return text
    near = abs(other.density.mean - facts.density) <= DENSITY_POINTS
    if near and other.after_pruning.mean < facts.row.after_pruning.mean:
        return f"{text} Plain magnitudes do better here: {fixed(other.after_pruning)}%."
    return text


def guessing(facts: Facts) -> str | None:
    """Say that both errors are close to guessing: at least `USELESS` of what guessing errs."""
    layers = next((run.layers for run in facts.runs.runs if run.layers), None)
    if not layers or facts.judged is None:
        return None
    classes = layers[-1].shape[0]
    guessing = 100 * (1 - 1 / classes)
    if min(facts.judged.ours, facts.judged.papers) < USELESS * guessing:
        return None
    return (
        f"Guessing among {classes} classes errs in about {guessing:.0f}%: neither network is of any use before it is "
        "retrained, and by how much they miss means little."
    )


def dense(facts: Facts) -> str | None:
    """Say how the dense networks differ, and what each lost against its own."""
    row, judged = facts.row, facts.judged
    if row.paper is None or row.original is None or judged is None:
        return None
    ours, papers = judged.ours - row.original.mean, judged.papers - row.paper.original
    text = (
        f"The dense networks differ too: {fixed(row.original)}% here, {row.paper.original:.2f}% there; against its own "
        f"ours changes by {ours:+.2f} points, the paper's by {papers:+.2f}"
    )
    difference, before = judged.ours - judged.papers, row.original.mean - row.paper.original
    if difference * before > 0 and abs(before) >= abs(difference) / 2:
        text += ", so at least half of the difference was there before pruning"
    return text + "."


# Ours are fewer iterations from this share of the paper's on.
_FEWER = 0.5


def recipe(facts: Facts) -> str | None:
    """Say how the network was retrained, where that took far fewer iterations than the paper's."""
    iterations = _iterations(facts)
    if iterations is None or iterations[0] > _FEWER * iterations[1]:
        return None
    how = _how_retrained(facts)
    return (
        f"Ours is retrained {f'with {how}' if how else 'by another recipe'} and gets by with fewer iterations "
        f"({iterations[0]:,.0f} against {iterations[1]:,.0f})."
    )


def _how_retrained(facts: Facts) -> str:
    """The recipe as far as the first seed's metrics record it; empty where they do not."""
    settings = next((run.retrain.recipe for run in facts.runs.runs if run.retrain and run.retrain.recipe), None)
    if settings is None:
        return ""
    parts = (
        settings.optimizer.upper() if settings.optimizer else None,
        f"momentum {settings.momentum:g}" if settings.momentum else None,
        f"a {settings.schedule.replace('_', ' ')} schedule" if settings.schedule not in (None, "constant") else None,
    )
    return ", ".join(part for part in parts if part)


def fewer_iterations(facts: Facts) -> str | None:
    """Say that far fewer iterations than the paper's may be the reason."""
    iterations = _iterations(facts)
    if iterations is None or iterations[0] > _FEWER * iterations[1]:
        return None
    return (
        f"Ours was retrained for {iterations[0]:,.0f} iterations, the paper's for {iterations[1]:,.0f}: the likely "
        "reason."
    )


def _iterations(facts: Facts) -> tuple[float, float] | None:
    row = facts.row
    return (row.iterations.mean, row.paper.iterations) if row.iterations and row.paper else None


def _damping(facts: Facts) -> str | None:
    """The layers' dampings, mean over the seeds; None where there are none."""
    values = {
        name: over_seeds(layer.damping for run in facts.runs.runs for layer in run.layers if layer.name == name)
        for name in (layer.name for layer in facts.runs.runs[0].layers)
    }
    known = [f"{value.mean:.2g} ({name})" for name, value in values.items() if value]
    return ", ".join(known) or None


def more_damping(facts: Facts) -> str | None:
    """Say that the inverse is damped more than the paper's can be."""
    smallest = min((layer.damping or 0.0 for run in facts.runs.runs for layer in run.layers), default=0.0)
    if smallest <= paper.LARGEST_DAMPING:
        return None
    return (
        f"Our inverse is damped by {_damping(facts)}, where the paper's alpha means at most {paper.LARGEST_DAMPING:g}; "
        "more damping means smaller compensations."
    )


def fixed_inverse(facts: Facts) -> str:
    """Say what an inverse that is kept fixed does."""
    damping = _damping(facts)
    text = (
        "With the inverse kept fixed, each compensation also changes weights that were removed before, which are then "
        "set back to zero: what is left is not the best for its mask"
    )
    return f"{text} (the inverse is damped by {damping})." if damping else f"{text}."


# Method -> ours of the same kind that do not keep the inverse fixed.
_BESIDE = {"lobs": ("lobs_resolve", "exact_obs"), "lobs_iterative": ("exact_obs_iterative",)}


def better_weights(facts: Facts) -> str | None:
    """Name the methods of `_BESIDE` that do better on the same networks at the same density."""
    found = []
    for runs in facts.experiment.methods:
        theirs = {run.seed: run.outcome for run in runs.runs if run.outcome}
        pairs = [(run.outcome, theirs[run.seed]) for run in facts.runs.runs if run.outcome and run.seed in theirs]
        ours = over_seeds(mine.error_after_pruning_percent for mine, _ in pairs)
        other = over_seeds(theirs.error_after_pruning_percent for _, theirs in pairs)
        listed = runs.method in _BESIDE.get(facts.row.method, ()) and all(_same_density(*pair) for pair in pairs)
        if listed and ours and other and other.mean < ours.mean:
            found.append(f"{label_of(runs)} errs in {fixed(other)}%, {label_of(facts.runs)} in {fixed(ours)}%")
    return f"On the same networks, at the same density: {'; '.join(found)}." if found else None


def _same_density(*outcomes: Prune | Retrain) -> bool:
    densities = [100 * entry.density for entry in outcomes if entry.density is not None]
    return len(densities) == len(outcomes) and max(densities) - min(densities) <= SAME_DENSITY_POINTS


def units(facts: Facts) -> str | None:
    """Say what ApoZ removes."""
    row = facts.row
    if row.original is None or row.after_pruning is None or row.after_pruning.mean <= row.original.mean:
        return None
    text = (
        f"It errs in {fixed(row.after_pruning)}% after pruning: ApoZ removes whole units, with all their weights, the "
        "large ones too"
    )
    kept = ", ".join(f"{100 * share:.3g}% of {name}'s" for name, share in _unit_shares(facts).items())
    return f"{text} (kept: {kept} units)." if kept else f"{text}."


def _unit_shares(facts: Facts) -> dict[str, float]:
    """Share of units kept in every hidden layer of the first seed; none where later rounds have removed more."""
    run = facts.runs.runs[0]
    if run.retrain and len(run.retrain.rounds) > 1:
        return {}
    shares: dict[str, float] = {}
    read = 1.0  # a layer's density is the product of its own units' share and that of the units that it reads
    for layer in run.layers[:-1]:
        if not layer.density:
            return {}
        read = shares[layer.name] = layer.density / read
    return shares


# Experiment (None: any), method (None: any other), error, judgement -> what may explain it. The first of
# (experiment, method), (any, method), (experiment, any other), (any, any other) that is listed is used.
REASONS: dict[tuple[str | None, str | None, Stage, Judgement], tuple[Sentence, ...]] = {
    (None, "magnitude", "after pruning", "better"): (guessing, shared_budget, network),
    (None, "magnitude", "after pruning", "not reproduced"): (guessing,),
    (None, "obd", "after pruning", "better"): (guessing, shared_budget, network, diagonal),
    (None, "obd", "after pruning", "not reproduced"): (guessing, diagonal),
    (None, "lwc", "after pruning", "better"): (guessing, last_round, network),
    (None, "lwc", "after pruning", "not reproduced"): (guessing,),
    (None, "random", "after pruning", "better"): (guessing,),
    (None, "random", "after pruning", "not reproduced"): (guessing,),
    (None, "lobs", "after pruning", "better"): (dense, shared_budget, more_damping),
    (None, "lobs", "after pruning", "not reproduced"): (fixed_inverse, better_weights),
    (None, "lobs_iterative", "after pruning", "better"): (dense, more_damping),
    (None, "lobs_iterative", "after pruning", "not reproduced"): (fixed_inverse, better_weights),
    (None, None, "after retraining", "better"): (dense, recipe),
    (None, None, "after retraining", "not reproduced"): (dense, fewer_iterations),
}
# Methods without a row in Table 1 that need a word all the same.
_WITHOUT_ROW: dict[str, tuple[Sentence, ...]] = {"apoz": (units,)}
