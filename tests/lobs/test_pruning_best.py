"""Pruning where no method is said: the best of everything, and what is held out for it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import lobs
from helpers.interrupted import interrupted
from lobs import pruning
from lobs.allocation.output_distance import OutputDistance
from lobs.calibration.batches import calibration_batches
from lobs.repair import refit as refitting

X = torch.randn(256, 16, generator=torch.Generator().manual_seed(5))
BATCHES = list(X.split(64))


@pytest.fixture
def perceptron():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4)).eval()


@pytest.fixture
def short(monkeypatch):
    """A refit of few steps."""
    monkeypatch.setattr(refitting.refit.__wrapped__, "__kwdefaults__", {**DEFAULTS, "steps": 20})


DEFAULTS = dict(refitting.refit.__wrapped__.__kwdefaults__)
BEST = {"allocation": "global", "sequential": True, "stages": 3, "refit": True}


def same(one, other):
    assert all(torch.equal(value, other.model.state_dict()[key]) for key, value in one.model.state_dict().items())
    assert all(torch.equal(one.masks[name], mask) for name, mask in other.masks.items())
    kinds = ("notes", "stages", "shared_by", "distance", "compared_allocations")
    assert [getattr(one, kind) for kind in kinds] == [getattr(other, kind) for kind in kinds]


def test_without_a_method_the_best_is_taken(perceptron, short):
    found = lobs.prune(perceptron, density=0.1, batches=BATCHES)
    same(found, lobs.prune(perceptron, None, "exact_obs", density=0.1, batches=BATCHES, **BEST))
    assert found.stages == [str(lobs.Budget(density=share)) for share in (0.4, 0.2, 0.1)]
    assert found.refit is not None and found.shared_by is not None
    assert found.density == pytest.approx(0.1, abs=2e-3)


@pytest.mark.parametrize(
    "said",
    [
        {"allocation": "uniform"},
        {"sequential": False},
        {"stages": 1},
        {"stages": [0.3]},
        {"refit": False},
        {"correct": "bias", "refit": False},
        {"sequential": False, "stages": 1, "refit": False, "allocation": "relative"},
    ],
    ids=str,
)
def test_what_is_said_stands(perceptron, short, said):
    found = lobs.prune(perceptron, density=0.1, batches=BATCHES, **said)
    same(found, lobs.prune(perceptron, None, "exact_obs", density=0.1, batches=BATCHES, **{**BEST, **said}))
    assert (found.refit is None) == (said.get("refit") is False)


def test_with_a_method_nothing_else_is_done(perceptron):
    found = lobs.prune(perceptron, None, "exact_obs", density=0.1, batches=BATCHES)
    assert (found.stages, found.refit, found.shared_by, found.correction) == ([], None, None, "none")
    options = {"allocation": "uniform", "sequential": False, "stages": 1, "refit": False}
    same(found, lobs.prune(perceptron, None, "exact_obs", density=0.1, batches=BATCHES, **options))


def test_statistics_alone_are_pruned_in_one_go(perceptron):
    statistics = lobs.collect_statistics(perceptron, BATCHES)
    found = lobs.prune(perceptron, statistics, density=0.1)
    assert "one shot, in one stage, not refitted" in found.notes[-1]
    found = replace(found, notes=found.notes[:-1])
    same(found, lobs.prune(perceptron, statistics, "exact_obs", density=0.1, allocation="relative"))
    assert (found.shared_by, found.distance, found.stages, found.refit) == ("relative", None, [], None)


def test_batches_that_can_be_read_once_are_not_gone_through_again(perceptron):
    found = lobs.prune(perceptron, density=0.1, batches=(part for part in BATCHES))
    assert found.notes[-1].startswith("without batches that can be read again")
    found = replace(found, notes=found.notes[:-1])
    same(found, lobs.prune(perceptron, None, "exact_obs", density=0.1, batches=BATCHES, allocation="global"))
    assert (found.stages, found.refit, found.distance) == ([], None, "kl")


@pytest.mark.parametrize(
    ("budget", "stages"),
    [({"flops": 0.1}, 3), ({"size": 3000}, 0), ({"tolerance": 0.3}, 0), ({"density": 0.7}, 0)],
    ids=str,
)
def test_other_budgets_have_the_stages_that_they_can_have(perceptron, short, budget, stages):
    found = lobs.prune(perceptron, batches=BATCHES, **budget)
    assert len(found.stages) == stages
    assert found.refit is not None
    if not {"density", "flops"} & budget.keys():
        assert found.notes[-1].startswith("in one stage: stages go with a density or flops")
        found = replace(found, notes=found.notes[:-1])
    asked = {**BEST, "stages": max(stages, 1)}
    same(found, lobs.prune(perceptron, None, "exact_obs", batches=BATCHES, **budget, **asked))


@pytest.fixture
def collected(monkeypatch):
    """The statistics that pruning has collected itself."""
    found, collect = [], pruning.collect_statistics

    def watched(*args, **options):
        found.append(collect(*args, **options))
        return found[-1]

    monkeypatch.setattr(pruning, "collect_statistics", watched)
    return found


# The last 42 of 256 inputs are a sixth.
LEARNED, HELD_OUT = (list(part) for part in calibration_batches(BATCHES).divided())


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "exact_obs", "allocation": "global"}, {"method": "exact_obs", "refit": True}],
    ids=["best", "global", "refit"],
)
def test_a_network_is_decided_on_inputs_that_its_statistics_have_not_seen(perceptron, short, collected, options):
    options = {"density": 0.1, **options}
    found = lobs.prune(perceptron, batches=BATCHES, **options)
    expected = lobs.collect_statistics(perceptron, LEARNED)
    changed = X.clone()
    changed[5::6] *= 3
    other = lobs.prune(perceptron, batches=list(changed.split(len(BATCHES[0]))), **options)
    assert len(collected) == 2
    for statistics in collected:
        for name, layer in expected.items():
            assert statistics[name].samples == layer.samples == 214
            torch.testing.assert_close(statistics[name].second_moment, layer.second_moment, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(one.second_moment, collected[1][name].second_moment) for name, one in collected[0].items())
    by_hand = lobs.prune(perceptron, collected[0], batches=LEARNED, held_out=HELD_OUT, **options)
    same(found, by_hand)
    if options.get("allocation", "global" if "method" not in options else "uniform") == "global":
        # In the first stage alone the candidates would be the same; what they are measured by is not.
        assert found.compared_allocations != other.compared_allocations
    if found.refit is not None:
        assert found.refit.held_out == by_hand.refit.held_out == 42
        assert found.refit.before != other.refit.before


@pytest.mark.filterwarnings("ignore:.*gave way")
def test_what_the_statistics_have_not_seen_chooses_the_candidate(perceptron, collected):
    """Candidates are the same whatever is held out, and it alone decides between them."""
    options = {"method": "exact_obs", "density": 0.1, "allocation": "global"}
    chosen = set()
    for held_out in (X[5::6], -X[5::6], 4 * X[5::6], X[5::6] + 2, X[5::6] - 2):
        changed = X.clone()
        changed[5::6] = held_out
        batches = list(changed.split(len(BATCHES[0])))
        found = lobs.prune(perceptron, batches=batches, **options)
        statistics = collected[-1]
        distance = OutputDistance(perceptron, [held_out])
        for name, compared in found.compared_allocations.items():
            alone = lobs.prune(perceptron, statistics, "exact_obs", density=0.1, allocation=name, batches=LEARNED)
            assert compared == pytest.approx(distance.of_network(alone.model))
        assert found.shared_by == min(found.compared_allocations, key=found.compared_allocations.get)
        chosen.add(found.shared_by)
    assert len(chosen) > 1


@pytest.mark.parametrize(
    "options",
    [
        {"method": "exact_obs", "density": 0.3},
        {"method": "exact_obs", "density": 0.3, "allocation": "fisher"},
        {"method": "exact_obs", "tolerance": 0.3, "allocation": "global"},
        {"tolerance": 0.3, "refit": False},
        {"method": "exact_obs", "density": 0.3, "sequential": True},
    ],
    ids=str,
)
def test_where_nothing_is_compared_nothing_is_held_out(perceptron, collected, options):
    lobs.prune(perceptron, batches=BATCHES, **options)
    assert {layer.samples for layer in collected[0].values()} == {256}


def test_inputs_that_can_be_read_once_do_where_nothing_is_compared(perceptron):
    found = lobs.prune(perceptron, tolerance=0.3, batches=iter(BATCHES))
    found = replace(found, notes=found.notes[:-1])
    same(found, lobs.prune(perceptron, None, "exact_obs", tolerance=0.3, batches=BATCHES))


def test_held_out_inputs_are_looked_at_and_belong_to_the_folder(perceptron, tmp_path):
    options = {"density": 0.3, "allocation": "global", "batches": LEARNED}
    for held_out in (3, X):
        with pytest.raises(TypeError, match="batches must be an iterable of batches"):
            lobs.prune(perceptron, None, "magnitude", held_out=held_out, **options)
    first = lobs.prune(perceptron, None, "magnitude", held_out=HELD_OUT, folder=tmp_path, **options)
    same(lobs.prune(perceptron, None, "magnitude", held_out=HELD_OUT, folder=tmp_path, **options), first)
    for others in ([X[200:]], None):
        statistics = lobs.collect_statistics(perceptron, LEARNED)
        with pytest.raises(ValueError, match="holds parts of another call: held_out differ"):
            lobs.prune(perceptron, statistics, "magnitude", held_out=others, folder=tmp_path, **options)


def test_given_paths_are_a_method(perceptron, collected):
    paths = lobs.layer_paths(perceptron, lobs.collect_statistics(perceptron, BATCHES), "magnitude")
    found = lobs.prune(perceptron, paths=paths, density=0.3, batches=BATCHES)
    same(found, lobs.prune(perceptron, None, "magnitude", density=0.3, batches=BATCHES))
    assert (found.stages, found.shared_by, found.refit) == ([], None, None)
    assert {layer.samples for layer in collected[0].values()} == {256}


def test_a_refit_that_cannot_be_made_is_a_note(perceptron):
    found = lobs.prune(perceptron, density=0.1, batches=[X[:11]])
    assert found.refit is None
    reason = "a refit holds a sixth of the inputs out: give at least 48 inputs"
    assert found.notes[-1] == f"not refitted: {reason}"
    assert "not refitted" in repr(found)
    half = lobs.prune(perceptron.bfloat16(), density=0.1, batches=[part.bfloat16() for part in BATCHES])
    assert any("not refitted: a refit moves weights by little steps" in note for note in half.notes)


@pytest.mark.filterwarnings("ignore:allocation='global' took 'fisher' unseen")
def test_a_layer_that_is_too_large_is_done_in_groups_and_that_is_said(perceptron, short, monkeypatch):
    monkeypatch.setattr("lobs.solvers.exact_obs.MOST_OPERATIONS", 3e5)  # the first two layers need 1e5 and 6e5
    monkeypatch.setattr("lobs.solvers.exact_obs.GROUP", 16)
    statistics = lobs.collect_statistics(perceptron, BATCHES)
    note = "layer '2': eliminated in 2 groups of 16 inputs"
    found = lobs.prune(perceptron, statistics, density=0.2)
    assert found.notes[0] == note
    assert note in repr(found)
    with pytest.raises(ValueError, match="layer '2': exact_obs of 24 units with 33 inputs in groups of 33 needs"):
        lobs.prune(perceptron, statistics, "exact_obs", density=0.2)
    for memory in (None, 1):
        found = lobs.prune(perceptron, statistics, density=0.2, memory=memory, batches=BATCHES, stages=1, refit=False)
        assert note in found.notes
    assert lobs.layer_paths(perceptron, statistics)["2"].note == note.partition(": ")[2]
    assert note in lobs.plan(perceptron, statistics).prune(density=0.2).notes


def test_plans_and_paths_without_a_method_are_those_of_exact_obs(perceptron):
    statistics = lobs.collect_statistics(perceptron, BATCHES)
    expected = lobs.layer_paths(perceptron, statistics, "exact_obs")
    for paths in (lobs.layer_paths(perceptron, statistics), lobs.plan(perceptron, statistics).paths):
        assert all(torch.equal(path.rank, expected[name].rank) for name, path in paths.items())
    found = lobs.plan(perceptron, statistics).prune(density=0.2)
    same(found, lobs.prune(perceptron, statistics, "exact_obs", density=0.2))


@pytest.mark.parametrize("stop", [3, 8, 13, 18])
def test_the_best_way_goes_on_where_it_was_interrupted(perceptron, short, tmp_path, stop):
    expected = lobs.prune(perceptron, density=0.1, batches=BATCHES)
    with pytest.raises(KeyboardInterrupt):
        lobs.prune(perceptron, density=0.1, batches=BATCHES, folder=tmp_path, progress=interrupted(stop))
    same(lobs.prune(perceptron, density=0.1, batches=BATCHES, folder=tmp_path), expected)


def test_the_best_way_is_nearer_than_a_single_one(perceptron):
    best = lobs.prune(perceptron, density=0.1, batches=BATCHES)
    single = lobs.prune(perceptron, None, "exact_obs", density=0.1, batches=BATCHES)
    distance = OutputDistance(perceptron, BATCHES)
    assert distance.of_network(best.model) < 0.5 * distance.of_network(single.model)
