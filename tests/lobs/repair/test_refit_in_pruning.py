"""The refit as a part of pruning: asked for, left open, and in a plan."""

import pytest
import torch

import lobs
from helpers.networks import X, mlp
from helpers.refits import BATCHES, normed, pruned
from lobs.calibration.batches import calibration_batches

STEPS = {"steps": 40}


def test_pruning_asks_for_it_and_what_it_moved_can_be_put_back():
    dense = normed().eval()
    # A sixth is held out of the statistics where a refit wants it.
    learned = list(calibration_batches(BATCHES).divided()[0])
    statistics = lobs.collect_statistics(dense, learned)
    plain = lobs.prune(dense, statistics, "exact_obs", density=0.3)
    result = pruned(dense, "exact_obs", refit=True)
    assert result.refit.held_out == 42
    assert result.refit.after < result.refit.before
    assert str(result.refit) in repr(result)
    assert set(result.before_refit) == {
        key for key, value in result.model.state_dict().items() if not torch.equal(value, plain.model.state_dict()[key])
    }
    assert not any("running" in key for key in result.before_refit)
    bound = lobs.error_bound(dense, result.model, statistics)
    assert [r.bound_contribution for r in result.layers] == pytest.approx(list(bound.layers.values()))
    result.model.load_state_dict(result.before_refit, strict=False)
    assert all(torch.equal(value, plain.model.state_dict()[key]) for key, value in result.model.state_dict().items())
    assert (plain.refit, plain.before_refit) == (None, {})


def test_a_refit_that_was_asked_for_and_cannot_be_made_is_an_error():
    statistics = lobs.collect_statistics(mlp(), BATCHES)
    with pytest.raises(ValueError, match="refit=True needs batches="):
        lobs.prune(mlp(), statistics, "magnitude", density=0.3, refit=True)
    with pytest.raises(ValueError, match="refit=True reads batches several times"):
        lobs.prune(mlp(), statistics, "magnitude", density=0.3, refit=True, batches=iter(BATCHES))
    for given in (statistics, None):
        with pytest.raises(ValueError, match="a refit holds a sixth of the inputs out: give at least 48 inputs"):
            lobs.prune(mlp(), given, "magnitude", density=0.3, refit=True, batches=[X[:11]])


def test_a_refit_that_is_left_open_is_a_note_where_it_cannot_be_made_and_nothing_where_nothing_was_removed():
    result = lobs.prune(mlp(), density=0.3, batches=[X[:11]])
    assert any(note.startswith("not refitted: a refit holds a sixth of the inputs out") for note in result.notes)
    assert result.refit is None
    dense = mlp()
    same = lobs.prune(dense, density=1.0, batches=BATCHES)
    assert (same.refit, same.before_refit) == (None, {})
    assert not any("refit" in note for note in same.notes)
    assert all(torch.equal(value, dense.state_dict()[key]) for key, value in same.model.state_dict().items())
    asked = lobs.prune(dense, density=1.0, batches=BATCHES, refit=True)
    assert isinstance(asked.refit, lobs.Refit)


def test_pruning_hands_held_out_inputs_on():
    dense = mlp()
    found = lobs.prune(dense, None, "magnitude", density=0.3, batches=BATCHES[:5], held_out=BATCHES[5:], refit=True)
    assert found.refit.held_out == 96
    expected = lobs.prune(dense, None, "magnitude", density=0.3, batches=BATCHES[:5])
    assert expected.masks.keys() == found.masks.keys()
    done = lobs.refit(dense, expected.model, BATCHES[:5], held_out=BATCHES[5:], masks=expected.masks)
    assert (done.before, done.after, done.steps) == (found.refit.before, found.refit.after, found.refit.steps)
    assert all(torch.equal(value, found.model.state_dict()[key]) for key, value in expected.model.state_dict().items())


def test_a_plan_refits_too_and_in_place_is_in_place():
    dense = mlp()
    expected = pruned(dense, "exact_obs", refit=True)
    learned, held_out = calibration_batches(BATCHES).divided()
    planned = lobs.plan(dense, None, "exact_obs", batches=learned, held_out=held_out).prune(density=0.3, refit=True)
    assert planned.refit.held_out == 42
    for key, value in expected.model.state_dict().items():
        assert torch.equal(planned.model.state_dict()[key], value)
    result = pruned(dense, "exact_obs", refit=True, in_place=True)
    assert result.model is dense
    assert all(torch.equal(value, expected.model.state_dict()[key]) for key, value in dense.state_dict().items())
