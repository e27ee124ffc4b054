"""The MLflow view of the runs: one sqlite store, rebuilt from the metrics files as often as one likes.

The files are the truth and MLflow is a view of them: nothing is read back from it but the keys and digests of the
runs already there (store.py). The experiment "paper" holds a parent run per network, with a table that compares its
runs, and below it a child per method and seed; a sweep is a parent `sweep/<name>` with a table per stage and a child
per stage and point. Runs whose files have gone stay as they are.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lobs_paper.config.yaml_files import read_yaml
from lobs_paper.files import read_object
from lobs_paper.results import read_result
from lobs_paper.tracking.store import Entry, NetworkFile, opened

# Part of every digest: to be raised when what is logged changes, so that the next sync builds all runs anew.
_LAYOUT = 5
_STAGES = ("prune", "retrain", "evaluate")
_SEED_STAGES = ("train", "collect")
# What the stages were given: `lobs resolve` writes one such file per stage instance beside the folder of runs.
_RESOLVED = "resolved"
_COMPARED = ("network", "data", "method", "density", "seed")
_SHARED = ("network", "data")
# What the table of a network's runs compares.
_TABLE = (
    *("density", "error_before_percent", "error_after_pruning_percent", "error_after_refit_percent"),
    *("error_after_retraining_percent", "iterations", "output_error", "bound"),
)
_LAYER_METRICS = ("density", "error", "relative_error", "bound_contribution")


def sync(
    runs_dirs: Path | Sequence[Path],
    store: Path,
    reports_dir: Path | None = None,
    *,
    models: bool = True,
    progress: Callable[[Sequence[Entry]], Iterable[Entry]] = iter,
) -> dict[str, int]:
    """Bring the MLflow store up to date with the metrics files.

    Args:
        runs_dirs: one folder of runs or several, each with `<experiment>/seed<k>/train/` and, beside it,
            `<method>/{prune,retrain,evaluate}/`; those that do not exist are passed over. What `lobs resolve` wrote is
            looked for in `resolved/` beside each.
        store: folder for the database (`mlflow.db`) and the artifacts; created when it is missing.
        reports_dir: where it is there, its files are attached to every network's parent run.
        models: also log each pruned (and retrained) network whose file is there.
        progress: wraps the runs while they are written.

    Returns:
        How many method runs were `created`, `updated` and found `unchanged`.

    Raises:
        ValueError: a metrics file is broken (named in the message), or a run is in two of the folders; the store is
            then as it was.
    """
    roots = [Path(runs_dirs)] if isinstance(runs_dirs, (str, Path)) else [Path(root) for root in runs_dirs]
    entries: dict[str, Entry] = {}
    for root in roots:
        for folder in _method_folders(root):
            try:
                entry = _entry(root, folder, models)
            except (AttributeError, KeyError, TypeError) as error:  # a value of another type
                raise ValueError(f"{folder}: its files are not what the stages write ({error})") from None
            if entry.key in entries:
                raise ValueError(f"{folder}: {entry.key} is also in another folder of runs; one of them has to go")
            entries[entry.key] = entry
    counts = {"created": 0, "updated": 0, "unchanged": 0}
    with opened(store) as mlflow:
        parents: dict[str, str] = {}
        # MLflow's UI shows the latest runs first: the first seed's, in the order of their names.
        for entry in progress(list(reversed(entries.values()))):
            network = entry.key.split("/", 1)[0]
            if network not in parents:
                tags = {key: value for key, value in entry.tags.items() if key in _SHARED}
                parents[network] = mlflow.parent(network, tags)
            counts[mlflow.put(entry, parents[network])] += 1
        for network, parent in parents.items():
            own = [entry for key, entry in entries.items() if key.split("/", 1)[0] == network]
            mlflow.compare(parent, own, _TABLE)
        if reports_dir is not None and reports_dir.is_dir():
            digest = _digest(path for path in sorted(reports_dir.rglob("*")) if path.is_file())
            for parent in parents.values():
                mlflow.attach(parent, reports_dir, "report", digest)
    return counts


def log_sweep(name: str, stage: str, rows: Sequence[Mapping[str, Any]], store: Path) -> dict[str, int]:
    """Show a sweep's points below the parent run `sweep/<name>`; a point that is there already is replaced.

    Args:
        name: of the sweep.
        stage: that ran at every point.
        rows: one per point: `point` (what was overridden, by key), `metrics` (a flat mapping; what is no number is
            shown as a param) and `error` (None, or why the point failed).
        store: folder of the database and the artifacts; created when it is missing.

    Returns:
        How many points were `created`, `updated` and found `unchanged`.
    """
    counts = {"created": 0, "updated": 0, "unchanged": 0}
    with opened(store) as mlflow:
        parent = mlflow.parent(f"sweep/{name}", {"sweep": name})
        points = [_point(name, stage, row) for row in rows]
        for point in points:
            counts[mlflow.put(point, parent)] += 1
        measured = dict.fromkeys(metric for point in points for metric, _, _ in point.metrics)
        mlflow.compare(parent, points, list(measured), f"{stage}.json")
    return counts


def _point(name: str, stage: str, row: Mapping[str, Any]) -> Entry:
    """A sweep's point as an entry."""
    point = {key.lstrip("+"): value for key, value in row["point"].items()}
    words = ", ".join(f"{key}={value}" for key, value in point.items()) or "as it is"
    content = json.dumps([_LAYOUT, point, row["metrics"], row["error"]], default=str)
    entry = Entry(
        name=words[:250],
        key=f"sweep/{name}/{stage}/{words}",
        digest=hashlib.sha256(content.encode()).hexdigest(),
        tags={"sweep": name, "stage": stage},
        failed=bool(row["error"]),
    )
    for key, value in row["metrics"].items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            entry.add(key, value)
        elif value is not None:
            entry.params[key] = value
    entry.params.update(point)
    described = {**entry.params, **point}
    entry.tags.update({key: described[key] for key in _COMPARED if key in described})
    if row["error"]:
        entry.tags["error"] = str(row["error"])[:5000]
    return entry


def _method_folders(runs_dir: Path) -> Iterator[Path]:
    """The folders <experiment>/seed<k>/<method> that hold a stage's metrics."""
    for folder in sorted(runs_dir.glob("*/seed*/*")):
        if any((folder / stage / "metrics.json").exists() for stage in _STAGES):
            yield folder


def _entry(root: Path, folder: Path, models: bool) -> Entry:
    """Read one method's files (and those of the dense network it began with) into an entry."""
    seed_folder = folder.parent
    stages = {stage: read_result(folder, stage) for stage in _STAGES}
    train = read_result(seed_folder, "train")
    prune, retrain, evaluate = (stages[stage] for stage in _STAGES)
    experiment, seed, method = seed_folder.parent.name, seed_folder.name.removeprefix("seed"), folder.name
    configs = _config_files(root, folder)
    config = _config(root, configs.get("prune"))
    if config is None:  # written by another configuration than the one that lies there now
        configs = {}
    network = _network(root, folder, config) if models and config else None
    measured = [
        place / file
        for place in (seed_folder / "train", *(folder / stage for stage in _STAGES))
        for file in ("metrics.json", "layers.json", "curve.csv")
    ]
    entry = Entry(
        name=f"{method}, seed {seed}",
        key=f"{experiment}/seed{seed}/{method}",
        digest=_digest([*measured, *configs.values(), *([network.weights] if network else [])]),
        files=[(path, "config") for path in configs.values()],
        network=network,
    )
    outcome = retrain or prune  # density and errors after all rounds, where there was retraining
    density = outcome.get("density")
    settings = {
        "experiment": experiment,
        "network": train.get("model", experiment),
        "data": evaluate.get("data") or prune.get("data") or (config or {}).get("data", {}).get("name"),
        "method": method,
        "seed": seed,
        "solver": prune.get("solver"),
        "allocation": prune.get("allocation"),
        "density": f"{density:.4g}" if isinstance(density, (int, float)) else None,
        "tolerance": prune.get("requested", {}).get("tolerance"),
    }
    entry.params = {key: value for key, value in settings.items() if value is not None}
    entry.tags = {key: entry.params[key] for key in _COMPARED if key in entry.params}
    pruned = evaluate.get("pruned", {})
    entry.add("density", density)
    entry.add("compression_ratio", 1 / density if density else None)
    entry.add("error_before_percent", outcome.get("error_before_percent"))
    # Retraining goes on from the refitted network: only stage prune knows the error before that.
    refitted = "error_after_refit_percent"
    entry.add(
        "error_after_pruning_percent", (prune if refitted in prune else outcome).get("error_after_pruning_percent")
    )
    entry.add(refitted, prune.get(refitted))
    for key in ("error_after_retraining_percent", "iterations", "iterations_to_original"):
        entry.add(key, retrain.get(key))
    entry.add("layer_error_sum", prune.get("layer_error_sum"))
    entry.add("output_error", pruned.get("output_error"))
    entry.add("bound", pruned.get("bound"))
    layers = pruned.get("layers") or _read_json(folder / "prune" / "layers.json", list)
    if layers:
        entry.params["layers"] = ", ".join(str(layer.get("name")) for layer in layers)
    for index, layer in enumerate(layers):
        for key in _LAYER_METRICS:
            entry.add(f"layer_{key}", layer.get(key), index)
    _add_curve(entry, "train", seed_folder / "train" / "curve.csv", "epoch")
    _add_curve(entry, "retrain", folder / "retrain" / "curve.csv", "iteration")
    return entry


def _add_curve(entry: Entry, prefix: str, path: Path, step: str) -> None:
    """Add the columns of a curve over one of them."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                position = int(row[step])
                values = {key: float(row[key]) for key in ("train_loss", "test_error_percent") if row[key]}
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {line}: not a row of a curve over '{step}' ({error})") from None
            for key, value in values.items():
                entry.add(f"{prefix}_{key}", value, position)


def _config_files(root: Path, folder: Path) -> dict[str, Path]:
    """What the stages of a run were given, as far as it is there."""
    run = root.parent / _RESOLVED / folder.relative_to(root)
    files = {
        **{stage: run.parent / f"{stage}.yaml" for stage in _SEED_STAGES},
        **{stage: run / f"{stage}.yaml" for stage in _STAGES},
    }
    return {stage: path for stage, path in files.items() if path.exists()}


def _config(root: Path, path: Path | None) -> dict[str, Any] | None:
    """The configuration of a stage, if it is about this folder of runs and not about another one beside it."""
    if path is None:
        return None
    config = read_yaml(path)
    try:
        own = Path(config["folders"]["runs"]).name == root.name
        # Where the data lies and what it is called is asked for later.
        _ = Path(config["folders"]["data"]) / config["data"]["name"], config["model"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not what `lobs resolve` writes ({' '.join(str(error).split())})") from None
    return config if own else None


def _network(root: Path, folder: Path, config: Mapping[str, Any]) -> NetworkFile | None:
    """The run's last network, if its file is there and the shape of an input can be told."""
    stages = [stage for stage in ("retrain", "prune") if (folder / stage / "model.safetensors").exists()]
    shape = _input_shape(root.parent / config["folders"]["data"], config["data"]) if stages else None
    if shape is None:
        return None
    return NetworkFile(folder / stages[0] / "model.safetensors", folder.parts[-3], config["model"], shape)


def _input_shape(data_dir: Path, data: Mapping[str, Any]) -> list[int] | None:
    """``[channels, height, width]`` of a stored data set's images, from the head of its file."""
    path = data_dir / data["name"] / "test.safetensors"
    if not path.exists():
        return None
    from lobs.base.tensor_files import TensorFile

    file = TensorFile(path, "data set", f"run `lobs fetch data={data['name']}`", note=False)
    if "images" not in file.keys():  # noqa: SIM118 (not a mapping)
        size = data.get("size")  # of pictures, decoded and cropped when they are read
        return [3, size, size] if isinstance(size, int) else None
    shape = file.described("images")[1][1:]
    return shape if len(shape) == 3 else [1, *shape]


def _read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON object (or list); an empty one where there is no file."""
    return read_object(path, kind) if path.exists() else kind()


def _digest(files: Iterable[Path]) -> str:
    """Digest of files, by their names and contents; one that is missing counts as empty."""
    digest = hashlib.sha256(str(_LAYOUT).encode())
    for path in files:
        digest.update(f"\n{path.parent.name}/{path.name}\n".encode())
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()
