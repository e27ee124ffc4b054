"""Hydra's multirun behind `-m`: every point in its own folder, one comparison table at the end."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lobs.pipeline.cli import run_stage
from lobs.pipeline.compose import (
    HYDRA_VERSION_BASE,
    ROOT_CONFIG,
    config_dir,
    finish,
    load,
    opened,
    parse,
    points,
)
from lobs.pipeline.config import ConfigError, stage_config
from lobs.pipeline.devices import is_user_error
from lobs.pipeline.files import write_csv
from lobs.pipeline.stage import flat, print_table


def sweep(stage: str, overrides: Sequence[str]) -> int:
    """Run a stage at every point. All points are checked before the first one runs.

    Args:
        stage: the stage.
        overrides: with comma-separated values, ranges or choices.

    Returns:
        How many points failed; they are listed, and do not stop the others.

    Raises:
        ConfigError: a point's configuration is wrong; nothing has run then.
    """
    for point in points(overrides):
        try:
            load(point)
        except ConfigError as error:
            raise ConfigError(f"{error} (at the point {' '.join(point)})") from None
    with initialize_config_dir(str(config_dir()), version_base=HYDRA_VERSION_BASE):
        hydra: Any = GlobalHydra.instance().hydra
        batches = hydra.multirun(ROOT_CONFIG, _Point(stage), opened(overrides))
    results: list[Mapping[str, Any]] = [job.return_value for batch in batches for job in batch]
    _compare(stage, results)
    return sum(1 for result in results if result["error"])


class _Point:
    """Runs one point; a failure becomes part of the result, since Hydra would raise it and drop the others.

    A class and no closure, because a launcher may send it to another process.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def __call__(self, composed: DictConfig) -> dict[str, Any]:
        job = HydraConfig.get()
        overrides = list(job.overrides.task)
        result: dict[str, Any] = {"point": overrides, "folder": job.sweep.dir, "metrics": {}, "error": None}
        try:
            config = finish(composed, parse(overrides))
            config["paths"]["output"] = str(Path(job.runtime.output_dir))
            result["metrics"] = flat(run_stage(self.stage, stage_config(config, self.stage)))
        except Exception as error:
            if not is_user_error(error):
                traceback.print_exc()
            result["error"] = f"{type(error).__name__}: {error}"
        return result


def _compare(stage: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Write all points as CSV; print what differs between those that succeeded, then the failures."""
    rows = []
    for result in results:
        point = dict(item.lstrip("+").split("=", 1) for item in result["point"])
        own = {key: value for key, value in result["metrics"].items() if key not in point}
        rows.append({**point, **own, "error": result["error"]})
    columns = [*dict.fromkeys(key for row in rows for key in row if key != "error"), "error"]
    file = Path(results[0]["folder"]) / f"{stage}.csv"
    write_csv(file, rows, columns)
    succeeded = [row for row in rows if not row["error"]]
    shown = [key for key in columns if len({str(row.get(key)) for row in succeeded}) > 1] or columns[:-1]
    print_table(f"lobs {stage} -m", [{key: row.get(key) for key in shown} for row in succeeded])
    print(f"{len(rows)} points, all columns in {file}")
    for row, result in zip(rows, results, strict=True):
        if row["error"]:
            print(f"failed: {' '.join(result['point'])}: {row['error']}")
