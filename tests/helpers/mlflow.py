"""What MLflow stores show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lobs_paper.tracking.store import KEY


def client_of(store: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{store}/mlflow.db")


@contextmanager
def tracked(store: Path) -> Iterator[Any]:
    """MLflow's own functions look at a store."""
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{store}/mlflow.db")
    try:
        yield mlflow
    finally:
        mlflow.set_tracking_uri(before)


def visible(store: Path) -> dict[str, Any]:
    """All visible runs by key; fails where a key is there twice."""
    client = client_of(store)
    found = client.search_runs([client.get_experiment_by_name("paper").experiment_id])
    keys = [run.data.tags[KEY] for run in found]
    assert len(keys) == len(set(keys))
    return dict(zip(keys, found, strict=True))
