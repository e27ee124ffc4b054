"""All metrics files of the runs as tidy pandas frames; nothing else in the report reads a run's files.

A file or a key that is missing gives NaN, which the report prints as a dash; keys that nobody asks for are ignored; a
file that is broken gives a ValueError that names it. Texts are read without markup (plain.py): files may be anybody's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
from pandas import DataFrame

from lobs_paper.files import read_object
from lobs_paper.report.methods import sort_key, style_of
from lobs_paper.report.paper import DATA, network_of, paper_order
from lobs_paper.report.plain import checked_name, plain
from lobs_paper.report.statistic import statistic
from lobs_paper.results import MARKER, read_result

# The first columns of every frame, and those of them that tell methods apart.
KEYS = ["experiment", "method", "folder", "seed", "label"]
METHOD = ["experiment", "method", "folder", "label"]

_NUMBER: Any = (int, float)
_STORAGE = ("dense_bytes", "sparse_bytes", "compact_bytes", "parameters", "compact_parameters", "removed_units")
_CORRECTIONS = ("none", "bias", "batch_norm", "both")
_RECIPE = {"recipe.optimizer": str, "recipe.momentum": _NUMBER, "recipe.schedule": str}
TOP5 = "test_top5_error_percent"
# Columns of the density curve, empty where nothing was refitted.
AFTER_REFIT = ("test_error_after_refit_percent", "output_error_after_refit")
# Stage -> the keys of its metrics.json that the report reads, and their types; "a.b" is key b of object a.
_METRICS: dict[str, dict[str, Any]] = {
    "train": {
        **dict.fromkeys(("test_error_percent", "train_error_percent", "parameters", TOP5), _NUMBER),
        **dict.fromkeys(("measured_on", "data"), str),
    },
    "collect": {"images": _NUMBER, "samples": _NUMBER},
    "prune": {
        **dict.fromkeys(("method", "data", "allocation", "shared_by", "correction"), str),
        **dict.fromkeys(("density", "error_before_percent", "error_after_pruning_percent"), _NUMBER),
        **dict.fromkeys(("error_after_refit_percent", "samples_kept", "unpruned_share"), _NUMBER),
        **dict.fromkeys((f"corrections.{name}" for name in _CORRECTIONS), _NUMBER),
        "notes": list,
    },
    "retrain": {
        **dict.fromkeys(("density", "error_before_percent", "error_after_pruning_percent"), _NUMBER),
        **dict.fromkeys(("error_after_retraining_percent", "iterations", "iterations_to_original"), _NUMBER),
        "method": str,
        "masks_exact": bool,
        "rounds": list,
        **_RECIPE,
    },
    "evaluate": {
        "method": str,
        "pruned.layers": list,
        **dict.fromkeys(("pruned.output_error", "pruned.bound"), _NUMBER),
        **{f"{network}.{TOP5}": _NUMBER for network in ("dense", "pruned", "retrained")},
        **{f"{part}.storage.{key}": _NUMBER for part in ("pruned", "retrained") for key in _STORAGE},
        **{f"{part}.storage.not_compacted": str for part in ("pruned", "retrained")},
    },
}
_TIMING = {"total": _NUMBER, "peak_memory_mib": _NUMBER, "device": str, "threads": _NUMBER}
_LATENCY = {"network": str, "batch": _NUMBER, "before_ms": _NUMBER, "after_ms": _NUMBER}
_LAYER = {
    "name": str,
    "shape": list,
    **dict.fromkeys(("density", "kept", "error", "relative_error"), _NUMBER),
    **dict.fromkeys(("sensitivity_threshold", "bound_contribution", "damping"), _NUMBER),
}
_ROUND = dict.fromkeys(
    ("round", "density", "error_after_pruning_percent", "error_after_retraining_percent", "iterations"), _NUMBER
)
# Frame -> file of its points, and their columns.
_CURVES: dict[str, tuple[str, tuple[str, ...]]] = {
    "density_curve": (
        "prune/density_curve.csv",
        ("density", "test_error_percent", "output_error", TOP5, *AFTER_REFIT),
    ),
    "first_layer_curve": ("prune/first_layer_curve.csv", ("density", "test_accuracy_percent")),
    "paths": ("prune/paths.csv", ("layer", "density", "error", "relative_error", "sensitivity_threshold")),
    "retrain_curve": ("retrain/curve.csv", ("round", "iteration", "train_loss", "test_error_percent")),
}
_BINS = ("log10_from", "log10_to", "weights", "share_below")


@dataclass(frozen=True)
class Results:
    """What was measured, one frame per kind of row; `runs` and the curves begin with the columns `KEYS`.

    Rows come in the order of the tables: the paper's order of experiments, methods as methods.py lists them, seeds.

    Attributes:
        dense: a row per experiment and seed; `train.*` and `collect.*` of the two metrics.json.
        runs: a row per pruned network; `prune.*`, `retrain.*`, `evaluate.*`, and what tables ask for: `original_error`,
            `density` and the errors in percent after all rounds, or of pruning where nothing was retrained, with that
            after a refit where there was one; `final`, which network that is; `learned`, whether it was retrained for
            any iterations; and the number of `rounds`.
        layers: a row per pruned layer, as evaluated, or as pruned where nothing was evaluated; `shape` is a text.
        rounds: a row per round of pruning and retraining.
        density_curve: the whole network cut at once to a density.
        first_layer_curve: test accuracy while the first layer alone is pruned.
        paths: the error of a layer at a density.
        retrain_curve: test error during retraining.
        sensitivities: bins of the first layer's sensitivities; `share_below` is that of all weights below 0.001.
        timings: a row per timings.json; `folder` is empty for train and collect.
        layer_seconds: seconds of single layers.
        latency: milliseconds of a network on a batch before and after compaction.
    """

    dense: DataFrame
    runs: DataFrame
    layers: DataFrame
    rounds: DataFrame
    density_curve: DataFrame
    first_layer_curve: DataFrame
    paths: DataFrame
    retrain_curve: DataFrame
    sensitivities: DataFrame
    timings: DataFrame
    layer_seconds: DataFrame
    latency: DataFrame

    @property
    def experiments(self) -> list[str]:
        """The experiments in the paper's order, others after them by name."""
        names = {*self.dense["experiment"], *self.runs["experiment"]}
        return sorted(names, key=lambda name: (paper_order(name), name))

    @property
    def data(self) -> str:
        """The data of one experiment, as the metrics name it; as the paper has it where they name none, or the same."""
        papers = DATA.get(self.experiments[0], "")
        named = next(iter([*self.dense["train.data"].dropna(), *self.runs["prune.data"].dropna()]), papers)
        return papers if named.casefold() == papers.casefold() else named

    @property
    def title(self) -> str:
        """The heading of one experiment: network and data."""
        return ", ".join(part for part in (network_of(self.experiments[0]), self.data) if part)

    def of(self, experiment: str) -> Results:
        """Give what was measured of one experiment."""
        frames = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return Results(**{name: frame[frame["experiment"] == experiment] for name, frame in frames.items()})


def load_results(runs_dir: Path, further: Sequence[Path] = ()) -> Results:
    """Load everything below some folders of runs.

    Args:
        runs_dir: holds `<experiment>/seed<k>/train/` and, beside it, `<method>/{prune,retrain,evaluate}/`.
        further: more such folders, with other experiments, or other methods and seeds of the same ones; they need not
            exist. A dense network is that of the first folder that holds it.

    Returns:
        The frames.

    Raises:
        ValueError: there are no metrics at all, a file is broken, or two folders hold the same run (named in the
            message).
    """
    rows: dict[str, list[dict[str, Any]]] = {entry.name: [] for entry in fields(Results)}
    curves: dict[str, list[DataFrame]] = {name: [] for name in _CURVES}
    found: dict[tuple[Any, ...], tuple[Path, dict[str, dict[str, Any]]]] = {}
    sources: dict[tuple[str, int, str], Path] = {}
    dense: dict[tuple[str, int], dict[str, Any]] = {}
    timed: dict[tuple[Any, ...], dict[str, Any]] = {}
    for path, experiment, seed in _seed_folders([runs_dir, *further]):
        place = {"experiment": experiment, "seed": seed}
        for stage in ("train", "collect"):
            if metrics := _metrics(path, stage):
                known = dense.setdefault((experiment, seed), dict(place))
                known.update({key: value for key, value in metrics.items() if key not in known})
        for file in path.rglob("timings.json"):
            *folder, stage = file.parent.relative_to(path).parts
            timing = {**place, "folder": plain("/".join(folder)), "stage": stage, "file": file}
            # A dense network's stages are sorted among the methods, as their folders would be.
            timed.setdefault((paper_order(experiment), experiment, seed, *folder, stage), timing)
        for own in (entry for entry in path.iterdir() if entry.is_dir()):
            stages = {stage: _metrics(own, stage) for stage in ("prune", "retrain", "evaluate")}
            method = next((stages[stage][f"{stage}.method"] for stage in stages if stages[stage]), None)
            if method is not None:
                names = [checked_name(name, own) for name in (method, own.name)]
                key = (paper_order(experiment), experiment, *sort_key(*names), seed)
                other = sources.setdefault((experiment, seed, own.name), own)
                if other != own:
                    raise ValueError(f"{own} and {other} hold the same run: remove one of the two")
                found[key] = (own, stages)
    if not dense and not found:
        raise ValueError(f"{runs_dir}: no metrics found; expected <experiment>/seed<k>/<stage>/metrics.json")
    for key in sorted(found):
        _, experiment, _, method, name, seed = key
        label = style_of(method, name).label
        _add_run(dict(zip(KEYS, (experiment, method, name, seed, label), strict=True)), *found[key], rows, curves)
    for key in sorted(timed):
        _add_timing(timed[key], rows)
    rows["dense"] = [dense[key] for key in sorted(dense, key=lambda key: (paper_order(key[0]), *key))]
    return _frames(rows, curves)


def _frames(rows: Mapping[str, list[dict[str, Any]]], curves: Mapping[str, list[DataFrame]]) -> Results:
    """Make the frames, with all their columns also where there are no rows."""
    run, timing = dict.fromkeys(KEYS, str), dict.fromkeys(("experiment", "seed", "folder", "stage"), str)
    columns: dict[str, dict[str, Any]] = {
        "dense": {"experiment": str, "seed": str, **_columns("train"), **_columns("collect")},
        "runs": {**run, **_columns("prune"), **_columns("retrain"), **_columns("evaluate")},
        "layers": {**run, **_LAYER},
        "rounds": {**run, **_ROUND},
        "sensitivities": {**run, **dict.fromkeys(_BINS, _NUMBER)},
        "timings": {**timing, **_TIMING},
        "layer_seconds": {**timing, "layer": str, "seconds": _NUMBER},
        "latency": {**timing, **_LATENCY},
    }
    frames = {name: DataFrame(rows[name], columns=list(kinds)) for name, kinds in columns.items()}
    for name, kinds in columns.items():
        # Without any value a column is one of objects, with which no number can be compared.
        empty = [key for key, kind in kinds.items() if kind is _NUMBER and frames[name][key].dtype == object]
        frames[name] = frames[name].astype(dict.fromkeys(empty, float))
    for name, parts in curves.items():
        numbers = {key: float for key in _CURVES[name][1] if key != "layer"}
        blank = DataFrame(columns=[*KEYS, *_CURVES[name][1]]).astype(numbers)
        frames[name] = pd.concat(parts, ignore_index=True) if parts else blank
    frames["layers"] = frames["layers"].rename(columns={"name": "layer"})
    frames["layers"]["shape"] = ["x".join(map(str, shape)) for shape in frames["layers"]["shape"]]
    frames["runs"] = _with_outcome(frames["runs"])
    return Results(**frames)


def _with_outcome(runs: DataFrame) -> DataFrame:
    """Add the numbers that belong together: after all rounds, or of pruning where nothing was retrained."""
    again = runs["retrain.method"].notna()
    # A recipe without iterations is no retraining.
    learned = again & (runs["retrain.iterations"] != 0)
    rounds = runs["retrain.rounds"].map(lambda entry: len(entry) if isinstance(entry, list) else 0)
    # Retraining goes on from the refitted network: what it finds is the error after the refit.
    refitted, once = runs["prune.error_after_refit_percent"], rounds <= 1

    def last(key: str) -> pd.Series:
        return runs[f"retrain.{key}"].where(again, runs[f"prune.{key}"]).astype(float)

    return runs.assign(
        final=pd.Series(["retrained" if known else "pruned" for known in again], runs.index, dtype=object),
        learned=learned,
        rounds=rounds.astype(int),
        original_error=last("error_before_percent"),
        density=100 * last("density"),
        error_after_pruning=last("error_after_pruning_percent").where(
            refitted.isna(), runs["prune.error_after_pruning_percent"].where(once).astype(float)
        ),
        error_after_refit=refitted.where(once | refitted.isna(), last("error_after_pruning_percent")).astype(float),
        error_after_retraining=runs["retrain.error_after_retraining_percent"].where(learned).astype(float),
        iterations=runs["retrain.iterations"].where(learned).astype(float),
        iterations_to_original=runs["retrain.iterations_to_original"].where(learned).astype(float),
    )


def _columns(stage: str) -> dict[str, Any]:
    return {f"{stage}.{key}": kind for key, kind in _METRICS[stage].items()}


def _seed_folders(roots: Sequence[Path]) -> list[tuple[Path, str, int]]:
    """The folders `<experiment>/seed<k>`."""
    folders = (path for root in roots for path in root.glob("*/*/") if path.is_dir())
    matches = ((path, re.fullmatch(r"seed(\d+)", path.name)) for path in folders)
    return [(path, checked_name(path.parent.name, path), int(match[1])) for path, match in matches if match]


def _add_run(
    place: dict[str, Any],
    folder: Path,
    stages: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, list[dict[str, Any]]],
    curves: Mapping[str, list[DataFrame]],
) -> None:
    """Add one method's files of one seed."""
    values = {key: value for stage in stages.values() for key, value in stage.items()}
    rows["runs"].append({**place, **values})
    layers, file = values.get("evaluate.pruned.layers"), folder / "prune/layers.json"
    if layers is None and file.exists():
        layers = plain(read_object(file, list))
    rows["layers"].extend({**place, **entry} for entry in _entries(layers, _LAYER, file))
    rounds = _entries(values.get("retrain.rounds"), _ROUND, folder / "retrain/metrics.json: rounds")
    rows["rounds"].extend({**place, **entry} for entry in rounds)
    rows["sensitivities"].extend({**place, **entry} for entry in _bins(folder / "prune/sensitivities.json"))
    for name, (csv, columns) in _CURVES.items():
        points = _points(folder / csv, columns)
        if len(points):
            curves[name].append(DataFrame({**place, **points}, index=points.index))


def _add_timing(place: dict[str, Any], rows: Mapping[str, list[dict[str, Any]]]) -> None:
    """Add one timings.json."""
    file = place.pop("file")
    data = plain(read_object(file, dict))
    rows["timings"].append({**place, **_checked(data, _TIMING, file)})
    layers = data.get("layers") or {}
    seconds = _checked(layers, dict.fromkeys(layers, _NUMBER), f"{file}: layers")
    rows["layer_seconds"].extend({**place, "layer": name, "seconds": value} for name, value in seconds.items())
    rows["latency"].extend({**place, **entry} for entry in _entries(data.get("latency"), _LATENCY, file))


def _metrics(folder: Path, stage: str) -> dict[str, Any]:
    """A stage's metrics.json under dotted names; nothing where there is none."""
    path = folder / stage / MARKER
    data = plain(read_result(folder, stage))
    if not data:
        return {}
    for part in (data.get("pruned"), data.get("retrained")):
        taken = part.get("storage") if isinstance(part, dict) else None
        if taken and taken.get("removed_units") is not None:
            taken["removed_units"] = sum(taken["removed_units"].values())
    flat = _checked(dict(_flat(data)), _METRICS[stage], path)
    if "method" in flat and flat["method"] is None:
        raise ValueError(f"{path}: key 'method' is missing")
    return {f"{stage}.{key}": value for key, value in flat.items()}


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _checked(data: Mapping[str, Any], kinds: Mapping[str, Any], source: Path | str) -> dict[str, Any]:
    """The keys that the report reads, each of its type or None."""
    for key, kind in kinds.items():
        value, parent = data.get(key), key.rpartition(".")[0]
        # In Python a truth value is an integer; in a metrics file it is not.
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
            name = "number" if kind is _NUMBER else kind.__name__
            raise ValueError(f"{source}: {key} must be of type {name}, got {value!r}")
        if data.get(parent) is not None:
            raise ValueError(f"{source}: {parent}: expected an object, got {data[parent]!r}")
    return {key: data.get(key) for key in kinds}


def _entries(data: Any, kinds: Mapping[str, Any], source: Path | str) -> list[dict[str, Any]]:
    """The objects of a list."""
    if data is not None and not (isinstance(data, list) and all(isinstance(entry, dict) for entry in data)):
        raise ValueError(f"{source}: must be a list of objects, got {data!r}")
    return [_checked(entry, kinds, source) for entry in data or ()]


def _bins(path: Path) -> list[dict[str, Any]]:
    """A histogram's bins; methods without sensitivities write an empty object."""
    data = plain(read_object(path, dict)) if path.exists() else {}
    edges, counts = data.get("log10_edges") or [], data.get("counts") or []
    if data and len(edges) != len(counts) + 1:
        raise ValueError(f"{path}: {len(counts)} counts need {len(counts) + 1} log10_edges, got {len(edges)}")
    below = data.get("share_below_0.001")
    bins = zip(edges[:-1], edges[1:], counts, strict=True)
    return [{"log10_from": low, "log10_to": high, "weights": count, "share_below": below} for low, high, count in bins]


def _points(path: Path, columns: Sequence[str]) -> DataFrame:
    """A CSV file's columns, numbers but for the layers' names."""
    if not path.exists():
        return DataFrame()
    try:
        table = pd.read_csv(path, dtype=str)
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError("rows longer than the header")
        points = table.reindex(columns=list(columns))
    except ValueError as error:
        raise ValueError(f"{path}: not a table ({' '.join(str(error).split())})") from None
    if "layer" in points:
        points["layer"] = points["layer"].map(plain)
    return points.assign(**{name: _numbers(points[name], path) for name in columns if name != "layer"})


def _numbers(texts: pd.Series, path: Path) -> list[float]:
    """A column's numbers to the last digit, which pandas' own reader does not promise."""
    numbers = []
    for line, text in enumerate(texts, start=2):
        try:
            numbers.append(float(text))
        except ValueError:
            raise ValueError(f"{path}, line {line}: {texts.name} must be a number, got {text!r}") from None
    return numbers


def by_method(frame: DataFrame, columns: Sequence[str], by: Sequence[str] = METHOD) -> DataFrame:
    """Summarise columns over the seeds.

    Args:
        frame: a row per seed.
        columns: what to summarise.
        by: the columns that tell groups apart.

    Returns:
        A row per group, a `Statistic` in each of the columns, and how many `seeds` the group has.
    """
    rows = [
        {**dict(zip(by, key, strict=True)), **{name: statistic(group[name]) for name in columns}, "seeds": len(group)}
        for key, group in frame.groupby(list(by), sort=False)
    ]
    return DataFrame(rows, columns=[*by, *columns, "seeds"])


def mean(values: Sequence[float | None]) -> float:
    """Give the mean of the values that are there; NaN without any."""
    return statistic(values).mean
