"""What a reader of Table 1 must know of our further methods."""

from __future__ import annotations

from lobs_paper.report.results import Experiment, MethodRuns
from lobs_paper.report.selection import label_of
from lobs_paper.report.tables import MANY_LAYERS

# So many layers stand for a network of many.
_EXAMPLES = 3


def remarks(experiment: Experiment) -> list[str]:
    """Give the remarks below Table 1: what was left alone, and what L-OBS re-solved is.

    Args:
        experiment: what was measured.

    Returns:
        Paragraphs; none where there is nothing to say.
    """
    return [*_accounts(experiment), *_resolved(experiment)]


def _accounts(experiment: Experiment) -> list[str]:
    """Weights out of pruning's reach, and what pruning decided by itself, by method and seed."""
    lines = []
    for runs in experiment.methods:
        for run in runs.runs:
            if run.prune is None:
                continue
            where = f"{label_of(runs)}, seed {run.seed}"
            if run.prune.unpruned_share:
                lines.append(f"{where}: {run.prune.unpruned_share:.1%} of the network's weights were not pruned.")
            lines += [f"{where}: {note}." for note in run.prune.notes]
    return lines


def _resolved(experiment: Experiment) -> list[str]:
    """What L-OBS re-solved is, and whether its masks are those of L-OBS; nothing where it was not run."""
    found = {runs.method: runs for runs in experiment.methods}
    resolved, lobs = found.get("lobs_resolve"), found.get("lobs")
    if resolved is None:
        return []
    text = (
        f"{label_of(resolved)} removes the weights of a layer in L-OBS's order; those that are left are then solved "
        "for anew by least squares on the layer's outputs, damped as L-OBS's inverse is."
    )
    seed, pairs = _kept_by_both(lobs, resolved) if lobs else (None, {})
    if not pairs:
        return [text]
    if all(ours == theirs for ours, theirs in pairs.values()):
        return [f"{text} It keeps as many weights in every layer as L-OBS, so that its masks are L-OBS's."]
    differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    if len(differing) > MANY_LAYERS:
        most = sorted(differing, key=lambda name: -abs(differing[name][0] - differing[name][1]))[:_EXAMPLES]
        differing = {name: pair for name, pair in differing.items() if name in most}
        text += " Those that differ most are listed."
    listed = ", ".join(
        f"{name} keeps {theirs:.3g}% instead of {ours:.3g}%" for name, (ours, theirs) in differing.items()
    )
    return [f"{text} The errors that this leaves also share the budget out differently (seed {seed}): {listed}."]


def _kept_by_both(lobs: MethodRuns, resolved: MethodRuns) -> tuple[int | None, dict[str, tuple[float, float]]]:
    """The first seed that both share, and the layers' densities there in percent by both."""
    seeds = {run.seed: run for run in lobs.runs}
    pair = next(((seeds[run.seed], run) for run in resolved.runs if run.seed in seeds), None)
    if pair is None:
        return None, {}
    theirs = {layer.name: layer.density for layer in pair[1].layers}
    return pair[0].seed, {
        layer.name: (100 * layer.density, 100 * other)
        for layer in pair[0].layers
        if layer.density is not None and (other := theirs.get(layer.name)) is not None
    }
