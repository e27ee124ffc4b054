"""Stage resolve: keeps changes of conf/ and of the code away from the stages that they do not concern.

It composes every run (experiment, seed, method) of the matrix.yaml in the working directory (those of pipelines/), or
else of conf/matrix.yaml, and writes one small file per stage instance with only the values that this instance reads.
DVC runs a stage again when its file changed, so a comment in conf/ touches no other stage and a value only those that
use it. The same for the code: beside each of these files, in code/, one with the digests of the modules that the
instance imports.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lobs_paper.config.code_digests import Code
from lobs_paper.config.compose import load
from lobs_paper.config.errors import ConfigError
from lobs_paper.config.folder import config_dir
from lobs_paper.config.stage_parts import stage_config
from lobs_paper.config.yaml_files import read_yaml
from lobs_paper.files import write_text
from lobs_paper.progress import progress

MATRIX_FILE = "matrix.yaml"
MATRIX = ("datasets", "experiments", "seeds", "runs")
FOLDER = Path("resolved")
CODE = "code"
# Stages that run once per seed, and those that run once per seed and method.
SEED_STAGES = ("train", "collect")
METHOD_STAGES = ("prune", "retrain", "evaluate")


def run(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose and write all files; nothing is written unless everything is valid.

    Args:
        overrides: for every composition.

    Returns:
        The number of files.
    """
    own = Path(MATRIX_FILE)
    matrix = read_matrix(own if own.exists() else config_dir() / MATRIX_FILE)
    instances: dict[str, tuple[str, dict[str, Any]]] = {}

    def add(folder: object, stage: str, config: dict[str, Any], name: str = "") -> None:
        instances[f"{folder}/{name or stage}"] = (stage, stage_config(config, stage))

    add(".", "report", load(overrides))
    for data in matrix["datasets"]:
        add("fetch", "fetch", load([f"data={data}", *overrides]), data)
    for experiment in matrix["experiments"]:
        for seed in matrix["seeds"]:
            config = load([f"experiment={experiment}", f"seed={seed}", *overrides])
            for stage in SEED_STAGES:
                add(f"{experiment}/seed{seed}", stage, config)
    for run in progress("composing")(matrix["runs"]):
        config = load([*_choices(run, matrix), *overrides])
        for stage in METHOD_STAGES:
            add(run, stage, config)
    code = Code()
    files: dict[Path, dict[str, Any]] = {}
    for name, (stage, part) in instances.items():
        files[FOLDER / f"{name}.yaml"] = part
        files[FOLDER / CODE / f"{name}.yaml"] = code.digests(stage, part)
    for path, content in files.items():
        write_text(path, yaml.safe_dump(content, sort_keys=False))
    return {"files": len(files)}


def _choices(run: object, matrix: dict[str, list]) -> list[str]:
    """The overrides that a run stands for."""
    match = re.fullmatch(r"(\w+)/seed(\d+)/(\w+)", str(run))
    if match is None or match[1] not in matrix["experiments"] or int(match[2]) not in matrix["seeds"]:
        raise ConfigError(
            f"runs: {run!r} is not accepted: <experiment>/seed<k>/<method>, with experiments "
            f"{matrix['experiments']} and seeds {matrix['seeds']}"
        )
    return [f"experiment={match[1]}", f"seed={match[2]}", f"method={match[3]}"]


def read_matrix(path: Path) -> dict[str, list]:
    """The lists of what to run.

    Args:
        path: of the file that dvc.yaml takes its variables from.

    Returns:
        The lists by name.

    Raises:
        ConfigError: the file or one of the lists is missing.
    """
    if not path.exists():
        raise ConfigError(f"{path} does not exist: it lists what to run ({', '.join(MATRIX)})")
    lists = read_yaml(path)
    for name in MATRIX:
        if not isinstance(lists, dict) or not isinstance(lists.get(name), list):
            raise ConfigError(f"{path}: {name} is missing or no list")
    return lists
