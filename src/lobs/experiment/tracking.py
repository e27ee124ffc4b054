"""The MLflow view of the runs: one sqlite store, rebuilt from the metrics files as often as one likes.

The files are the truth and MLflow is a view of them: nothing is read back from it but the keys and digests of the
runs already there. The experiment "paper" holds a parent run per network and, below it, a child per method and seed.
A run is found by its tag `lobs.key`; its tag `lobs.digest` says which contents it was built from, and is written last.
So an unchanged run stays untouched, a changed or half-built one is deleted and built anew, and no run is ever there
twice. Runs whose files have gone stay as they are.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "paper"
DATABASE = "mlflow.db"
KEY = "lobs.key"
DIGEST = "lobs.digest"
PARENT = "mlflow.parentRunId"  # MLflow's own name for it
# Part of every digest: to be raised when what is logged changes, so that the next sync builds all runs anew.
_LAYOUT = 1
_STAGES = ("prune", "retrain", "evaluate")
# MLflow's limit on the metrics of one request.
_BATCH = 1000


@dataclass
class Entry:
    """What one child run shows.

    Attributes:
        experiment: name of our experiment (the parent run).
        name: name of the run.
        key: identifies it for ever.
        digest: of the files it is made from.
        params: settings.
        tags: columns of the compare view.
        metrics: (name, value, step).
    """

    experiment: str
    name: str
    key: str
    digest: str
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    metrics: list[tuple[str, float, int]] = field(default_factory=list)


def sync(runs_dir: Path, store: Path, reports_dir: Path | None = None) -> dict[str, int]:
    """Bring the MLflow store up to date with the metrics files.

    Args:
        runs_dir: holds `<experiment>/seed<k>/train/` and, beside it, `<method>/{prune,retrain,evaluate}/`.
        store: folder for the database (`mlflow.db`) and the artifacts; created when it is missing.
        reports_dir: where it is there, its files are attached to every parent run.

    Returns:
        How many method runs were `created`, `updated` and found `unchanged`.

    Raises:
        ValueError: a metrics file is broken (named in the message); the store is then as it was.
    """
    entries = [_entry(folder) for folder in _method_folders(Path(runs_dir))]
    from filelock import FileLock

    store = Path(store).resolve()
    store.mkdir(parents=True, exist_ok=True)
    counts = {"created": 0, "updated": 0, "unchanged": 0}
    # Two processes that create the database, or one run, at once would get in each other's way.
    with FileLock(store / "sync.lock"):
        client = _client(store)
        experiment_id = _experiment_id(client, store)
        present = _present_runs(client, experiment_id)
        for entry in entries:
            parent = _parent(client, experiment_id, entry, present)
            known = present.get(entry.key, [])
            wanted = {DIGEST: entry.digest, PARENT: parent}
            current = [run for run in known if wanted.items() <= run.data.tags.items()]
            for run in known:
                if run not in current[:1]:
                    client.delete_run(run.info.run_id)
            if not current:
                _create(client, experiment_id, parent, entry)
            counts["unchanged" if current else "updated" if known else "created"] += 1
        if reports_dir is not None:
            _attach_report(client, experiment_id, Path(reports_dir))
    return counts


def _method_folders(runs_dir: Path) -> Iterator[Path]:
    """The folders <experiment>/seed<k>/<method> that hold a stage's metrics."""
    for folder in sorted(runs_dir.glob("*/seed*/*")):
        if any((folder / stage / "metrics.json").exists() for stage in _STAGES):
            yield folder


def _entry(folder: Path) -> Entry:
    """Read one method's files (and those of the dense network it began with) into an entry."""
    seed_folder = folder.parent
    stages = {stage: _read_json(folder / stage / "metrics.json") for stage in _STAGES}
    train = _read_json(seed_folder / "train" / "metrics.json")
    prune, retrain, evaluate = (stages[stage] for stage in _STAGES)
    experiment, seed, method = seed_folder.parent.name, seed_folder.name.removeprefix("seed"), folder.name
    entry = Entry(
        experiment=experiment,
        name=f"{method}, seed {seed}",
        key=f"{experiment}/seed{seed}/{method}",
        digest=_digest(seed_folder / "train", *(folder / stage for stage in _STAGES)),
    )
    outcome = retrain or prune  # density and errors after all rounds, where there was retraining
    density = outcome.get("density")
    settings = {
        "experiment": experiment,
        "network": train.get("model", experiment),
        "data": train.get("data"),
        "method": method,
        "seed": seed,
        "solver": prune.get("solver"),
        "allocation": prune.get("allocation"),
        "density": None if density is None else f"{density:.4g}",
        "tolerance": prune.get("requested", {}).get("tolerance"),
    }
    entry.params = {key: value for key, value in settings.items() if value is not None}
    compared = ("network", "data", "method", "density", "seed")
    entry.tags = {key: entry.params[key] for key in compared if key in entry.params}
    pruned = evaluate.get("pruned", {})
    _add(entry, "density", density)
    _add(entry, "compression_ratio", 1 / density if density else None)
    for key in ("error_before_percent", "error_after_pruning_percent"):
        _add(entry, key, outcome.get(key))
    for key in ("error_after_retraining_percent", "iterations", "iterations_to_original"):
        _add(entry, key, retrain.get(key))
    _add(entry, "layer_error_sum", prune.get("layer_error_sum"))
    _add(entry, "output_error", pruned.get("output_error"))
    _add(entry, "bound", pruned.get("bound"))
    _add_layers(entry, pruned.get("layers") or _read_json(folder / "prune" / "layers.json", list))
    _add_curve(entry, "train", seed_folder / "train" / "curve.csv", "epoch")
    _add_curve(entry, "retrain", folder / "retrain" / "curve.csv", "iteration")
    return entry


def _add(entry: Entry, name: str, value: Any, step: int = 0) -> None:
    """Add a metric if it is a finite number: MLflow would store infinity as a large number."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        # Other characters than these are refused.
        entry.metrics.append((re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name), float(value), step))


def _add_layers(entry: Entry, layers: list[dict[str, Any]]) -> None:
    """Add each layer's numbers twice: as a curve over the layers, and under the layer's own name."""
    for index, layer in enumerate(layers):
        for key in ("density", "error", "relative_error", "bound_contribution"):
            _add(entry, f"layers/{key}", layer.get(key), index)
            _add(entry, f"layers/{key}/{layer.get('name', index)}", layer.get(key))


def _add_curve(entry: Entry, prefix: str, path: Path, step: str) -> None:
    """Add the columns of a curve over one of them."""
    if not path.exists():
        return
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                position = int(row[step])
                values = {key: float(row[key]) for key in ("train_loss", "test_error_percent") if row[key]}
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {line}: not a row of a curve over '{step}' ({error})") from None
            for key, value in values.items():
                _add(entry, f"{prefix}/{key}", value, position)


def _read_json(path: Path, kind: type = dict) -> Any:
    """Read a JSON object (or list); an empty one where there is no file."""
    if not path.exists():
        return kind()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a {kind.__name__}, got {value!r}")
    return value


def _digest(*folders: Path) -> str:
    """Digest of all metrics files; durations are not among them."""
    digest = hashlib.sha256(str(_LAYOUT).encode())
    for folder in folders:
        for name in ("metrics.json", "layers.json", "curve.csv"):
            path = folder / name
            digest.update(f"\n{folder.name}/{name}\n".encode())
            digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def _client(store: Path) -> MlflowClient:
    """A client of the sqlite store, without telemetry and without messages on standard error."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    import logging

    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=f"sqlite:///{store / DATABASE}")


def _experiment_id(client: MlflowClient, store: Path) -> str:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is not None:
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id
    return client.create_experiment(EXPERIMENT, artifact_location=(store / "artifacts").as_uri())


def _present_runs(client: MlflowClient, experiment_id: str) -> dict[str, list[Run]]:
    """All visible runs with a key, those of one key together."""
    present: dict[str, list[Run]] = {}
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], max_results=_BATCH, page_token=token)
        for run in page:
            if KEY in run.data.tags:
                present.setdefault(run.data.tags[KEY], []).append(run)
        token = page.token
        if not token:
            return present


def _parent(client: MlflowClient, experiment_id: str, entry: Entry, present: dict[str, list[Run]]) -> str:
    """The id of the parent run of the entry's experiment, created when it is missing."""
    # It holds no metrics of its own, so it never has to be built anew, which would orphan its children.
    if entry.experiment not in present:
        tags = {KEY: entry.experiment, "network": str(entry.tags["network"])}
        run = client.create_run(experiment_id, tags=tags, run_name=entry.experiment)
        client.set_terminated(run.info.run_id)
        present[entry.experiment] = [run]
    parent, *others = present[entry.experiment]
    for run in others:  # an experiment that someone deleted and we restored brings back all its runs
        client.delete_run(run.info.run_id)
    present[entry.experiment] = [parent]
    return parent.info.run_id


def _create(client: MlflowClient, experiment_id: str, parent: str, entry: Entry) -> None:
    """Build a child run; its digest comes last and vouches for the rest."""
    from mlflow.entities import Metric, Param, RunTag

    tags = {**entry.tags, KEY: entry.key, PARENT: parent}
    run = client.create_run(experiment_id, tags={key: str(value) for key, value in tags.items()}, run_name=entry.name)
    run_id = run.info.run_id
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in entry.params.items()])
    now = int(1000 * time.time())
    metrics = [Metric(name, value, now, step) for name, value, step in entry.metrics]
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])
    client.log_batch(run_id, tags=[RunTag(DIGEST, entry.digest)])
    client.set_terminated(run_id)


def _attach_report(client: MlflowClient, experiment_id: str, reports_dir: Path) -> None:
    """Attach the report's files to every parent run, replacing those of the time before."""
    if not reports_dir.is_dir():
        return
    for key, runs in _present_runs(client, experiment_id).items():
        if "/" not in key:  # a parent: the keys of children are paths
            client.log_artifacts(runs[0].info.run_id, str(reports_dir), "report")
