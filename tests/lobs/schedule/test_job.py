"""A job's decisions: made once, kept in its folder, and never made again."""

import pytest
import torch

import lobs
from helpers.networks import X, mlp
from lobs.allocation.budget import Budget
from lobs.allocation.sharing import Decision, Sharing
from lobs.base.execution import Execution
from lobs.base.notes import write_note
from lobs.calibration.batches import CalibrationBatches
from lobs.schedule.job import Job
from lobs.solvers import make


def job(folder=None, budget=None, sharing=None, **options):
    model = mlp()
    statistics = lobs.collect_statistics(model, [X])
    sharing = sharing or Sharing(budget or Budget(density=0.3), "relative")
    return Job(
        model, mlp(), statistics, make("magnitude"), list(statistics), sharing, Execution(folder=folder), **options
    )


def paths_of(job):
    return lobs.layer_paths(job.dense, job.statistics, job.solver)


def never():
    raise AssertionError("paths were asked for")


def test_a_decision_is_the_sharings_and_is_noted():
    task = job()
    decision = task.decide(lambda: paths_of(task), {})
    assert decision == task.sharing.decision(task.dense, paths_of(task), {})
    assert decision == Decision(decision.counts, "relative")
    assert task.decisions == [decision]
    assert task.file("counts.json") is None


def test_what_an_interrupted_call_decided_stands(tmp_path):
    first = job(tmp_path / "new")
    decision = first.decide(lambda: paths_of(first), {})
    assert first.file("counts.json") == tmp_path / "new/counts.json"
    again = job(tmp_path / "new")
    assert again.decide(never, {}) == decision
    assert again.decisions == first.decisions
    noted = {"counts": {"0": 5}, "shared_by": "fisher", "compared": {"fisher": 0.75, "uniform": 1.0}, "gave_way": True}
    write_note(tmp_path / "new/counts.json", {**noted, "note": "a note", "uniform": {"0": 4}})
    found = again.decide(never, {})
    assert found == again.decisions[-1]
    assert (found.counts, found.note) == ({"0": 5}, "a note")
    assert found.gave_way and found.doubtful
    assert found.uniform == {"0": 4}
    write_note(tmp_path / "new/counts.json", noted)  # as an earlier version wrote it: made again
    assert job(tmp_path / "new").decide(lambda: paths_of(first), {}) == decision


def test_what_the_units_count_is_written_to_the_last_digit(tmp_path):
    first = job(tmp_path / "new", sharing=Sharing(Budget(density=0.3), "fisher_units", CalibrationBatches([X])))
    decision = first.decide(lambda: paths_of(first), {})
    assert {name: len(g) for name, g in decision.unit_weights.items()} == {"0": 32, "2": 24, "4": 4}
    again = job(tmp_path / "new", sharing=first.sharing)
    assert again.decide(never, {}) == decision
    for name, path in paths_of(first).items():
        found, expected = again.decisions[0].weighted(name, path), decision.weighted(name, path)
        assert torch.equal(found.rank, expected.rank)
        assert not torch.equal(found.rank, path.rank)


def test_a_decision_of_an_older_version_is_made_again(tmp_path):
    task = job(tmp_path)
    (tmp_path / "counts.json").write_text('{"counts": {"0": 1}, "ratio": 0.5, "note": null, "gave_way": false}')
    with pytest.warns(UserWarning, match="is damaged: it is computed again"):
        decision = task.decide(lambda: paths_of(task), {})
    assert list(decision.counts) == ["0", "2", "4"]


@pytest.mark.parametrize(
    ("options", "beside"),
    [
        ({}, False),
        ({"sequential": True}, True),
        ({"correct": "bias"}, True),
        ({"refit": True}, True),
        ({"refit": None}, True),
        ({"stages": [Budget(density=0.3)]}, False),
        ({"stages": [Budget(density=0.6), Budget(density=0.3)]}, True),
    ],
)
def test_the_dense_network_is_needed_beside_wherever_something_is_compared_with_it(options, beside):
    assert job(**options).beside == beside


def test_densities_belong_to_the_layers_of_the_job():
    with pytest.raises(ValueError, match="exactly the pruned layers 0, 2, 4; unknown: 5; missing: 2, 4"):
        job(budget=Budget(densities={"0": 0.5, "5": 0.5}))


def test_two_jobs_do_not_share_their_decisions():
    one, other = job(), job()
    one.decisions.append(Decision({}))
    assert not other.decisions
    assert torch.equal(one.dense[0].weight, other.dense[0].weight)


def test_a_note_says_at_which_stage_where_there_are_several():
    budgets = [Budget(density=0.6), Budget(density=0.3)]
    assert job(budget=budgets[1], stages=budgets).staged("odd") == "at density=0.3: odd"
    assert job(budget=budgets[1], stages=budgets[1:]).staged("odd") == "odd"
