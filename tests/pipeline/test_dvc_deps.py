"""dvc.yaml against the code: a stage that imports a module it does not list goes stale silently."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest
import yaml

from lobs.experiment.registry import DATASETS
from lobs.pipeline.cli import STAGES
from lobs.registry import METHODS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Modules that are imported by a name out of a table.
BY_NAME = {
    "lobs.solvers.base": [method.module for method in METHODS.values()],
    "lobs.pipeline.fetch": list(DATASETS.values()),
}


def source_file(module):
    """The file of one of our modules, None for anything else."""
    path = SOURCE / Path(*module.split("."))
    if path.with_suffix(".py").exists():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").exists() else None


def imported(module):
    """Our modules that a module imports anywhere, also inside functions, but not for type checkers only."""
    tree = ast.parse(source_file(module).read_text())
    nodes = [tree]
    names = set(BY_NAME.get(module, []))
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: a relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        nodes += ast.iter_child_nodes(node)
    return {name for name in names if name.split(".")[0] == "lobs" and source_file(name)}


def needed(stage):
    """The files that a stage's result depends on.

    Left out: packages' __init__ that hold no code, and the road of `lobs` itself (cli, config), which passes the
    resolved file on unchanged or refuses it.
    """
    seen, waiting = set(), [f"lobs.pipeline.{stage}"]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imported(module)
    files = {source_file(module).relative_to(ROOT) for module in seen}
    return {path for path in files if str(path) not in ("src/lobs/__init__.py", "src/lobs/pipeline/__init__.py")} - {
        Path("src/lobs/experiment/__init__.py")
    }


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_lists_exactly_the_modules_that_it_imports(stage):
    listed = [Path(dep) for dep in PIPELINE[stage]["deps"] if dep.startswith("src/")]
    files = needed(stage)
    missing = {str(path) for path in files if not any(dep == path or dep in path.parents for dep in listed)}
    assert not missing, f"dvc.yaml, stage {stage}: add to deps"
    unused = {str(dep) for dep in listed if not any(dep == path or dep in path.parents for path in files)}
    assert not unused, f"dvc.yaml, stage {stage}: not imported"
    assert all((ROOT / dep).exists() for dep in listed)


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_runs_its_own_command_from_its_own_resolved_file(stage):
    command = PIPELINE[stage]["cmd"].split()
    assert command[:2] == ["lobs", stage]
    assert stage in STAGES
    if stage != "resolve":
        assert command[2] == "--resolved"
        assert command[3] == PIPELINE[stage]["deps"][0]


@pytest.mark.parametrize("stage", ["prune", "collect"])
def test_what_a_stage_imports_when_it_runs_is_among_the_static_imports(project, stage):
    import subprocess
    import sys

    from pipeline.conftest import SMALL

    code = (
        "import sys; from lobs.pipeline.compose import load; from lobs.pipeline.config import stage_config;"
        "before = set(sys.modules); from importlib import import_module;"
        "import_module('lobs.pipeline.' + sys.argv[1]).run(stage_config(load(sys.argv[2:]), sys.argv[1]));"
        "print(*(name for name in set(sys.modules) - before if name.startswith('lobs.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, stage, *SMALL], cwd=project, capture_output=True, text=True, check=True
    )
    files = {source_file(name).relative_to(ROOT) for name in done.stdout.splitlines()[-1].split()}
    assert Path("src/lobs/statistics.py") in files
    assert {path for path in files if path.name != "__init__.py"} <= needed(stage)


def test_the_pipelines_stages_are_the_roots():
    """`make pipelines` writes them anew."""
    spec = importlib.util.spec_from_file_location("write", ROOT / "pipelines/write.py")
    write = importlib.util.module_from_spec(spec)
    sys.modules["write"] = write  # a dataclass looks its module up
    spec.loader.exec_module(write)
    for name in write.PIPELINES:
        file = ROOT / "pipelines" / name / "dvc.yaml"
        assert file.read_text() == write.text(name), f"{file.relative_to(ROOT)} is out of date: make pipelines"
        for stage in yaml.safe_load(file.read_text())["stages"].values():
            for dep in stage["deps"]:
                assert "${" in dep or dep in ("matrix.yaml", "data", "../../data") or (file.parent / dep).exists(), dep


def test_params_diff_sees_every_file_of_conf_that_the_runs_choose():
    matrix = yaml.safe_load((ROOT / "conf/matrix.yaml").read_text())
    listed = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["params"])
    chosen = {"conf/config.yaml", *(f"conf/experiment/{name}.yaml" for name in matrix["experiments"])}
    chosen |= {f"conf/method/{run.split('/')[2]}.yaml" for run in matrix["runs"]}
    chosen |= {f"conf/{group}/sgd.yaml" for group in ("train", "retrain")}
    assert not chosen - listed, "dvc.yaml, params: add"
    assert all((ROOT / name).exists() for name in listed)


def test_the_quick_runs_are_among_all_runs():
    matrix = yaml.safe_load((ROOT / "conf/matrix.yaml").read_text())
    assert matrix["quick"]
    assert set(matrix["quick"]) <= set(matrix["runs"])
    assert all(run.startswith("lenet300/seed0/") for run in matrix["quick"])


def test_stages_are_connected_through_their_files():
    outs = {}
    for stage, entry in PIPELINE.items():
        for out in [*entry.get("outs", []), *entry.get("metrics", [])]:
            outs[out if isinstance(out, str) else next(iter(out))] = stage
    for stage, entry in PIPELINE.items():
        for dep in entry["deps"]:
            # A run is <experiment>/seed<k>/<method>: what its seed's own stages made lies one folder up.
            dep = dep.replace("${item.run}/../", "${item.experiment}/seed${item.seed}/")
            if dep.startswith(("runs/", "resolved/", "data/")):
                assert any(dep == out or dep.startswith(f"{out}/") for out in outs), f"{stage}: nobody makes {dep}"
