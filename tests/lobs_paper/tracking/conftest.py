"""MLflow stores for the tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from helpers.mlflow import client_of
from helpers.runs import write_runs


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


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_runs(tmp_path / "runs", seeds=(0, 1))
