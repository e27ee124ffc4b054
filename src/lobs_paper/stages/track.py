"""Command track: bring MLflow's store, which is only a view, up to date with the metrics files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lobs_paper.stages.progress import progress
from lobs_paper.tracking.runs import sync


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Bring MLflow up to date with the runs and the report.

    Args:
        config: what `STAGE_KEYS["track"]` lists.

    Returns:
        How many runs were created, updated and left as they were.
    """
    paths = config["paths"]
    counts = sync(
        [Path(folder) for folder in (paths["runs"], *paths["further_runs"])],
        Path(paths["mlflow"]),
        Path(paths["reports"]),
        models=config["track"]["models"],
        progress=progress("MLflow"),
    )
    return {"store": paths["mlflow"], **counts}
