"""All layers at once: each is its path at its count, one path is in memory at a time, and every layer is timed."""

import gc
import itertools
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import lobs
from helpers.networks import X, mlp
from lobs.allocation.budget import Budget
from lobs.allocation.sharing import Sharing
from lobs.base.execution import Execution
from lobs.layers.matrix import weight_matrix
from lobs.schedule import one_shot
from lobs.schedule.job import Job
from lobs.schedule.one_shot import prune_at_once
from lobs.solvers import make
from lobs.solvers.magnitude import Magnitude


def job(method="magnitude", sharing=None, solver=None, **options):
    model = mlp()
    statistics = lobs.collect_statistics(model, [X])
    sharing = sharing or Sharing(Budget(density=0.3))
    return Job(model, mlp(), statistics, solver or make(method), list(statistics), sharing, Execution(), **options)


@pytest.mark.parametrize("allocation", ["uniform", "relative"])
@pytest.mark.parametrize("method", ["magnitude", "exact_obs"])
def test_every_layer_is_its_path_at_its_count(method, allocation):
    task = job(method, Sharing(Budget(density=0.3), allocation))
    paths = lobs.layer_paths(task.dense, task.statistics, method)
    counts = task.sharing.decision(task.dense, paths, {}).counts
    for given in (task, replace(task, pruned=mlp(), paths=paths)):
        steps = list(prune_at_once(given))
        assert [step.name for step in steps] == ["0", "2", "4"]
        for step in steps:
            weight, mask = paths[step.name].at(counts[step.name])
            assert torch.equal(weight_matrix(given.pruned.get_submodule(step.name)), weight)
            assert torch.equal(step.mask, mask)
            assert torch.equal(step.trained, weight_matrix(given.dense.get_submodule(step.name)))
            assert step.seconds > 0
    assert torch.equal(task.dense[0].weight, mlp()[0].weight)


class Watched(Magnitude):
    """Counts the paths that are alive when another one is made."""

    def path(self, weight, statistics):
        gc.collect()
        ALIVE.append(sum(path() is not None for path in PATHS))
        path = super().path(weight, statistics)
        PATHS.append(weakref.ref(path))
        return path


ALIVE, PATHS = [], []


def test_one_path_is_in_memory_at_a_time_where_shares_are_each_layers_own():
    ALIVE.clear(), PATHS.clear()
    for step in prune_at_once(job(solver=Watched())):
        del step
    assert ALIVE == [0, 0, 0]


def test_zeros_count_as_removed_whatever_was_asked_for():
    task = job(sharing=Sharing(Budget(density=1.0)))
    with torch.no_grad():
        task.pruned[0].weight[:, :8] = 0
    for allocation in ("uniform", "relative"):
        steps = list(prune_at_once(replace(task, sharing=replace(task.sharing, allocation=allocation))))
        assert [int((~step.mask).sum()) for step in steps] == [32 * 8, 0, 0]


def test_whole_units_leave_with_what_reads_them():
    task = job("apoz", Sharing(Budget(density=0.4)))
    steps = {step.name: step for step in prune_at_once(task)}
    dead = ~steps["0"].mask.any(1)
    assert dead.any()
    assert not task.pruned[2].weight[:, dead].any()
    assert not task.pruned[0].bias[dead].any()


@pytest.mark.parametrize(("allocation", "seconds"), [("uniform", 1), ("relative", 2)])
def test_every_layers_time_is_its_own(allocation, seconds, monkeypatch):
    """By a clock that goes on by one at every look; where shares depend on each other, paths come before the steps."""
    monkeypatch.setattr(one_shot, "time", SimpleNamespace(perf_counter=itertools.count(10).__next__))
    steps = list(prune_at_once(job(sharing=Sharing(Budget(density=0.3), allocation))))
    assert [step.seconds for step in steps] == [seconds] * 3
    task = job()
    given = replace(task, paths=lobs.layer_paths(task.dense, task.statistics, "magnitude"))
    assert [step.seconds for step in prune_at_once(given)] == [1, 1, 1]
