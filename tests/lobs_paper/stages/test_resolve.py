"""Which files `lobs resolve` writes, and which of them a change in conf/ touches."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from lobs_paper.cli import main
from lobs_paper.config.checks import validate

ROOT = Path(__file__).parents[3]


# Few runs: every one takes a composition of conf/.
MATRIX = """
datasets: [mnist]
experiments: [lenet300, lenet5]
seeds: [0, 1]
runs: [lenet300/seed0/lobs, lenet300/seed1/magnitude, lenet5/seed0/lobs]
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "conf/matrix.yaml").write_text(MATRIX)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def resolve(folder):
    """Resolve from nothing; the files' contents by their path."""
    shutil.rmtree(folder / "resolved", ignore_errors=True)
    assert main(["resolve"]) == 0
    return {
        str(path.relative_to(folder / "resolved")): path.read_text() for path in (folder / "resolved").rglob("*.yaml")
    }


def changed(folder, file, old, new):
    """The resolved files that differ after an edit in conf/."""
    before = resolve(folder)
    path = folder / "conf" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    after = resolve(folder)
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def parts(names):
    """What files are about, without experiment and seed: stage, or method and stage."""
    return {"/".join(name.split("/")[2:]) for name in names}


def test_every_stage_instance_of_dvc_yaml_finds_its_file(checkout):
    shutil.copy(ROOT / "conf/matrix.yaml", checkout / "conf/matrix.yaml")
    files = resolve(checkout)
    lists = yaml.safe_load((ROOT / "conf/matrix.yaml").read_text())
    expected = {"report.yaml"} | {f"fetch/{data}.yaml" for data in lists["datasets"]}
    for experiment in lists["experiments"]:
        for seed in lists["seeds"]:
            folder = f"{experiment}/seed{seed}"
            expected |= {f"{folder}/train.yaml", f"{folder}/collect.yaml"}
    for run in lists["runs"]:
        expected |= {f"{run}/{stage}.yaml" for stage in ("prune", "retrain", "evaluate")}
    assert set(files) == expected | {f"code/{name}" for name in expected}
    for name in expected:
        validate(yaml.safe_load(files[name]))


def test_a_comment_touches_no_file(checkout):
    assert changed(checkout, "train/sgd.yaml", "optimizer:", "# a remark\noptimizer:") == set()


def test_a_value_touches_exactly_the_stages_that_use_it(checkout):
    longer = changed(checkout, "train/sgd.yaml", "momentum: 0.9", "momentum: 0.8")
    assert parts(longer) == {"train.yaml"}
    assert parts(changed(checkout, "method/lobs.yaml", "damping: 1\n", "damping: 2\n")) == {"lobs/prune.yaml"}
    runs = yaml.safe_load((checkout / "conf/matrix.yaml").read_text())["runs"]
    retrained = parts(changed(checkout, "retrain/sgd.yaml", "momentum: 0.9", "momentum: 0.8"))
    assert retrained == {f"{run.split('/')[2]}/retrain.yaml" for run in runs}
    other = changed(checkout, "experiment/lenet300.yaml", "lobs: {density: 0.07}", "lobs: {density: 0.06}")
    assert parts(other) == {"lobs/prune.yaml", "lobs/retrain.yaml", "lobs/evaluate.yaml"}
    assert {name.split("/")[0] for name in other} == {"lenet300"}


def test_a_swapped_default_group_is_seen(checkout):
    shutil.copy(checkout / "conf/train/sgd.yaml", checkout / "conf/train/long.yaml")
    path = checkout / "conf/train/long.yaml"
    path.write_text(path.read_text().replace("momentum: 0.9", "momentum: 0.5"))
    assert parts(changed(checkout, "config.yaml", "train: sgd", "train: long")) == {"train.yaml"}


@pytest.mark.parametrize("run", ["lenet300/seed9/lobs", "vgg/seed0/lobs", "seed0/lobs"])
def test_a_run_is_an_experiment_a_seed_and_a_method(checkout, capsys, run):
    path = checkout / "conf/matrix.yaml"
    path.write_text(path.read_text().replace("lenet5/seed0/lobs", run))
    assert main(["resolve"]) == 2
    assert f"runs: '{run}' is not accepted: <experiment>/seed<k>/<method>" in capsys.readouterr().err


def test_a_missing_list_is_named(checkout, capsys):
    (checkout / "conf/matrix.yaml").write_text("datasets: [mnist]\n")
    assert main(["resolve"]) == 2
    assert "experiments is missing or no list" in capsys.readouterr().err


def test_a_matrix_in_the_working_directory_comes_before_that_of_conf(checkout):
    (checkout / "matrix.yaml").write_text(
        "datasets: []\nexperiments: [lenet300]\nseeds: [1]\nruns: [lenet300/seed1/obd]\n"
    )
    assert main(["resolve", "folders.runs=../runs", "folders.output=runs"]) == 0
    prune = yaml.safe_load((checkout / "resolved/lenet300/seed1/obd/prune.yaml").read_text())
    assert prune["folders"]["runs"] == "../runs"
    assert prune["folders"]["output"] == "runs"
    assert not (checkout / "resolved/lenet300/seed0").exists()
