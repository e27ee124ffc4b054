"""A stage that was killed goes on where it stopped, and gives the same bytes."""

import subprocess
import sys

import pytest

from helpers.stages import SMALL, lobs

# Killed as the second layer is finished; one layer per pass, because no two fit under the ceiling.
KILLED = """
import os, signal, sys
from lobs_paper.cli import main
from lobs.calibration.spilling import SpilledStatistics

put, finished = SpilledStatistics.put, []

def put_and_die(self, layers, order):
    put(self, layers, order)
    finished.extend(layers)
    if len(finished) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

SpilledStatistics.put = put_and_die
main(sys.argv[1:])
"""


@pytest.fixture
def groups(monkeypatch):
    """The layers of every group that is collected."""
    from lobs.calibration.spilling import SpilledStatistics

    seen = []
    put = SpilledStatistics.put

    def noted(self, layers, order):
        seen.append(list(layers))
        put(self, layers, order)

    monkeypatch.setattr(SpilledStatistics, "put", noted)
    return seen


def test_a_killed_collect_goes_on_at_the_layer_where_it_stopped(project, groups):
    folder = project / "runs/lenet300/seed0"
    statistics = folder / "collect/statistics.safetensors"
    lobs("collect", *SMALL)
    assert groups == [["fc1", "fc2", "fc3"]]
    expected = statistics.read_bytes()
    statistics.unlink()
    tiny = [*SMALL, "memory=1e-9"]
    killed = subprocess.run([sys.executable, "-c", KILLED, "collect", *tiny], cwd=project, check=False)
    assert killed.returncode == -9
    assert not statistics.exists()
    parts = list((folder / "collect.partial").glob("*/*.safetensors"))
    assert sorted(path.stem for path in parts) == ["fc1", "fc2"]
    groups.clear()
    lobs("collect", *tiny)
    assert groups == [["fc3"]]
    assert statistics.read_bytes() == expected
    assert not (folder / "collect.partial").exists()


def test_another_configuration_does_not_go_on_from_the_parts_of_this_one(project, groups):
    folder = project / "runs/lenet300/seed0"
    tiny = [*SMALL, "memory=1e-9"]
    killed = subprocess.run([sys.executable, "-c", KILLED, "collect", *tiny], cwd=project, check=False)
    assert killed.returncode == -9
    lobs("collect", *tiny, "collect.images=150")
    assert groups == [["fc1"], ["fc2"], ["fc3"]]
    assert not (folder / "collect.partial").exists()
    groups.clear()
    lobs("collect", *SMALL)
    assert groups == [["fc1", "fc2", "fc3"]]


def test_the_ceiling_changes_nothing_that_is_pruned(project):
    folder = project / "runs/lenet300/seed0/lobs/prune"
    files = ("model.safetensors", "layers.json", "paths.csv", "first_layer_curve.csv", "density_curve.csv")
    written = []
    for memory in ("null", "1e-9"):
        lobs("prune", *SMALL, f"memory={memory}")
        written.append([(folder / name).read_bytes() for name in files])
    assert written[0] == written[1]


KILLED_PRUNE = """
import os, signal, sys
import lobs.schedule.paths
from lobs_paper.cli import main

write, finished = lobs.schedule.paths.write_tensors, []

def write_and_die(path, *rest):
    write(path, *rest)
    finished.append(path)
    if len(finished) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

lobs.schedule.paths.write_tensors = write_and_die
main(sys.argv[1:])
"""


def test_a_killed_prune_goes_on_at_the_layer_where_it_stopped(project, monkeypatch):
    from lobs.solvers.exact_obs import ExactOBS

    eliminated = []
    path = ExactOBS.path

    def noted(self, weight, statistics):
        eliminated.append(tuple(weight.shape))
        return path(self, weight, statistics)

    monkeypatch.setattr(ExactOBS, "path", noted)
    words = ["prune", *SMALL, "method=exact_obs"]
    folder = project / "runs/lenet300/seed0/exact_obs/prune"
    lobs(*words)
    expected = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "timings.json"}
    assert len(eliminated) == 3
    for file in folder.iterdir():
        file.unlink()
    killed = subprocess.run([sys.executable, "-c", KILLED_PRUNE, *words], cwd=project, check=False)
    assert killed.returncode == -9
    assert not list(folder.iterdir())
    assert len(list(folder.with_name("prune.partial").glob("*/paths/*.safetensors"))) == 2
    eliminated.clear()
    lobs(*words)
    assert eliminated == [(10, 9)]
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "timings.json"} == expected
    assert not folder.with_name("prune.partial").exists()


def test_a_killed_sequential_prune_keeps_its_shares_and_its_finished_layers(project, monkeypatch):
    from lobs.schedule.sequential import paired_statistics

    words = ["prune", *SMALL, "method=exact_obs_sequential", "method.allocation=measured_joint", "density_grid=[0.5]"]
    folder = project / "runs/lenet300/seed0/exact_obs_sequential/prune"
    lobs(*words)
    expected = {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "timings.json"}
    for file in folder.iterdir():
        file.unlink()
    program = KILLED_PRUNE.replace("lobs.schedule.paths", "lobs.schedule.layer_result")
    killed = subprocess.run([sys.executable, "-c", program, *words], cwd=project, check=False)
    assert killed.returncode == -9
    (budget,) = folder.with_name("prune.partial").glob("*/density-*")
    assert sorted(file.name for file in budget.iterdir()) == [
        "call.json",
        "counts.json",
        "fc1.safetensors",
        "fc2.safetensors",
    ]
    seen = []

    def noted(dense, pruned, module, name, *rest):
        seen.append(name)
        return paired_statistics(dense, pruned, module, name, *rest)

    monkeypatch.setattr("lobs.schedule.sequential.paired_statistics", noted)
    lobs(*words)
    assert seen == ["fc3", "fc2", "fc3"]  # the rest, then what follows the first layer for the curve's other density
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "timings.json"} == expected
    assert not folder.with_name("prune.partial").exists()
