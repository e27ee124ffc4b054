"""MLflow's sqlite store: runs found by their key, built whole or not at all, and the networks logged with them.

A run is found by its tag `lobs.key`; its tag `lobs.digest` says which contents it was built from, and is written last.
So an unchanged run stays untouched, a changed or half-built one is deleted and built anew, and no run is ever there
twice. Everything goes through a client, so that MLflow's global state (active run, tracking URI) stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
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
MODEL = "model"
NOT_LOGGED = "lobs.model_not_logged"
# The artifact that compares a parent's children: `mlflow.load_table` gives it as a frame.
COMPARISON = "comparison.json"
# MLflow's limits on one request.
_METRICS = 1000
_PARAMS = 100


@dataclass(frozen=True)
class NetworkFile:
    """A network to log.

    Attributes:
        weights: safetensors file of its state dict.
        experiment: whose network it is.
        model: group `model` of the configuration that it was built from.
        shape: of one input, ``[channels, height, width]``.
    """

    weights: Path
    experiment: str
    model: Mapping[str, Any]
    shape: Sequence[int]


@dataclass
class Entry:
    """What one run shows.

    Attributes:
        name: name of the run.
        key: identifies it, also on later runs.
        digest: of what it is made from.
        params: settings.
        tags: columns of the compare view.
        metrics: (name, value, step).
        files: (file, folder among the artifacts).
        network: to log as a model.
        failed: whether the run is shown as failed.
    """

    name: str
    key: str
    digest: str
    params: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    metrics: list[tuple[str, float, int]] = field(default_factory=list)
    files: list[tuple[Path, str]] = field(default_factory=list)
    network: NetworkFile | None = None
    failed: bool = False

    def add(self, name: str, value: Any, step: int = 0) -> None:
        """Add a metric if it is a finite number: MLflow would store infinity as a large number."""
        if isinstance(value, (int, float)) and isfinite(value):
            # Other characters than these are refused.
            self.metrics.append((re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name), float(value), step))


@contextmanager
def opened(folder: Path) -> Iterator[Store]:
    """The store in a folder, created when it is missing.

    Two processes that create the database, or one run, at once would get in each other's way: the second one waits.

    Args:
        folder: for the database (`mlflow.db`) and the artifacts.

    Yields:
        The store.

    Raises:
        ValueError: the database is damaged, or another version of MLflow's.
        MlflowException: the disk is full or read-only.
        SQLAlchemyError: likewise.
    """
    from filelock import FileLock
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "sync.lock"):
        try:
            _create(folder)
            store = Store(folder)
        except (MlflowException, SQLAlchemyError) as error:
            cause = " ".join(str(error).split())[:200]
            if "disk" in cause or "readonly" in cause:  # full, or not to be written to: the database is right
                raise
            raise ValueError(
                f"{folder / DATABASE} cannot be read by this version of MLflow ({cause}): delete it, it is built anew "
                "from the metrics files, or run `mlflow db upgrade` on it"
            ) from None
        yield store


class Store:
    """An open store; use `opened`.

    Args:
        folder: absolute path.
    """

    def __init__(self, folder: Path) -> None:
        self._artifacts = folder / "artifacts"
        self._client = _client(folder)
        self._experiment_id = self._experiment()
        self._present = self._runs()

    def parent(self, key: str, tags: Mapping[str, Any]) -> str:
        """The id of a parent run, created when it is missing.

        It holds no metrics of its own, so it never has to be built anew, which would orphan its children.

        Args:
            key: its key, and its name.
            tags: of a new one.

        Returns:
            The id.
        """
        runs = self._present.setdefault(key, [])
        if not runs:
            texts = {KEY: key, **{name: str(value) for name, value in tags.items()}}
            runs.append(self._client.create_run(self._experiment_id, tags=texts, run_name=key))
            self._client.set_terminated(runs[0].info.run_id)
        for run in runs[1:]:  # an experiment that someone deleted and we restored brings back all its runs
            self._delete(run)
        del runs[1:]
        return runs[0].info.run_id

    def put(self, entry: Entry, parent: str) -> str:
        """Bring a child run up to date.

        Args:
            entry: what it is to show.
            parent: id of the parent run.

        Returns:
            `created`, `updated`, or `unchanged` where the run was there already.
        """
        known = self._present.get(entry.key, [])
        wanted = {DIGEST: entry.digest, PARENT: parent}
        current = [run for run in known if wanted.items() <= run.data.tags.items()]
        for run in known:
            if run not in current[:1]:
                self._delete(run)
        if not current:
            self._build(entry, parent)
        return "unchanged" if current else "updated" if known else "created"

    def attach(self, run_id: str, folder: Path, name: str, digest: str) -> None:
        """Attach a folder's files to a run, in the place of those of the time before; nothing if they are the same.

        Args:
            run_id: the run.
            folder: the files.
            name: their folder among the run's artifacts.
            digest: of the files.
        """
        tag = f"lobs.{name}"
        if self._client.get_run(run_id).data.tags.get(tag) == digest:
            return
        shutil.rmtree(self._artifacts / run_id / "artifacts" / name, ignore_errors=True)
        self._client.log_artifacts(run_id, str(folder), name)
        self._client.set_tag(run_id, tag, digest)

    def compare(self, run_id: str, rows: Sequence[Entry], names: Sequence[str], file: str = COMPARISON) -> None:
        """Log a table of children to their parent, as MLflow's UI shows tables; nothing if it is the same.

        Args:
            run_id: the parent run.
            rows: the children.
            names: of the metrics to compare; of several steps the last one counts.
            file: among the run's artifacts.
        """
        tags = dict.fromkeys(key for entry in rows for key in entry.tags)
        columns: dict[str, list[Any]] = {"run": [entry.name for entry in rows]}
        columns |= {key: [str(entry.tags.get(key, "")) for entry in rows] for key in tags}
        metrics = [{name: value for name, value, _ in entry.metrics} for entry in rows]
        columns |= {name: [own.get(name) for own in metrics] for name in names if any(name in own for own in metrics)}
        digest = hashlib.sha256(json.dumps(columns).encode()).hexdigest()
        tag = f"lobs.{Path(file).stem}"
        if self._client.get_run(run_id).data.tags.get(tag) == digest:
            return
        (self._artifacts / run_id / "artifacts" / file).unlink(missing_ok=True)  # log_table appends
        self._client.log_table(run_id, columns, file)
        self._client.set_tag(run_id, tag, digest)

    def _build(self, entry: Entry, parent: str) -> None:
        """Build a child run; its digest comes last and vouches for the rest."""
        from mlflow.entities import Metric, Param, RunTag

        client = self._client
        tags = {**entry.tags, KEY: entry.key, PARENT: parent}
        texts = {key: str(value) for key, value in tags.items()}
        run_id = client.create_run(self._experiment_id, tags=texts, run_name=entry.name).info.run_id
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value, step in entry.metrics]
        params = [Param(key, str(value)) for key, value in entry.params.items()]
        for start in range(0, len(params), _PARAMS):
            client.log_batch(run_id, params=params[start : start + _PARAMS])
        for start in range(0, len(metrics), _METRICS):
            client.log_batch(run_id, metrics=metrics[start : start + _METRICS])
        if entry.files:
            with tempfile.TemporaryDirectory() as folder:
                for path, place in entry.files:
                    target = Path(folder) / place
                    target.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, target)
                client.log_artifacts(run_id, folder)
        if entry.network is not None:
            try:
                self._log_network(run_id, entry, entry.network)
            except Exception as error:  # whatever somebody's network or its export raises: the numbers are shown anyhow
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                client.set_tag(run_id, NOT_LOGGED, reason[:1000])
        client.log_batch(run_id, tags=[RunTag(DIGEST, entry.digest)])
        client.set_terminated(run_id, "FAILED" if entry.failed else "FINISHED")

    def _log_network(self, run_id: str, entry: Entry, file: NetworkFile) -> None:
        """Log a network so that `mlflow.pytorch.load_model("runs:/<run>/model")` gives it back.

        It is stored as an exported graph (`pt2`) and not as a pickle: loading it runs no code and needs none of ours.
        Any batch size will do; dropout and batch norms are those of evaluation.
        """
        import mlflow.pytorch
        import numpy as np
        import torch
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus
        from mlflow.models import Model, ModelSignature
        from mlflow.types.schema import Schema, TensorSpec

        from lobs_paper.config.own_names import check_network
        from lobs_paper.files import load_tensors
        from lobs_paper.networks.build import build

        check_network(file.experiment, file.model)  # the results may be anybody's
        network = build(file.model)
        network.load_state_dict(load_tensors(file.weights, "lobs retrain"))
        network.eval()
        # Two, because an exported graph takes a batch of one for a constant.
        example = np.zeros((2, *file.shape), np.float32)
        with torch.no_grad():
            outputs = network(torch.from_numpy(example))
        inputs, results = (
            Schema([TensorSpec(np.dtype(np.float32), (-1, *shape[1:]))]) for shape in (example.shape, outputs.shape)
        )
        client = self._client
        logged = client.create_logged_model(
            self._experiment_id,
            name=MODEL,
            source_run_id=run_id,
            params={key: str(value) for key, value in entry.params.items()},
            tags={key: str(value) for key, value in entry.tags.items()},
        )
        try:
            with tempfile.TemporaryDirectory() as folder:
                mlflow.pytorch.save_model(
                    network,
                    f"{folder}/{MODEL}",
                    mlflow_model=Model(
                        artifact_path=logged.artifact_location,
                        model_uuid=logged.model_id,
                        run_id=run_id,
                        model_id=logged.model_id,
                    ),
                    signature=ModelSignature(inputs, results),
                    input_example=example,
                    pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
                    serialization_format="pt2",
                )
                client.log_model_artifacts(logged.model_id, f"{folder}/{MODEL}")
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        except Exception:
            client.delete_logged_model(logged.model_id)
            raise
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)

    def _delete(self, run: Run) -> None:
        """Delete a run with its network and its files, which MLflow would keep until `mlflow gc`."""
        run_id = run.info.run_id
        for model in self._client.search_logged_models([self._experiment_id], f"source_run_id = '{run_id}'"):
            self._client.delete_logged_model(model.model_id)
            shutil.rmtree(self._artifacts / "models" / model.model_id, ignore_errors=True)
        self._client.delete_run(run_id)
        shutil.rmtree(self._artifacts / run_id, ignore_errors=True)

    def _experiment(self) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is not None:
            if experiment.lifecycle_stage == "deleted":
                self._client.restore_experiment(experiment.experiment_id)
            return experiment.experiment_id
        return self._client.create_experiment(EXPERIMENT, artifact_location=self._artifacts.as_uri())

    def _runs(self) -> dict[str, list[Run]]:
        """All visible runs with a key, those of one key together."""
        present: dict[str, list[Run]] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs([self._experiment_id], max_results=1000, page_token=token)
            for run in page:
                if KEY in run.data.tags:
                    present.setdefault(run.data.tags[KEY], []).append(run)
            token = page.token
            if not token:
                return present


def _create(folder: Path) -> None:
    """Create the database, which takes MLflow seconds, under another name: half of one could never be opened again."""
    database, unfinished = folder / DATABASE, f"{DATABASE}.partial"
    for left in folder.glob(f"{unfinished}*"):  # of a process that was killed, with SQLite's journal
        left.unlink()
    if not database.exists():
        _client(folder, unfinished).search_experiments()
        (folder / unfinished).replace(database)


def _client(folder: Path, database: str = DATABASE) -> MlflowClient:
    """A client of a sqlite store, without telemetry and without messages on standard error."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=f"sqlite:///{folder / database}")
