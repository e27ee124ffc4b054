"""One-shot pruning in the literature, and ours on the same kinds of networks, as test accuracies in percent."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from pandas import DataFrame

from lobs_paper.report.curves import measured_points
from lobs_paper.report.frame import METHOD, Results
from lobs_paper.report.frontier import at_every_density
from lobs_paper.report.markdown import means
from lobs_paper.report.method_tables import at_densities, by_density
from lobs_paper.report.statistic import DASH, Statistic, fixed, statistic

EXPERIMENTS = ("mlpnet", "resnet20")
# Densities of the published figures, percent; sparsities of 90, 95 and 98%.
DENSITIES = (10.0, 5.0, 2.0)
_RECALLED, _OURS = "r", "this pipeline"

_CHITA = "Benbaki et al. 2023 (CHITA)"


@dataclass(frozen=True)
class Published:
    """Accuracies on a network that others trained, at `DENSITIES`.

    Attributes:
        experiment: our experiment of the same network and data.
        label: the method.
        dense: accuracy of their dense network.
        accuracies: of the pruned one, without retraining.
        source: who published it; empty where we measured it ourselves, on their network and not by this pipeline.
    """

    experiment: str
    label: str
    dense: float
    accuracies: tuple[float, float, float]
    source: str = ""


# Those with a source are recalled from the published tables and not verified.
PUBLISHED = (
    Published("mlpnet", "magnitude", 93.97, (90.30, 83.64, 32.25), _CHITA),
    Published("mlpnet", "WoodFisher", 93.97, (91.69, 85.54, 38.26), _CHITA),
    Published("mlpnet", "CBS", 93.97, (93.14, 88.92, 55.45), _CHITA),
    Published("mlpnet", "CHITA in stages (uses labels)", 93.97, (95.55, 94.70, 90.73), _CHITA),
    Published("mlpnet", "CHITA's own code in one stage", 93.97, (89.92, 82.41, 42.82)),
    Published("mlpnet", "our exact OBS", 93.97, (93.73, 92.43, 87.74)),
)


def literature_table(results: Results) -> DataFrame:
    """Give the published accuracies of one network and ours below them; without rows where it is none of these."""
    curve, rows, dense = _ours(results)
    ours = by_density(curve, rows, _accuracy)
    ours.insert(2, "dense", fixed(dense))
    ours["source"] = _OURS
    theirs = [
        (entry.label, DASH, *map(fixed, (entry.dense, *entry.accuracies)), f"{_RECALLED}, {entry.source}")
        for entry in published(results)
        if entry.source
    ]
    return pd.concat([DataFrame(theirs, columns=ours.columns), ours]) if theirs and len(ours) else ours


def published(results: Results) -> list[Published]:
    """Give what is known of one network from elsewhere."""
    return [entry for entry in PUBLISHED if entry.experiment in results.experiments]


def literature_records(results: Results) -> DataFrame:
    """Give the same for all networks in full precision, with what we measured on others' networks."""
    frames = []
    for own in map(results.of, EXPERIMENTS):
        theirs = [
            {"experiment": entry.experiment, "label": entry.label, "dense_accuracy_percent": entry.dense}
            | {"source": f"{_RECALLED}, {entry.source}" if entry.source else "ours, on the published network"}
            | {"density_percent": density, "accuracy_percent": accuracy}
            for entry in published(own)
            for density, accuracy in zip(DENSITIES, entry.accuracies, strict=True)
        ]
        _, rows, dense = _ours(own)
        rows = rows.assign(accuracy=rows["test_error_percent"].map(_flipped))
        numbers = means(rows, {"accuracy": "accuracy"}, "_percent")
        ours = rows[[*METHOD, "density_percent", "seeds"]].assign(dense_accuracy_percent=dense.mean, source=_OURS)
        frames += [DataFrame(theirs), ours.assign(**numbers)]
    first = ["experiment", "label", "source", "seeds", "dense_accuracy_percent", "density_percent"]
    table = pd.concat([frame for frame in frames if len(frame)]) if any(map(len, frames)) else DataFrame()
    return table.reindex(columns=[*first, "accuracy_percent", "accuracy_deviation"]).astype({"seeds": "Int64"})


def _ours(results: Results) -> tuple[DataFrame, DataFrame, Statistic]:
    """Our curves, their errors at the published densities, or at all measured ones, and the dense accuracy."""
    curve = measured_points(results)
    if not set(results.experiments) <= set(EXPERIMENTS):
        curve = curve.iloc[:0]
    methods = curve[METHOD].drop_duplicates(ignore_index=True)
    rows = at_densities(curve, methods, DENSITIES) if published(results) else at_every_density(curve)
    return curve, rows, _flipped(statistic(results.dense["train.test_error_percent"]))


def _flipped(error: Statistic) -> Statistic:
    """An accuracy from an error, in percent."""
    return Statistic(100 - error.mean, error.deviation, error.count, 100 - error.high, 100 - error.low)


def _accuracy(error: Statistic) -> str:
    return fixed(_flipped(error))
