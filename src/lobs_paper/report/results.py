"""Loads the metrics files of all runs into dataclasses; nothing else in the report reads a run's files.

A file that is missing gives None or an empty list, which the report shows as a dash; a broken one gives a ValueError
that names it (records.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lobs_paper.report.methods import sort_key
from lobs_paper.report.paper import paper_order
from lobs_paper.report.records import load_object, load_rows, parse, parse_list, read_json

Number = float | None
_TOP5 = "test_top5_error_percent"


@dataclass(frozen=True)
class Train:
    """train/metrics.json: the dense network; its "test" errors may have been measured on validation images."""

    test_error_percent: Number
    train_error_percent: Number
    parameters: Number
    measured_on: str = "test"
    data: str | None = None
    test_top5_error_percent: Number = None


@dataclass(frozen=True)
class Collect:
    """collect/metrics.json: calibration images, and how many input vectors of each layer were kept (Net-Trim)."""

    images: Number = None
    samples: Number = None


@dataclass(frozen=True)
class Prune:
    """prune/metrics.json: the network right after pruning; `samples_kept`: input vectors that the method needed.

    `correction`: the one that was made, chosen by the calibration images; `corrections`: the test error with each.
    `unpruned_share`: of the network's weights, those that pruning left alone; `notes`: what was decided on the way.
    """

    method: str
    density: Number
    error_before_percent: Number
    error_after_pruning_percent: Number
    allocation: str | None = None
    samples_kept: Number = None
    data: str | None = None
    correction: str | None = None
    corrections: dict[str, float] | None = None
    unpruned_share: Number = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """How a network was retrained, as far as its metrics record it."""

    optimizer: str | None = None
    momentum: Number = None
    schedule: str | None = None
    learning_rate: Number = None
    batch_size: Number = None
    weight_decay: Number = None


@dataclass(frozen=True)
class Round:
    """One round of pruning and retraining."""

    round: int
    density: Number
    error_after_pruning_percent: Number
    error_after_retraining_percent: Number
    iterations: Number


@dataclass(frozen=True)
class Retrain:
    """retrain/metrics.json: `iterations_to_original` is None where the dense error was not reached again."""

    method: str
    density: Number
    error_before_percent: Number
    error_after_pruning_percent: Number
    error_after_retraining_percent: Number
    iterations: Number
    iterations_to_original: Number
    masks_exact: bool
    rounds: tuple[Round, ...]
    recipe: Recipe | None = None


@dataclass(frozen=True)
class Layer:
    """One pruned layer: E = ||Z_hat - Z||_F^2 / n, its term of Theorem 3.2's bound, the inverse's damping."""

    name: str
    shape: tuple[int, ...]
    kept: Number
    density: Number
    error: Number
    relative_error: Number
    sensitivity_threshold: Number = None
    bound_contribution: Number = None
    damping: Number = None


@dataclass(frozen=True)
class Storage:
    """What a network takes: bytes of its files, and units removed by layer; None where it cannot be compacted."""

    dense_bytes: Number
    sparse_bytes: Number
    parameters: Number
    compact_bytes: Number = None
    compact_parameters: Number = None
    removed_units: dict[str, float] | None = None
    not_compacted: str | None = None


@dataclass(frozen=True)
class Latency:
    """Milliseconds of the pruned or the retrained network on a batch, before and after compaction."""

    network: str
    batch: int
    before_ms: float
    after_ms: float


@dataclass(frozen=True)
class Evaluate:
    """evaluate/metrics.json: the measured accumulated error, and Theorem 3.2's right-hand side as `bound`.

    `top5`: the errors among the five largest outputs, percent, by the network they are of (dense, pruned, retrained);
    empty for few classes.
    `storage`, `retrained_storage`: what the networks take on disk, right after pruning and after retraining.
    """

    method: str
    output_error: Number
    bound: Number
    layers: tuple[Layer, ...]
    storage: Storage | None = None
    retrained_storage: Storage | None = None
    top5: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PathPoint:
    """One row of prune/paths.csv: a layer's error at one density."""

    layer: str
    density: float
    error: float
    relative_error: Number
    sensitivity_threshold: Number


@dataclass(frozen=True)
class AccuracyPoint:
    """One row of prune/first_layer_curve.csv."""

    density: float
    test_accuracy_percent: float


@dataclass(frozen=True)
class DensityPoint:
    """One row of prune/density_curve.csv: the whole network cut at once to a density, without retraining.

    The output error is the distance of its outputs from the dense network's, root mean square over training images.
    """

    density: float
    test_error_percent: float
    output_error: Number = None
    test_top5_error_percent: Number = None


@dataclass(frozen=True)
class RetrainPoint:
    """One row of retrain/curve.csv; the test error is None where it was not measured."""

    round: float
    iteration: float
    train_loss: Number
    test_error_percent: Number


@dataclass(frozen=True)
class Histogram:
    """prune/sensitivities.json: how the first layer's sensitivities L_q are distributed."""

    log10_edges: tuple[float, ...]
    counts: tuple[float, ...]
    share_below: float


@dataclass(frozen=True)
class Run:
    """What one method's stages wrote for one seed."""

    experiment: str
    seed: int
    folder: str
    method: str
    prune: Prune | None
    retrain: Retrain | None
    evaluate: Evaluate | None
    prune_layers: list[Layer]
    paths: list[PathPoint]
    first_layer_curve: list[AccuracyPoint]
    density_curve: list[DensityPoint]
    histogram: Histogram | None
    retrain_curve: list[RetrainPoint]

    @property
    def layers(self) -> Sequence[Layer]:
        """The evaluated layers, or those of the prune stage where nothing was evaluated."""
        return self.evaluate.layers if self.evaluate else self.prune_layers

    @property
    def retrained(self) -> Retrain | None:
        """The retraining; None also where the recipe has no iterations."""
        return self.retrain if self.retrain and self.retrain.iterations != 0 else None

    @property
    def outcome(self) -> Prune | Retrain | None:
        """Density and errors that belong together: after all rounds, or of pruning without retraining."""
        return self.retrain or self.prune


@dataclass(frozen=True)
class MethodRuns:
    """One method of one experiment over all its seeds, sorted by seed."""

    experiment: str
    method: str
    folder: str
    runs: list[Run]


@dataclass(frozen=True)
class Timing:
    """One timings.json. Seconds are wall time; `layers` are seconds per layer where the stage knows them."""

    experiment: str
    seed: int
    folder: str
    stage: str
    total: Number
    peak_memory_mib: Number
    threads: Number = None
    device: str | None = None
    layers: dict[str, float] = field(default_factory=dict)
    latency: tuple[Latency, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One experiment: its dense networks by seed, its methods, its timings, its calibration passes by seed."""

    name: str
    trains: dict[int, Train]
    methods: list[MethodRuns]
    timings: list[Timing]
    collects: dict[int, Collect] = field(default_factory=dict)

    @property
    def data(self) -> str | None:
        """The data as the metrics name it; None where they do not."""
        prunes = (run.prune for runs in self.methods for run in runs.runs)
        return next((entry.data for entry in (*self.trains.values(), *prunes) if entry and entry.data), None)


def load_results(runs_dir: Path, further: Sequence[Path] = ()) -> list[Experiment]:
    """Load everything below some folders of runs, experiments in the paper's order, others after them by name.

    Args:
        runs_dir: holds `<experiment>/seed<k>/train/` and, beside it, `<method>/{prune,retrain,evaluate}/`.
        further: more such folders, with other experiments, or other methods and seeds of the same ones; they need not
            exist. A dense network is that of the first folder that holds it.

    Returns:
        One entry per experiment that holds any metrics.

    Raises:
        ValueError: there are no metrics at all, a file is broken, or two folders hold the same run (named in the
            message).
    """
    folders: dict[str, list[Path]] = {}
    for root in (runs_dir, *further):
        for path in root.glob("*/"):
            if path.is_dir():
                folders.setdefault(path.name, []).append(path)
    names = sorted(folders, key=lambda name: (paper_order(name), name))
    experiments = [experiment for name in names if (experiment := _load_experiment(name, folders[name]))]
    if not experiments:
        raise ValueError(f"{runs_dir}: no metrics found; expected <experiment>/seed<k>/<stage>/metrics.json")
    return experiments


def _load_experiment(name: str, folders: Sequence[Path]) -> Experiment | None:
    """Load one experiment from the folders that hold a part of it."""
    trains: dict[int, Train] = {}
    collects: dict[int, Collect] = {}
    runs: dict[tuple[int, str], Run] = {}
    sources: dict[tuple[int, str], Path] = {}
    timings: dict[tuple[int, str, str], Timing] = {}
    for seed_folder, seed in (pair for folder in folders for pair in _seed_folders(folder)):
        train = load_object(seed_folder / "train" / "metrics.json", Train)
        if train:
            trains.setdefault(seed, train)
        collect = load_object(seed_folder / "collect" / "metrics.json", Collect)
        if collect:
            collects.setdefault(seed, collect)
        timing_files = sorted(seed_folder.rglob("timings.json"))
        for timing in (_load_timing(path, name, seed, seed_folder) for path in timing_files):
            timings.setdefault((timing.seed, timing.folder, timing.stage), timing)
        for method_folder in sorted(path for path in seed_folder.iterdir() if path.is_dir()):
            run = _load_run(method_folder, name, seed)
            if run is None:
                continue
            other = sources.setdefault((seed, run.folder), method_folder)
            if other != method_folder:
                raise ValueError(f"{method_folder} and {other} hold the same run: remove one of the two")
            runs[seed, run.folder] = run
    if not trains and not runs:
        return None
    groups: dict[tuple[str, str], list[Run]] = {}
    for key in sorted(runs):
        groups.setdefault((runs[key].method, runs[key].folder), []).append(runs[key])
    ordered = sorted(groups, key=lambda key: sort_key(*key))
    methods = [MethodRuns(name, *key, groups[key]) for key in ordered]
    return Experiment(
        name, dict(sorted(trains.items())), methods, list(timings.values()), dict(sorted(collects.items()))
    )


def _seed_folders(folder: Path) -> list[tuple[Path, int]]:
    """The folders seed<k>, ordered by k."""
    matches = [(path, re.fullmatch(r"seed(\d+)", path.name)) for path in folder.iterdir() if path.is_dir()]
    return sorted(((path, int(match[1])) for path, match in matches if match), key=lambda pair: pair[1])


def _load_run(folder: Path, experiment: str, seed: int) -> Run | None:
    """Load one method's folder; None where it holds no stage's metrics."""
    prune = load_object(folder / "prune" / "metrics.json", Prune)
    retrain = load_object(folder / "retrain" / "metrics.json", Retrain)
    evaluate = _load_evaluate(folder / "evaluate" / "metrics.json")
    known = prune or retrain or evaluate
    if known is None:
        return None
    layers = folder / "prune" / "layers.json"
    return Run(
        experiment=experiment,
        seed=seed,
        folder=folder.name,
        method=known.method,
        prune=prune,
        retrain=retrain,
        evaluate=evaluate,
        prune_layers=parse_list(Layer, read_json(layers), layers) if layers.exists() else [],
        paths=load_rows(folder / "prune" / "paths.csv", PathPoint),
        first_layer_curve=load_rows(folder / "prune" / "first_layer_curve.csv", AccuracyPoint),
        density_curve=load_rows(folder / "prune" / "density_curve.csv", DensityPoint),
        histogram=_load_histogram(folder / "prune" / "sensitivities.json"),
        retrain_curve=load_rows(folder / "retrain" / "curve.csv", RetrainPoint),
    )


def _load_evaluate(path: Path) -> Evaluate | None:
    if not path.exists():
        return None
    data = read_json(path)
    pruned = data.get("pruned") if isinstance(data, dict) else None
    if not isinstance(pruned, dict):
        raise ValueError(f"{path}: key 'pruned' is missing or no object")
    parts = {name: data.get(name) for name in ("dense", "pruned", "retrained")}
    known = {name: part for name, part in parts.items() if isinstance(part, dict)}
    top5 = {name: part[_TOP5] for name, part in known.items() if part.get(_TOP5) is not None}
    after = known.get("retrained", {}).get("storage")
    return parse(Evaluate, {"method": data.get("method"), **pruned, "top5": top5, "retrained_storage": after}, path)


def _load_histogram(path: Path) -> Histogram | None:
    """Load a histogram; methods without sensitivities write an empty object."""
    data = read_json(path) if path.exists() else {}
    if not data:
        return None
    histogram = parse(Histogram, {**data, "share_below": data.get("share_below_0.001")}, path)
    if len(histogram.log10_edges) != len(histogram.counts) + 1:
        raise ValueError(
            f"{path}: {len(histogram.counts)} counts need {len(histogram.counts) + 1} log10_edges, "
            f"got {len(histogram.log10_edges)}"
        )
    return histogram


def _load_timing(path: Path, experiment: str, seed: int, seed_folder: Path) -> Timing:
    *folder, stage = path.parent.relative_to(seed_folder).parts
    data = read_json(path)
    place = {"experiment": experiment, "seed": seed, "folder": "/".join(folder), "stage": stage}
    return parse(Timing, {**data, **place} if isinstance(data, dict) else data, path)
