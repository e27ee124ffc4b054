"""`-m`: every point in its own folder, all checked first, one table, and no point lost to another's failure."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from helpers.stages import SMALL
from lobs_paper.cli import main
from lobs_paper.config.compose import load, points
from lobs_paper.config.stage_parts import stage_config
from lobs_paper.stages.sweep import _write_table

# No part of what `make` installs (pyproject.toml says why).
RAY = pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")


def test_every_point_has_its_own_folder_and_a_row_in_the_table(project, capsys):
    words = ["experiment=lenet300", "method=lobs,magnitude", "density=0.1,0.2,0.5", *SMALL[:4]]
    assert main(["prune", "-m", *words, "threads=1", "device=cpu"]) == 0
    shown = capsys.readouterr().out
    results = {}
    for method in ("lobs", "magnitude"):
        for density in ("0.1", "0.2", "0.5"):
            (folder,) = (project / "multirun").glob(f"density={density},*method={method},*")
            path = folder / f"lenet300/seed0/{method}/prune/metrics.json"
            results[method, density] = json.loads(path.read_text())
            assert results[method, density]["requested"] == {"density": float(density)}
            assert (results[method, density]["method"], f"{density}" in shown) == (method, True)
    assert results["lobs", "0.5"]["layer_error_sum"] < results["magnitude", "0.5"]["layer_error_sum"]
    with (project / "multirun/prune.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["density"]) for row in rows] == list(results)
    for row in rows:
        expected = results[row["method"], row["density"]]
        assert float(row["error_after_pruning_percent"]) == expected["error_after_pruning_percent"]


def test_a_later_stage_finds_its_own_points_files(project):
    words = ["density=0.3,0.6", *SMALL]
    assert main(["prune", "-m", *words]) == 0
    assert main(["retrain", "-m", *words]) == 0
    for density in (0.3, 0.6):
        (folder,) = (project / "multirun").glob(f"*density={density},*iterations=22*")
        metrics = json.loads((folder / "lenet300/seed0/lobs/retrain/metrics.json").read_text())
        assert abs(metrics["density"] - density) < 2e-3


def test_one_wrong_point_stops_the_sweep_before_anything_runs(project, capsys):
    before = sorted(project.rglob("*"))
    assert main(["prune", "-m", "density=0.4,7", *SMALL]) == 2
    message = capsys.readouterr().err
    assert "density=7.0 is not accepted" in message
    assert message.count("\n") == 1
    assert sorted(project.rglob("*")) == before


def test_a_failing_point_is_listed_and_does_not_lose_the_others(project, capsys):
    assert main(["prune", "-m", "seed=0,7", "density=0.45", *SMALL]) == 1
    shown = capsys.readouterr().out
    assert "failed: seed=7" in shown
    assert "lobs train experiment=lenet300 seed=7" in shown
    assert list((project / "multirun").glob("*density=0.45*seed=0*/lenet300/seed0/lobs/prune/metrics.json"))


def test_two_sweeps_into_one_folder_keep_both_tables_and_the_same_one_replaces_its_own(tmp_path):
    def write(points, error):
        rows = [{**point, "error": error} for point in points]
        return _write_table(tmp_path, "prune", rows, [*points[0], "error"], points).name

    first, second, third = [{"density": "0.1"}, {"density": "0.2"}], [{"density": "0.1"}], [{"method": "obd"}]
    assert [write(points, "a") for points in (first, second, third)] == ["prune.csv", "prune-2.csv", "prune-3.csv"]
    assert [write(points, "b") for points in (third, first, second)] == ["prune-3.csv", "prune.csv", "prune-2.csv"]
    assert (tmp_path / "prune.csv").read_text() == "density,error\n0.1,b\n0.2,b\n"


WORKER = """
import multiprocessing, os, sys, time
from lobs_paper.stages.sweep import _end_with

def work(parent):
    print(os.getpid(), flush=True)
    _end_with(parent)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work, args=(os.getpid(),)).start()
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_worker_ends_with_its_parent(tmp_path):
    (tmp_path / "main.py").write_text(WORKER)
    parent = subprocess.Popen([sys.executable, tmp_path / "main.py"], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    assert Path(f"/proc/{worker}").exists()
    parent.kill()
    parent.wait()
    while Path(f"/proc/{worker}").exists() and "Z" not in Path(f"/proc/{worker}/stat").read_text().split()[2]:
        time.sleep(0.1)  # a worker that goes on would hang here


def test_stages_that_run_once_take_no_sweep(capsys):
    assert main(["report", "-m", "seed=0,1"]) == 2
    assert "-m is not accepted" in capsys.readouterr().err


def test_a_sweep_by_name_brings_its_own_points(project, capsys):
    words = ["+sweep=methods", "method=lobs,magnitude", "hydra.sweep.dir=multirun/named", *SMALL[:4]]
    assert main(["prune", "-m", *words, "threads=1", "device=cpu"]) == 0
    with (project / "multirun/named/prune.csv").open() as file:
        found = [(row["method"], row["density"]) for row in csv.DictReader(file)]
    expected = [(method, str(d)) for method in ("lobs", "magnitude") for d in (0.2, 0.1, 0.07, 0.05)]
    assert found == expected
    assert "sweep/methods" in capsys.readouterr().out
    assert sorted(logged("methods")) == sorted(expected)


def logged(name):
    """Method and density of the points that MLflow shows below `sweep/<name>`."""
    from mlflow import MlflowClient

    client = MlflowClient("sqlite:///mlruns/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    (parent,) = (run for run in runs if run.info.run_name == f"sweep/{name}")
    children = (run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id)
    return [(run.data.params["method"], run.data.params["density"]) for run in children]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit", pytest.param("ray", marks=RAY)])
def test_points_run_side_by_side_and_a_failing_one_does_not_lose_the_others(project, capsys, launcher):
    folder = project / f"multirun/{launcher}"
    words = [
        f"+launcher={launcher}",
        "+sweep=density_curve",
        "seed=0,7",
        "density=0.4,0.6",
        f"hydra.sweep.dir={folder}",
    ]
    assert main(["prune", "-m", *words, *SMALL]) == 1
    shown = capsys.readouterr().out
    assert "4 points" in shown
    for density in (0.4, 0.6):
        (metrics,) = folder.glob(f"*density={density},*/lenet300/seed0/lobs/prune/metrics.json")
        assert json.loads(metrics.read_text())["requested"] == {"density": density}
        assert f"failed: density={density} seed=7 " in shown
    with (folder / "prune.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], bool(row["error"])) for row in rows] == [("0", False), ("7", True)] * 2
    assert not any("launcher" in column for column in rows[0])


@pytest.mark.slow
def test_a_resolved_stage_is_a_job_where_a_launcher_is_set(project, monkeypatch, capsys):
    monkeypatch.setenv("LOBS_LAUNCHER", "submitit hydra.launcher.timeout_min=10")
    config = stage_config(load([*SMALL, "density=0.35"]), "prune")
    (project / "resolved.yaml").write_text(yaml.safe_dump(config))
    assert main(["prune", "--resolved", "resolved.yaml"]) == 0
    metrics = json.loads((project / "runs/lenet300/seed0/lobs/prune/metrics.json").read_text())
    assert metrics["requested"] == {"density": 0.35}
    assert list((project / "multirun/prune/lenet300/.submitit").iterdir())
    (project / "resolved.yaml").write_text(yaml.safe_dump({**config, "seed": 7}))
    assert main(["prune", "--resolved", "resolved.yaml"]) == 2
    assert "lobs train experiment=lenet300 seed=7" in capsys.readouterr().err


def test_the_jobs_for_slurm_ask_for_what_the_file_says():
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from submitit.slurm import slurm

    from lobs_paper.config.compose import HYDRA_VERSION_BASE, config_dir

    words = ["+launcher=slurm", "+sweep=methods", "hydra.launcher.partition=long", "hydra.launcher.gpus_per_node=1"]
    assert len(points(words)) == 20
    with initialize_config_dir(str(config_dir()), version_base=HYDRA_VERSION_BASE):
        launcher = instantiate(compose("config", words, return_hydra_config=True).hydra.launcher)
    params = dict(launcher.params)
    folder = params.pop("submitit_folder")
    assert folder.startswith("multirun/methods")
    shared = {"name": "job_name", "mem_gb": "mem", "timeout_min": "time", "tasks_per_node": "ntasks_per_node"}
    del params["max_num_timeout"]
    params = {shared.get(key, key): value for key, value in params.items() if value is not None}
    params["mem"] = f"{params['mem']}GB"
    script = slurm._make_sbatch_string(command="run", folder=folder, **params)
    for line in ("job-name=lobs", "time=240", "cpus-per-task=4", "mem=16GB", "gpus-per-node=1", "partition=long"):
        assert f"#SBATCH --{line}" in script


def test_a_long_points_folder_is_cut_short_but_stays_its_own(project, capsys):
    from lobs_paper.config.compose import folder_name

    short, long = "a=1,b=2", ",".join(f"key{index}=value{index}" for index in range(40))
    assert folder_name(short) == short
    assert len(folder_name(long)) <= 180
    assert folder_name(long) != folder_name(long + "x")
    words = [*SMALL, "method.options.alpha=1e5,1e6", "hydra.sweep.dir=multirun/long", "density=0.25"]
    assert main(["prune", "-m", *words]) == 0
    folders = [path for path in (project / "multirun/long").iterdir() if path.is_dir()]
    assert len(folders) == 2


def test_every_committed_sweep_composes(capsys):
    from pathlib import Path

    for path in sorted((Path(__file__).parents[3] / "conf/sweep").glob("*.yaml")):
        found = points([f"+sweep={path.stem}"])
        assert len(found) > 1, path
        for point in found:
            load(point)
