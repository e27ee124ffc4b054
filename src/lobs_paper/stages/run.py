"""Runs a stage by its name."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

# Set before torch or MLflow is imported, unless the user has set it.
ENVIRONMENT = {
    # Threads that wait by spinning make a small network 30 times slower as soon as another process wants a core.
    "OMP_WAIT_POLICY": "PASSIVE",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    # cuBLAS is deterministic only with a fixed workspace.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def run_stage(stage: str, config: dict[str, Any]) -> dict[str, Any]:
    """Import a stage and run it.

    Args:
        stage: the name of its module.
        config: the part of the configuration that it reads.

    Returns:
        Its metrics.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.stdout.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # torchvision's bars while it downloads
    return import_module(f"lobs_paper.stages.{stage}").run(config)
