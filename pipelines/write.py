"""Writes pipelines/<name>/dvc.yaml from the root's dvc.yaml: the same stages over another matrix and other folders.

DVC can neither include a file in another nor share anchors between files, so the copies are made here (`make
pipelines`), and a test says when they are out of date. They live in folders of their own because DVC takes whatever
lies in another stage's input folder for that stage's upstream: plain `dvc repro` must not ask for data that only these
pipelines need.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
RUN_STAGES = ("prune", "retrain", "evaluate")


@dataclass(frozen=True)
class Pipeline:
    """A pipeline beside the root's.

    Attributes:
        purpose: the comment at its top.
        stages: of the root's dvc.yaml.
        shared: folders of the root that it reads, by the key that names them (`folders.data`, ...); its own otherwise.
        adjustable: whether the environment variable LOBS_OVERRIDES may set values of conf/ for all its runs.
    """

    purpose: str
    stages: tuple[str, ...]
    shared: tuple[str, ...] = ()
    adjustable: bool = False

    def overrides(self) -> list[str]:
        """What `lobs resolve` is told: where folders are, and what the caller adds in LOBS_OVERRIDES."""
        places = [f"folders.{key}=../../{key}" for key in self.shared]
        output = ["folders.output=runs"] if "runs" in self.shared else []
        return [*places, *output, *(["$LOBS_OVERRIDES"] if self.adjustable else [])]


ALL = ("resolve", "fetch", "train", "collect", *RUN_STAGES)
PIPELINES = {
    "seeds": Pipeline(
        "More seeds of the methods that the root's dvc.yaml runs once: `make repro-seeds`. Dense networks and their\n"
        "# statistics are those of the root; what is pruned and retrained goes to runs/ here.",
        ("resolve", *RUN_STAGES),
        ("data", "runs"),
    ),
    "literature": Pipeline(
        "MLPNet, on which papers on pruning at once compare themselves, and a small Vision Transformer:\n"
        "# `make repro-literature`. MNIST is the root's.",
        ("resolve", "train", "collect", *RUN_STAGES),
        ("data",),
    ),
    "cifar10": Pipeline("CIFAR-10: `make repro-cifar10 DATA=<archive or folder>`.", ALL),
    "imagenet": Pipeline("A sample of ImageNet: `make repro-imagenet-sample DATA=<archive or folder>`.", ALL),
    "imagenet_paper": Pipeline(
        "The paper's half on ImageNet: `make repro-imagenet DATA=<folder>`.", ALL, adjustable=True
    ),
}


def definition(pipeline: Pipeline, root: dict[str, Any]) -> dict[str, Any]:
    """A pipeline's dvc.yaml.

    Args:
        pipeline: which.
        root: the root's dvc.yaml.

    Returns:
        The file's contents.
    """
    stages = {}
    for name in pipeline.stages:
        stage = copy.deepcopy(root["stages"][name])
        if name == "resolve":
            stage["cmd"] = " ".join([stage["cmd"], *pipeline.overrides()])
            stage["deps"].insert(1, "matrix.yaml")
        stage["deps"] = [_dependency(dep, pipeline) for dep in stage["deps"]]
        stages[name] = stage
    return {"vars": ["matrix.yaml"], "stages": stages}


def _dependency(dep: str, pipeline: Pipeline) -> str:
    """A path of the root's, seen from the pipeline's folder."""
    own_run = dep.startswith("runs/${item.run}/") and not dep.startswith("runs/${item.run}/../")
    shared = any(dep == key or dep.startswith(f"{key}/") for key in pipeline.shared) and not own_run
    return f"../../{dep}" if dep in ("conf", "src") or shared else dep


def text(name: str) -> str:
    """The whole file."""
    root = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    body = yaml.safe_dump(definition(PIPELINES[name], root), sort_keys=False, width=120)
    return (
        f"# {PIPELINES[name].purpose}\n# Written by pipelines/write.py from the root's dvc.yaml: do not edit.\n{body}"
    )


if __name__ == "__main__":
    for name in PIPELINES:
        (ROOT / "pipelines" / name).mkdir(exist_ok=True)
        (ROOT / "pipelines" / name / "dvc.yaml").write_text(text(name), encoding="utf-8")
