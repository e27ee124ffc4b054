"""A job from beginning to end: masks, records and notes, and the network of uniform shares where that one is nearer."""

from dataclasses import replace

import pytest
import torch

import lobs
from helpers.networks import X, mlp
from lobs.allocation.budget import Budget
from lobs.allocation.output_distance import OutputDistance
from lobs.allocation.sharing import Decision, Sharing
from lobs.base.execution import Execution
from lobs.base.notes import write_note
from lobs.calibration.batches import CalibrationBatches
from lobs.repair.refit import STEPS
from lobs.schedule.job import Job
from lobs.schedule.run import no_worse_than_uniform, refitted, run
from lobs.solvers import make
from lobs.solvers.magnitude import Magnitude

WORST = {"0": 511, "2": 300, "4": 0}


def job(folder=None, **options):
    model = mlp()
    statistics = lobs.collect_statistics(model, [X])
    sharing = Sharing(Budget(density=0.3), "global", CalibrationBatches(list(X.split(64))))
    execution = Execution(folder=folder)
    return Job(model, mlp(), statistics, make("magnitude"), list(statistics), sharing, execution, **options)


def test_records_agree_with_the_masks_the_weights_and_the_bound():
    task = job()
    task = replace(task, sharing=Sharing(Budget(density=0.3)))
    result = run(task)
    assert result.model is task.pruned
    bound = lobs.error_bound(task.dense, result.model, task.statistics)
    for record in result.layers:
        mask, weight = result.masks[record.name], result.model.get_submodule(record.name).weight
        assert record.shape == mask.shape == weight.shape
        assert (record.kept, record.removed) == (int(mask.sum()), int((~mask).sum()))
        assert record.density == record.kept / mask.numel()
        assert not weight[~mask].any()
        assert record.bound_contribution == pytest.approx(bound.layers[record.name])
    masks = result.masks.values()
    assert result.density == sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    assert (result.correction, result.uncorrected, result.notes) == ("none", {}, [])


def test_zeros_that_a_pattern_keeps_are_no_kept_weights():
    task = job()
    with torch.no_grad():
        for model in (task.dense, task.pruned):
            model[0].weight[:, :4] = 0
    task = replace(task, solver=make("magnitude", pattern="2:4"), sharing=Sharing(Budget(density=1.0)))
    result = run(task)
    assert not result.masks["0"][:, :4].any()
    assert result.masks["0"][:, 4:].all()


def test_a_correction_comes_last_and_what_it_changed_is_kept():
    result = run(job(correct="bias"))
    assert result.correction == "bias"
    assert torch.equal(result.uncorrected["0.bias"], mlp()[0].bias)
    assert not torch.equal(result.model[0].bias, mlp()[0].bias)


def test_notes_on_decisions_are_warnings_too(tmp_path):
    task = job(tmp_path)
    write_note(tmp_path / "counts.json", {"counts": {"0": 1, "2": 2, "4": 3}, "note": "Look here."})
    with pytest.warns(UserWarning, match=r"Look here\."):
        result = run(task)
    assert result.notes == ["Look here."]
    assert [record.removed for record in result.layers] == [1, 2, 3]


def doubtful(task, counts):
    """The job's result with bad shares that nobody is sure of."""
    task.decisions.clear()
    given = replace(task, sharing=replace(task.sharing, budget=Budget(densities=_densities(counts))))
    result = run(given)
    task.decisions[:] = [compared(0.9, counts)]
    return result


def compared(ratio, counts=None):
    """A decision of ``fisher`` whose distance is this share of that of ``uniform``."""
    uniform = {record.name: record.removed for record in even().layers}
    return Decision(counts or {}, "fisher", "kl", compared={"fisher": 2 * ratio, "uniform": 2.0}, uniform=uniform)


def even():
    """The result where every layer has the same share."""
    task = job(correct="bias")
    return run(replace(task, sharing=replace(task.sharing, allocation="uniform")))


def _densities(counts):
    return {name: 1 - count / mlp().get_submodule(name).weight.numel() for name, count in counts.items()}


def test_where_shares_hardly_help_the_network_of_uniform_ones_is_compared():
    task = job(correct="bias")
    result = doubtful(task, WORST)
    with pytest.warns(UserWarning, match="allocation='global' gave way to 'uniform'"):
        found = no_worse_than_uniform(task, task.dense, result)
    for name, value in even().model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value)
    measure = OutputDistance(task.dense, task.sharing.images)
    assert measure.of_network(found.model) < measure.of_network(result.model)
    assert found.notes == [task.decisions[-1].note]
    last = task.decisions[-1]
    assert (last.gave_way, last.shared_by, last.distance, last.unit_weights) == (True, "uniform", "kl", None)
    assert last.compared == compared(0.9).compared
    assert task.decisions[-1].counts == {record.name: record.removed for record in even().layers}


def test_a_network_that_is_nearer_stays():
    task = job(correct="bias")
    result = run(task)
    task.decisions[:] = [compared(0.9)]
    assert no_worse_than_uniform(task, task.dense, result) is result
    assert len(task.decisions) == 1


@pytest.mark.parametrize(
    ("correct", "decision"),
    [("none", compared(0.9)), ("bias", compared(0.4)), ("bias", Decision({}, "relative"))],
    ids=["one shot", "no doubt", "never compared"],
)
def test_nothing_is_compared_where_nothing_can_have_turned_round(monkeypatch, correct, decision):
    task = job(correct=correct)
    task.decisions.append(decision)
    monkeypatch.setattr("lobs.schedule.run.run", None)
    assert no_worse_than_uniform(task, task.dense, "the result") == "the result"


def test_left_open_a_refit_is_made_where_weights_were_lost_and_only_there():
    task = job(refit=None)
    everything = replace(task, sharing=replace(task.sharing, budget=Budget(density=1.0)))
    whole = run(everything)
    assert refitted(everything, whole) is whole
    pruned = run(task)
    assert refitted(replace(task, refit=False), pruned) is pruned
    found = refitted(task, pruned)
    assert found.refit is not None and found.before_refit


def test_what_was_approximated_and_remarks_are_notes():
    task = job()
    task.remarks.append("said before")
    task.decisions.append(Decision({}, note="decided before"))
    noted = replace(task, solver=Noting(), sharing=Sharing(Budget(density=0.5)))
    result = run(noted)
    assert result.notes == ["layer '0': roughly", "layer '2': roughly", "layer '4': roughly"]
    assert result.density == 0.5


class Noting(Magnitude):
    """Its paths have a note."""

    def path(self, weight, statistics):
        path = super().path(weight, statistics)
        path.note = "roughly"
        return path


def test_a_refit_that_cannot_be_made_is_a_note_where_it_was_not_asked_for():
    task = job(refit=None)
    few = replace(task, sharing=replace(task.sharing, batches=CalibrationBatches([X[:20]])))
    pruned = run(few)
    before = {key: value.clone() for key, value in pruned.model.state_dict().items()}
    found = refitted(few, pruned)
    assert found.notes == [
        *pruned.notes,
        "not refitted: a refit holds a sixth of the inputs out: give at least 48 inputs",
    ]
    assert found.refit is None
    assert all(torch.equal(value, before[key]) for key, value in found.model.state_dict().items())
    for asked in (True, 5):
        with pytest.raises(ValueError, match=r"^a refit holds a sixth of the inputs out"):
            refitted(replace(few, refit=asked), pruned)


@pytest.mark.parametrize(("refit", "steps"), [(None, STEPS), (True, STEPS), (1, 1), (7, 7)])
def test_a_refit_takes_as_many_minibatches_as_were_asked_for(refit, steps, monkeypatch):
    asked = []
    monkeypatch.setattr("lobs.schedule.run.refit", lambda *_, steps, **__: asked.append(steps))
    task = job(refit=refit)
    refitted(task, run(replace(task, sharing=Sharing(Budget(density=0.3), batches=task.sharing.batches))))
    assert asked == [steps]


def test_a_refit_keeps_what_it_moved_and_renews_the_bounds():
    task = job(refit=20)
    pruned = run(task)
    before = {key: value.detach().clone() for key, value in pruned.model.named_parameters()}
    found = refitted(task, pruned)
    after = dict(found.model.named_parameters())
    assert found.before_refit.keys() == {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert found.before_refit
    assert all(torch.equal(value, before[key]) for key, value in found.before_refit.items())
    bound = lobs.error_bound(task.dense, found.model, task.statistics)
    for record, old in zip(found.layers, pruned.layers, strict=True):
        assert record.bound_contribution == pytest.approx(bound.layers[record.name])
        assert replace(record, bound_contribution=0) == replace(old, bound_contribution=0)


def test_a_tie_is_no_reason_for_uniform_shares(monkeypatch):
    task = job(correct="bias")
    result = run(task)
    task.decisions[:] = [compared(0.9)]
    monkeypatch.setattr("lobs.schedule.run.OutputDistance.of_network", lambda *_: 1.0)
    assert no_worse_than_uniform(task, task.dense, result) is result
