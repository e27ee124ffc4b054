"""MLflow stores for the tests, and what they show."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lobs.experiment.mlflow_store import KEY


@pytest.fixture(scope="session")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database: MLflow needs seconds to create one, a copy does not."""
    folder = tmp_path_factory.mktemp("schema")
    client_of(folder).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, schema: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(schema, folder)
    return folder


def client_of(store: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{store}/mlflow.db")


def visible(store: Path) -> dict[str, Any]:
    """All visible runs by key; fails where a key is there twice."""
    client = client_of(store)
    found = client.search_runs([client.get_experiment_by_name("paper").experiment_id])
    keys = [run.data.tags[KEY] for run in found]
    assert len(keys) == len(set(keys))
    return dict(zip(keys, found, strict=True))
