"""Command track: bring MLflow's store, which is only a view, up to date with the metrics files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lobs_paper.progress import progress
from lobs_paper.tracking.runs import sync


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Bring MLflow up to date with the runs and the report.

    Args:
        config: what `STAGE_KEYS["track"]` lists.

    Returns:
        How many runs were created, updated and left as they were.
    """
    names = config["folders"]
    counts = sync(
        [Path(folder) for folder in (names["runs"], *names["further_runs"])],
        Path(names["mlflow"]),
        Path(names["reports"]),
        models=config["track"]["models"],
        progress=progress("MLflow"),
    )
    return {"store": names["mlflow"], **counts}
