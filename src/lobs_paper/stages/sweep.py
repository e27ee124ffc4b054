"""Hydra's multirun behind `-m`: every point in its own folder, one comparison table at the end, the same in MLflow.

Where the points run is Hydra's matter: one after the other here, or by `+launcher=...` (conf/launcher) side by side on
this machine or as jobs of a cluster.
"""

from __future__ import annotations

import csv
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from lobs_paper.config.compose import (
    HYDRA_VERSION_BASE,
    finish,
    implied,
    load,
    opened,
    parse,
    points,
    say_unread,
)
from lobs_paper.config.errors import ConfigError
from lobs_paper.config.folder import ROOT_CONFIG, config_dir
from lobs_paper.config.stage_parts import stage_config
from lobs_paper.files import write_csv, write_json
from lobs_paper.stages.faults import is_user_error, machine_fault
from lobs_paper.stages.folders import POINT
from lobs_paper.stages.prerequisites import run_missing
from lobs_paper.stages.printing import clock, flat, print_table
from lobs_paper.stages.run import run_stage


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
    overrides = implied(overrides)
    checked, configs = points(overrides), []
    for point in checked:
        try:
            configs.append(load(point))
        except ConfigError as error:
            raise ConfigError(f"{error} (at the point {' '.join(point)})") from None
    say_unread(stage, configs[0], overrides)
    for config in configs:
        run_missing(stage, config, run_stage, seed_only=True)
    with initialize_config_dir(str(config_dir()), version_base=HYDRA_VERSION_BASE):
        hydra: Any = GlobalHydra.instance().hydra
        batches = hydra.multirun(ROOT_CONFIG, _Point(stage, len(checked)), opened(overrides))
    results: list[Mapping[str, Any]] = [job.return_value for batch in batches for job in batch]
    rows = [{**result, "point": _varied(result["point"])} for result in results]
    _compare(stage, rows)
    _log(stage, rows, parse(overrides), Path(configs[-1]["folders"]["mlflow"]))
    return sum(1 for result in results if result["error"])


class _Point:
    """Runs one point; a failure becomes part of the result, since Hydra would raise it and drop the others.

    A class and no closure, because a launcher may send it to another process.

    Args:
        stage: the stage.
        count: how many points there are.
    """

    def __init__(self, stage: str, count: int) -> None:
        self.stage = stage
        self.count = count
        self.process = os.getpid()
        self.start = time.time()

    def __call__(self, composed: DictConfig) -> dict[str, Any]:
        if os.getppid() == self.process:
            threading.Thread(target=_end_with, args=(self.process,), daemon=True).start()
        job = HydraConfig.get()
        overrides = list(job.overrides.task)
        self._announce(job.job.num, overrides)
        # Bars of several processes would write over each other.
        with nullcontext() if os.getpid() == self.process else redirect_stdout(StringIO()):
            return self._result(composed, job, overrides)

    def _announce(self, done: int, overrides: Sequence[str]) -> None:
        """On a terminal: which point begins, and for how long the sweep will go on at this pace."""
        if sys.stdout.isatty():
            spent = time.time() - self.start
            left = f", {clock(spent / done * (self.count - done))} left" if done else ""
            print(f"point {done + 1} of {self.count}{left}: {' '.join(overrides)}", flush=True)

    def _result(self, composed: DictConfig, job: Any, overrides: Sequence[str]) -> dict[str, Any]:
        result: dict[str, Any] = {"point": list(overrides), "folder": job.sweep.dir, "metrics": {}, "error": None}
        try:
            config = finish(composed, parse(overrides))
            config["folders"]["output"] = str(Path(job.runtime.output_dir))
            result["metrics"] = flat(run_stage(self.stage, stage_config(config, self.stage)))
        except Exception as error:
            fault = machine_fault(error)
            if not (fault or is_user_error(error)):
                traceback.print_exc()
            result["error"] = f"{type(error).__name__}: {fault or error}"
        write_json(Path(job.runtime.output_dir) / POINT, {"point": _varied(overrides), "error": result["error"]})
        return result


def _end_with(parent: int) -> None:
    """End this process, a worker of joblib's, when its parent has: nobody would take the points' results any more."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _varied(overrides: Sequence[str]) -> dict[str, str]:
    """A point's overrides by key, without the names of the sweep and of the launcher."""
    pairs = (item.lstrip("+").split("=", 1) for item in overrides)
    return {key: value for key, value in pairs if key not in ("sweep", "launcher")}


def _compare(stage: str, results: Sequence[Mapping[str, Any]]) -> None:
    """Write all points as CSV; print what differs between those that succeeded, then the failures."""
    rows = []
    for result in results:
        own = {key: value for key, value in result["metrics"].items() if key not in result["point"]}
        rows.append({**result["point"], **own, "error": result["error"]})
    columns = [*dict.fromkeys(key for row in rows for key in row if key != "error"), "error"]
    file = _write_table(Path(results[0]["folder"]), stage, rows, columns, [result["point"] for result in results])
    succeeded = [row for row in rows if not row["error"]]
    shown = [key for key in columns if len({str(row.get(key)) for row in succeeded}) > 1] or columns[:-1]
    print_table(f"lobs {stage} -m", [{key: row.get(key) for key in shown} for row in succeeded])
    print(f"{len(rows)} points, all columns in {file}")
    for row, result in zip(rows, results, strict=True):
        if row["error"]:
            print(f"failed: {' '.join(f'{key}={value}' for key, value in result['point'].items())}: {row['error']}")


def _write_table(
    folder: Path,
    stage: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    points: Sequence[Mapping[str, str]],
) -> Path:
    """Write a sweep's table beside those of other sweeps in its folder; the same points once more replace theirs."""
    wanted = [{key: str(value) for key, value in point.items()} for point in points]
    folder.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        file = folder / (f"{stage}.csv" if number == 1 else f"{stage}-{number}.csv")
        try:
            file.touch(exist_ok=False)  # its name is taken from now on
        except FileExistsError:
            if _points_in(file, list(wanted[0])) != wanted:
                continue
        write_csv(file, rows, columns)
        return file
    raise AssertionError("no number is free")


def _points_in(file: Path, keys: Sequence[str]) -> list[dict[str, str | None]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return [{key: row.get(key) for key in keys} for row in csv.DictReader(lines)]


def _log(stage: str, results: Sequence[Mapping[str, Any]], overrides: Sequence[Override], store: Path) -> None:
    """Show a sweep that has a name (`+sweep=<name>`) in MLflow, below the parent run `sweep/<name>`."""
    name = next((str(override.value()) for override in overrides if override.key_or_group == "sweep"), None)
    if name is None:
        return
    from lobs_paper.tracking.runs import log_sweep

    log_sweep(name, stage, results, store)
    print(f"in MLflow ({store}): sweep/{name}")
