"""What a figure draws of a curve's frame: which methods, in which panel, and the sentences that say so."""

from __future__ import annotations

import pandas as pd
from pandas import DataFrame, Series

from lobs_paper.report.frame import AFTER_REFIT, KEYS, TOP5, Results
from lobs_paper.report.methods import REFIT, style_of

# A point counts as one at a density from which it differs by at most this share of it.
NEAR = 0.02
# What a run's own point is called in a curve.
_OWN = {
    "prune.density": "density",
    "prune.error_after_pruning_percent": "test_error_percent",
    "prune.error_after_refit_percent": AFTER_REFIT[0],
}
# More lines than this in one panel cannot be told apart: they get two.
_MOST_LINES = 6


def at_density(curve: DataFrame, density: float) -> DataFrame:
    """Give every run's point that was measured at a density above 0, or as near to it as counts as the same."""
    off = (curve["density"] - density).abs()
    near = off[off <= NEAR * density]
    return curve.loc[near.groupby([curve["label"], curve["seed"]], sort=False).idxmin()]


def measured_points(results: Results) -> DataFrame:
    """Give what whole networks err when they are cut to a density at once: the curves' points, and the runs' own.

    Args:
        results: of one network.

    Returns:
        The points of the methods that have a curve, as `with_refitted` gives them. A run that was corrected, or pruned
        in rounds, has no point of its own, as the curves are without both.
    """
    curve, runs = results.density_curve, results.runs
    at_once = (runs["rounds"] <= 1) & (runs["prune.correction"] == "none") & runs["prune.density"].notna()
    own = runs.loc[at_once & runs["label"].isin(curve["label"]), [*KEYS, *_OWN]].rename(columns=_OWN)
    place = {label: index for index, label in enumerate(curve["label"].unique())}
    points = pd.concat([curve, own]) if len(own) else curve
    return with_refitted(
        points.sort_values("label", key=lambda label: label.map(place), kind="stable", ignore_index=True)
    )


def with_refitted(curve: DataFrame) -> DataFrame:
    """Give the errors after a refit as the curve of a method of its own, behind that of its method.

    Args:
        curve: points of the density curves.

    Returns:
        The points, without the columns of the refit.
    """
    plain = curve.drop(columns=[*AFTER_REFIT], errors="ignore")
    if AFTER_REFIT[0] not in curve or curve[AFTER_REFIT[0]].isna().all():
        return plain
    found = curve[curve[AFTER_REFIT[0]].notna()]
    names = {name: found[name] + REFIT for name in ("method", "folder")}
    labels = [style_of(*pair).label for pair in zip(names["method"], names["folder"], strict=True)]
    errors = dict(zip(("test_error_percent", "output_error"), (found[name] for name in AFTER_REFIT), strict=True))
    # Errors among the five largest outputs were not measured again.
    own = plain.loc[found.index].drop(columns=TOP5, errors="ignore").assign(**names, label=labels, **errors)
    return pd.concat([plain, own]).sort_index(kind="stable").reset_index(drop=True)


def steps_of(kept: Series) -> list[float]:
    """Give the densities at which anything was measured, from dense to sparse; those that are as good as equal once."""
    steps: list[float] = []
    for density in sorted(set(kept), reverse=True):
        if not steps or density < (1 - NEAR) * steps[-1]:
            steps.append(density)
    return steps


def distinct(curve: DataFrame) -> tuple[DataFrame, str]:
    """Join methods that have the same curve on all seeds that they share: one criterion, used in several ways.

    Args:
        curve: the points of one experiment.

    Returns:
        The curve, a method's rows those of all seeds of the methods that it stands for; and sentences on these.
    """
    values = [column for column in curve.columns if column not in KEYS]
    names = curve.drop_duplicates("label").set_index("label", drop=False)[["method", "folder", "label"]]
    kept: dict[str, dict[int, DataFrame]] = {}
    twins: dict[str, list[str]] = {}
    for label, rows in curve.groupby("label", sort=False):
        seeds = dict(iter(rows.groupby("seed")))

        def same(other: dict[int, DataFrame], seeds: dict[int, DataFrame] = seeds) -> bool:
            shared = seeds.keys() & other.keys()
            pairs = [[part[seed][values].reset_index(drop=True) for part in (seeds, other)] for seed in shared]
            return bool(shared) and all(one.equals(two) for one, two in pairs)

        first = next((name for name, other in kept.items() if same(other)), label)
        twins.setdefault(first, []).append(label)
        kept[first] = {**seeds, **kept.get(first, {})}
    frames = [
        kept[first][seed].assign(**{key: names.loc[first, key] for key in names})
        for first in kept
        for seed in sorted(kept[first])
    ]
    notes = [_twins_note(labels[0], labels[1:]) for labels in twins.values() if labels[1:]]
    return (pd.concat(frames) if frames else curve), "".join(notes)


def _twins_note(first: str, labels: list[str]) -> str:
    names = labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
    return f" {names} {'has' if len(labels) == 1 else 'have'} the same curve as {first}."


def panels_of(curve: DataFrame) -> list[DataFrame]:
    """Share many methods out between two panels: the layer-wise ones, and their competitors with L-OBS.

    Args:
        curve: what is drawn.

    Returns:
        The rows of each panel; one panel where the methods are few or all of one kind.
    """
    layer_wise = curve["method"].map(lambda method: style_of(method).layer_wise).astype(bool)
    beside = ~layer_wise | (curve["method"] == "lobs")
    methods, others = curve["label"].nunique(), curve.loc[beside, "label"].nunique()
    split = methods > _MOST_LINES and 1 < others < methods
    return [curve[layer_wise], curve[beside]] if split else [curve]


def panels_note(panels: list[DataFrame]) -> str:
    """Give the sentence on what stands in which panel; empty for a single one."""
    if len(panels) == 1:
        return ""
    beside = " and L-OBS" if "lobs" in set(panels[1]["method"]) else ""
    return f" On the left the methods that work layer by layer, on the right the others{beside}."


def samples_note(layers: DataFrame) -> str:
    """Give the words on how a layer's error E is summed up."""
    convolution = any(shape.count("x") > 1 for shape in layers["shape"])
    positions = " (of a convolution: positions in its output)" if convolution else ""
    return f"summed over units, mean over samples{positions}"


def over_seeds_note(drawn: DataFrame, runs: DataFrame) -> str:
    """Give the sentence on what a line shows where there are several seeds; empty where there is one.

    Args:
        drawn: the curves, those of `distinct` where methods share them.
        runs: the runs of the experiment.

    Returns:
        The sentence.
    """
    counts = drawn.groupby("label")["seed"].nunique()
    if counts.max() < 2 or counts.empty:
        return ""
    own = runs.groupby("label")["seed"].nunique()
    joined = (counts > own.reindex(counts.index)).any()
    return (
        f" Lines: mean over the seeds{', over those of all methods where several have one curve' if joined else ''}; "
        f"bands: from the least to the largest seed.{' Lines of one seed have no band.' if 1 in set(counts) else ''}"
    )
