"""dvc.yaml against the code: a stage whose imports are not all known would go stale silently."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from lobs_paper.cli import STAGES
from lobs_paper.config.code_digests import Code
from lobs_paper.config.compose import load
from lobs_paper.config.stage_parts import stage_config

ROOT = Path(__file__).parents[3]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("stage", PIPELINE)
def test_a_stage_depends_on_its_own_values_and_its_own_code(stage):
    deps = PIPELINE[stage]["deps"]
    if stage == "resolve":
        assert deps == ["conf", "src"]
        return
    values, code = (dep for dep in deps if dep.startswith("resolved/"))
    assert code == values.replace("resolved/", "resolved/code/")
    assert not [dep for dep in deps if dep.startswith("src")]


SOURCES = {
    "lobs/__init__.py": "import lobs.unrelated",
    "lobs/unrelated.py": "",
    "lobs_paper/stages/__init__.py": '"""Stages."""',
    "lobs_paper/stages/train.py": "from lobs.deep import thing\nif TYPE_CHECKING:\n    import lobs.typing_only",
    "lobs_paper/stages/prune.py": "def run():\n    import lobs.inside.part",
    "lobs/deep/__init__.py": "from lobs.deep.thing import f",
    "lobs/deep/thing.py": "import json\nfrom lobs import helper",
    "lobs/helper.py": "",
    "lobs/inside/__init__.py": "",
    "lobs/inside/part.py": "",
    "lobs/typing_only.py": "",
}


@pytest.fixture
def sources(tmp_path):
    for name, text in SOURCES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def test_imports_are_followed_to_their_end_and_no_further(sources):
    assert Code(sources).modules("train", {}) == {
        "lobs_paper.stages.train",
        "lobs.deep",
        "lobs.deep.thing",
        "lobs.helper",
    }
    assert Code(sources).modules("prune", {}) == {"lobs_paper.stages.prune", "lobs.inside.part"}


def test_a_changed_module_changes_the_digests_of_the_stages_that_import_it(sources):
    before = {stage: Code(sources).digests(stage, {}) for stage in ("train", "prune")}
    (sources / "lobs/helper.py").write_text("x = 1")
    after = {stage: Code(sources).digests(stage, {}) for stage in ("train", "prune")}
    assert after["prune"] == before["prune"]
    assert {name for name in before["train"] if before["train"][name] != after["train"][name]} == {"lobs.helper"}


def test_a_relative_import_is_refused(sources):
    (sources / "lobs/helper.py").write_text("from . import unrelated")
    with pytest.raises(ValueError, match=r"helper.py: line 1: a relative import"):
        Code(sources).modules("train", {})


STAGES_OF_A_RUN = ("train", "collect", "prune", "retrain", "evaluate")


@pytest.fixture(scope="module")
def parts():
    """What the instances of three runs and of a fetch read."""
    chosen = {"first": (), "other network": ("experiment=lenet5",), "other solver": ("method=magnitude",)}
    found = {
        (run, stage): stage_config(load(words), stage) for run, words in chosen.items() for stage in STAGES_OF_A_RUN
    }
    return {**found, ("first", "fetch"): stage_config(load([]), "fetch")}


@pytest.fixture
def copy(tmp_path):
    for package in ("lobs", "lobs_paper"):
        shutil.copytree(
            ROOT / "src" / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "conf")
        )
    return tmp_path


def digests(folder, parts):
    code = Code(folder)
    return {(run, stage): code.digests(stage, part) for (run, stage), part in parts.items()}


def test_a_new_network_data_set_or_solver_runs_nothing_again(copy, parts):
    before = digests(copy, parts)
    (copy / "lobs_paper/networks/new.py").write_text("class New:\n    pass\n")
    (copy / "lobs_paper/data/new.py").write_text("def fetch(name, root):\n    pass\n")
    (copy / "lobs/solvers/new.py").write_text("class New:\n    pass\n")
    assert digests(copy, parts) == before


@pytest.mark.parametrize(
    ("file", "concerned"),
    [
        ("lobs_paper/networks/lenet300.py", {(r, s) for r in ("first", "other solver") for s in STAGES_OF_A_RUN}),
        ("lobs_paper/networks/lenet5.py", {("other network", stage) for stage in STAGES_OF_A_RUN}),
        ("lobs_paper/data/mnist.py", {("first", "fetch")}),
        ("lobs_paper/data/cifar10.py", set()),
        ("lobs/solvers/apoz.py", set()),
        ("lobs/solvers/lobs.py", {("first", "prune"), ("other network", "prune")}),
    ],
)
def test_a_changed_network_data_set_or_solver_runs_its_own_instances_again(copy, parts, file, concerned):
    before = digests(copy, parts)
    (copy / file).write_text((copy / file).read_text() + "\nCHANGED = True\n")
    after = digests(copy, parts)
    assert {instance for instance in parts if before[instance] != after[instance]} == concerned


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

    from helpers.stages import SMALL

    code = (
        "import sys; from lobs_paper.config.compose import load;"
        "from lobs_paper.config.stage_parts import stage_config;"
        "before = set(sys.modules); from importlib import import_module;"
        "import_module('lobs_paper.stages.' + sys.argv[1]).run(stage_config(load(sys.argv[2:]), sys.argv[1]));"
        "print(*(name for name in set(sys.modules) - before if name.startswith('lobs.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, stage, *SMALL], cwd=project, capture_output=True, text=True, check=True
    )
    found = {
        name
        for name in done.stdout.splitlines()[-1].split()
        if (ROOT / "src" / Path(*name.split("."))).with_suffix(".py").exists()
    }
    assert "lobs.calibration.statistics" in found
    assert found <= Code().modules(stage, stage_config(load(SMALL), stage))


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
                assert (
                    "${" in dep
                    or dep.startswith("resolved/")
                    or dep in ("matrix.yaml", "data", "../../data")
                    or (file.parent / dep).exists()
                ), dep


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
