"""A job's decisions: made once, kept in its folder, and never made again."""

import json

import pytest
import torch

import lobs
from helpers.networks import X, mlp
from lobs.allocation.budget import Budget
from lobs.allocation.sharing import Decision, Sharing
from lobs.base.execution import Execution
from lobs.schedule.job import Job
from lobs.solvers import make


def job(folder=None, budget=None, **options):
    model = mlp()
    statistics = lobs.collect_statistics(model, [X])
    sharing = Sharing(budget or Budget(density=0.3), "relative")
    return Job(
        model, mlp(), statistics, make("magnitude"), list(statistics), sharing, Execution(folder=folder), **options
    )


def paths_of(job):
    return lobs.layer_paths(job.dense, job.statistics, job.solver)


def never():
    raise AssertionError("paths were asked for")


def test_a_decision_is_the_sharings_and_is_noted():
    task = job()
    counts = task.decide(lambda: paths_of(task), {})
    assert counts == task.sharing.decision(task.dense, paths_of(task), {}).counts
    assert task.decisions == [Decision(counts)]
    assert task.file("counts.json") is None


def test_what_an_interrupted_call_decided_stands(tmp_path):
    first = job(tmp_path / "new")
    counts = first.decide(lambda: paths_of(first), {})
    assert first.file("counts.json") == tmp_path / "new/counts.json"
    again = job(tmp_path / "new")
    assert again.decide(never, {}) == counts
    assert again.decisions == first.decisions
    noted = {"counts": {"0": 5}, "ratio": 0.75, "note": "a note", "gave_way": True}
    (tmp_path / "new/counts.json").write_text(json.dumps(noted))
    assert again.decide(never, {}) == {"0": 5}
    assert again.decisions[-1].gave_way and again.decisions[-1].doubtful


@pytest.mark.parametrize(
    ("options", "beside"),
    [({}, False), ({"sequential": True}, True), ({"correct": "bias"}, True)],
)
def test_the_dense_network_is_needed_beside_in_sequence_and_for_corrections(options, beside):
    assert job(**options).beside == beside


def test_densities_belong_to_the_layers_of_the_job():
    with pytest.raises(ValueError, match="exactly the pruned layers 0, 2, 4; unknown: 5; missing: 2, 4"):
        job(budget=Budget(densities={"0": 0.5, "5": 0.5}))


def test_two_jobs_do_not_share_their_decisions():
    one, other = job(), job()
    one.decisions.append(Decision({}))
    assert not other.decisions
    assert torch.equal(one.dense[0].weight, other.dense[0].weight)
