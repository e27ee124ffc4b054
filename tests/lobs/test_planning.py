"""A plan asks one factorisation many times, and gives what single calls give."""

import copy

import pytest
import torch
from torch import nn

import lobs
from lobs import planning
from lobs.calibration.batches import CalibrationBatches

X = torch.randn(200, 12, generator=torch.Generator().manual_seed(3))
BATCHES = list(X.split(50))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 9), nn.ReLU(), nn.Linear(9, 4)).eval()


def same(one, other):
    assert all(torch.equal(value, other.model.state_dict()[key]) for key, value in one.model.state_dict().items())
    assert [(r.kept, r.error) for r in one.layers] == [(r.kept, r.error) for r in other.layers]
    assert (one.density, one.notes, one.shared_by, one.distance) == (
        other.density,
        other.notes,
        other.shared_by,
        other.distance,
    )


ASKED = [
    {"density": 0.3},
    {"flops": 0.2},
    {"size": 1700, "allocation": "relative"},
    {"tolerance": 0.4, "tolerance_rule": "sensitivity"},
    {"densities": {"0": 0.2, "2": 0.3, "4": 0.9}},
    {"density": 0.3, "allocation": "global", "limits": {"4": (0.5, 1.0)}},
    {"density": 0.3, "allocation": "fisher", "correct": "bias"},
    {"density": 0.3, "allocation": "global", "sequential": True},
]


@pytest.mark.parametrize("method", ["exact_obs", "lobs", "sparsegpt"])
def test_every_budget_gives_what_a_call_of_its_own_gives(model, method):
    statistics = lobs.collect_statistics(model, BATCHES)
    plan = lobs.plan(model, statistics, method, batches=BATCHES)
    for asked in ASKED:
        if method == "sparsegpt" and "tolerance" in asked:
            continue
        same(plan.prune(**asked), lobs.prune(model, statistics, method, batches=BATCHES, **asked))


def test_the_layers_are_factorised_once(model, monkeypatch):
    from lobs.solvers.exact_obs import ExactOBS

    seen, path = [], ExactOBS.path
    monkeypatch.setattr(ExactOBS, "path", lambda self, *rest: seen.append(1) or path(self, *rest))
    plan = lobs.plan(model, None, "exact_obs", batches=BATCHES)
    assert not seen
    for density in (0.5, 0.2, 0.1):
        plan.prune(density=density, allocation="global")
    plan.curve(allocation="global")
    assert len(seen) == 3


def test_losses_are_computed_once_per_allocation(model, monkeypatch):
    calls = []
    kept, sensitivity = planning.loss_curves, planning.output_sensitivity

    def counted(paths, allocation, **rest):
        calls.append(allocation)
        return kept(paths, allocation, **rest)

    def measured(*rest, **options):
        calls.append("sensitivities")
        return sensitivity(*rest, **options)

    monkeypatch.setattr(planning, "loss_curves", counted)
    monkeypatch.setattr(planning, "output_sensitivity", measured)
    monkeypatch.setattr("lobs.allocation.sharing.output_sensitivity", None)
    plan = lobs.plan(model, None, batches=BATCHES)
    for density in (0.5, 0.2):
        for allocation in ("measured", "fisher", "fisher_units", "global", "relative"):
            plan.prune(density=density, allocation=allocation)
    assert calls == ["measured", "sensitivities", "relative"]


def test_sensitivities_are_those_of_the_first_half_of_the_inputs_and_need_some(model):
    plan = lobs.plan(model, None, "magnitude", batches=BATCHES)
    half = CalibrationBatches(BATCHES).first_images(sum(len(batch) for batch in BATCHES) // 2)
    assert len(list(half)) < len(BATCHES)
    expected = lobs.calibration.output_fisher.output_sensitivity(model, half)
    for name, found in plan.sensitivities.items():
        assert torch.equal(found.together, expected[name].together)
        assert torch.equal(found.apart, expected[name].apart)
    alone = lobs.plan(model, lobs.collect_statistics(model, BATCHES), "magnitude")
    with pytest.raises(ValueError, match="sensitivities are measured on calibration inputs: give batches="):
        _ = alone.sensitivities


def test_the_curve_is_that_of_the_pruned_networks(model):
    statistics = lobs.collect_statistics(model, BATCHES)
    plan = lobs.plan(model, statistics, "exact_obs", batches=BATCHES)
    points = plan.curve((0.5, 0.25, 0.1))
    for density, point in zip((0.5, 0.25, 0.1), points, strict=True):
        result = plan.prune(density=density)
        assert point.density == result.density
        assert {name: pair[0] for name, pair in point.layers.items()} == {r.name: r.density for r in result.layers}
        errors = [record.relative_error for record in result.layers]
        assert [pair[1] for pair in point.layers.values()] == pytest.approx(errors)
        measure = lobs.allocation.output_distance.OutputDistance(model, BATCHES)
        assert point.distance == pytest.approx(measure.of_network(result.model))
    assert [p.distance for p in points] == sorted(p.distance for p in points)
    assert lobs.plan(model, statistics).curve((0.5,))[0].distance is None


def test_a_curve_leaves_out_what_a_pattern_cannot_reach_unless_it_was_asked_for(model):
    solver = lobs.solvers.make("magnitude", pattern="2:4")
    plan = lobs.plan(model, None, solver, batches=BATCHES, exclude=["4"])  # its 9 inputs are no multiple of four
    assert [point.density for point in plan.curve()] == [0.5]
    with pytest.raises(ValueError, match=r"layer '0': .*0\.1"):
        plan.curve((0.1,))


def test_whole_units_have_a_curve_too(model):
    points = lobs.plan(model, None, "apoz", batches=BATCHES).curve((0.5, 0.3))
    assert points[0].density > points[1].density > 0.2


def test_a_folder_holds_every_budgets_parts_and_is_read_again(model, tmp_path, monkeypatch):
    statistics = lobs.collect_statistics(model, BATCHES)
    execution = lobs.Execution(folder=tmp_path)
    options = {"allocation": "global", "sequential": True}
    first = [
        lobs.plan(model, statistics, "exact_obs", batches=BATCHES, execution=execution).prune(density=d, **options)
        for d in (0.5, 0.3)
    ]
    monkeypatch.setattr("lobs.solvers.exact_obs.ExactOBS.path", None)
    again = lobs.plan(model, statistics, "exact_obs", batches=BATCHES, execution=execution)
    for density, result in zip((0.5, 0.3), first, strict=True):
        same(again.prune(density=density, **options), result)
    other = lobs.plan(model, statistics, "lobs", batches=BATCHES, execution=execution)
    with pytest.raises(ValueError, match="holds parts of another call: method differ"):
        other.prune(density=0.5)


def test_budgets_are_objects_too(model):
    plan = lobs.plan(model, None, batches=BATCHES)
    same(plan.prune(lobs.Budget(flops=0.3)), plan.prune(flops=0.3))
    with pytest.raises(TypeError, match=r"give a budget or its fields, got flops=0.3 and density"):
        plan.prune(lobs.Budget(flops=0.3), density=0.2)
    with pytest.raises(ValueError, match="give exactly one of density, tolerance, densities, flops, size; got none"):
        plan.prune()
    with pytest.raises(TypeError, match="memory must be a ceiling in bytes, a number"):
        lobs.Execution(memory="much")


def test_what_needs_batches_says_so(model):
    plan = lobs.plan(model, lobs.collect_statistics(model, BATCHES))
    with pytest.raises(ValueError, match="sequential=True needs batches="):
        plan.prune(density=0.3, sequential=True)
    with pytest.raises(ValueError, match=r"correct='bias' needs batches="):
        plan.prune(density=0.3, correct="bias")


def test_in_place_changes_the_model_itself(model):
    result = lobs.plan(model, None, batches=BATCHES).prune(density=0.3, in_place=True)
    assert result.model is model
    assert (model[0].weight == 0).float().mean() > 0.5


class Scaled(nn.Module):
    """Weights that are no matrix."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(200, 4))

    def forward(self, x):
        return x * self.weight.sum(0)


def test_warnings_point_to_the_callers_line(model):
    mixed = nn.Sequential(model, nn.Unflatten(1, (1, 4)), Scaled())
    with pytest.warns(UserWarning, match="were not pruned") as caught:
        lobs.prune(mixed, batches=BATCHES, density=0.5)
        lobs.plan(mixed, None, batches=BATCHES).prune(density=0.5)
    assert {warning.filename for warning in caught} == {__file__}


def test_modes_of_the_caller_do_not_reach_what_a_plan_measures(model):
    statistics = lobs.collect_statistics(model, BATCHES)
    options = {"density": 0.3, "allocation": "measured"}
    expected = lobs.plan(model, statistics, batches=BATCHES)
    plan = lobs.plan(model, statistics, batches=BATCHES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plan.losses("measured")
        assert [p.distance for p in plan.curve((0.3,))] == [p.distance for p in expected.curve((0.3,))]
    same(plan.prune(**options), expected.prune(**options))
    with torch.inference_mode():
        assert lobs.plan(model, statistics, batches=BATCHES).losses("fisher").keys() == {"0", "2", "4"}


@pytest.mark.parametrize("allocation", ["fisher", "measured", "global"])
def test_buffers_stay_as_they_were(allocation):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(12, 9), nn.Linear(9, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.second(torch.relu(self.first(x)))

    counting = Counting().eval()
    plan = lobs.plan(counting, None, batches=BATCHES)
    plan.losses(allocation)
    plan.curve((0.3,), allocation)
    plan.prune(density=0.3, allocation=allocation)
    assert counting.calls == 0


def test_the_curve_of_a_network_with_zeros_counts_them_as_removed(model):
    with torch.no_grad():
        for index in (0, 2, 4):
            model[index].weight[torch.rand_like(model[index].weight) < 0.6] = 0
    for method in ("lobs", "magnitude"):
        plan = lobs.plan(model, None, method, batches=BATCHES)
        for density in (0.9, 0.5, 0.2):
            assert plan.curve((density,))[0].density == plan.prune(density=density).density


def test_a_sequence_needs_no_paths_of_the_dense_network(model):
    statistics = lobs.collect_statistics(model, BATCHES)
    solver = lobs.solvers.make("net_trim", iterations=5, bisections=2)
    plan = lobs.plan(model, statistics, solver, batches=BATCHES, keep_samples=30)
    options = {"density": 0.5, "sequential": True}
    same(plan.prune(**options), lobs.prune(model, statistics, solver, batches=BATCHES, keep_samples=30, **options))


def test_a_plan_whose_model_was_changed_is_used_up(model):
    plan = lobs.plan(model, None, batches=BATCHES)
    plan.prune(density=0.5, in_place=True)
    for ask in (lambda: plan.prune(density=0.3), plan.curve, lambda: plan.losses("relative")):
        with pytest.raises(ValueError, match="this plan's model has changed since"):
            ask()


def test_weights_that_are_written_past_autograd_are_noticed(model):
    plan = lobs.plan(model, None, batches=BATCHES)
    model[2].weight.data.mul_(3)
    with pytest.raises(ValueError, match="this plan's model has changed since"):
        plan.prune(density=0.5)


@pytest.mark.parametrize("change", ["weights", "activation", "buffers"])
def test_statistics_of_another_network_of_the_same_shapes_are_said(model, change):
    model[1] = nn.BatchNorm1d(20).eval()
    statistics, other = lobs.collect_statistics(model, BATCHES), copy.deepcopy(model)
    lobs.prune(other, statistics, "magnitude", density=0.5)  # a copy is the same network
    with torch.no_grad():
        if change == "weights":
            other[0].weight += 1
        elif change == "buffers":
            other[1].running_mean += 1
        else:
            other[3] = nn.Tanh()
    with pytest.warns(UserWarning, match="collected from another network"):
        result = lobs.prune(other, statistics, "magnitude", density=0.5)
    assert result.notes[0].startswith("the statistics were collected from another network")
    with pytest.raises(ValueError, match="collected from another network"):
        lobs.error_bound(other, result.model, statistics)


def test_statistics_in_files_know_their_network(model, tmp_path):
    lobs.collect_statistics(model, BATCHES).save(tmp_path / "s.safetensors")
    found = lobs.Statistics.load(tmp_path / "s.safetensors", lazy=True)
    assert not lobs.prune(model, found, "magnitude", density=0.5).notes
    assert found.calls.of_another(nn.Sequential(nn.Linear(2, 2)))


def test_training_after_planning_is_noticed(model):
    plan = lobs.plan(model, None, batches=BATCHES)
    plan.prune(density=0.5)
    plan.curve((0.5,), "global")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).square().mean().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="this plan's model has changed since"):
        plan.prune(density=0.5)


def test_given_paths_belong_to_the_folder_and_obey_exclude(model, tmp_path):
    statistics = lobs.collect_statistics(model, BATCHES)
    options = {"density": 0.3, "allocation": "relative"}
    by_magnitude, by_sensitivity = (lobs.layer_paths(model, statistics, name) for name in ("magnitude", "lobs"))
    lobs.prune(model, statistics, paths=by_magnitude, folder=tmp_path, **options)
    with pytest.raises(ValueError, match="holds parts of another call: paths differ"):
        lobs.prune(model, statistics, paths=by_sensitivity, folder=tmp_path, **options)
    result = lobs.prune(model, statistics, paths=by_sensitivity, exclude=["2"], density=0.3)
    assert [record.name for record in result.layers] == ["0", "4"]
    assert torch.equal(result.model[2].weight, model[2].weight)


def test_samples_belong_to_the_folder(model, tmp_path):
    few, many = (lobs.collect_statistics(model, BATCHES, keep_samples=count) for count in (12, 60))
    solver = lobs.solvers.make("net_trim", iterations=5, bisections=2)
    lobs.prune(model, few, solver, density=0.5, folder=tmp_path)
    with pytest.raises(ValueError, match="statistics differ"):
        lobs.prune(model, many, solver, density=0.5, folder=tmp_path)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"counts": 3}'])
def test_damaged_counts_are_decided_anew(model, tmp_path, text):
    statistics = lobs.collect_statistics(model, BATCHES)
    options = {"density": 0.3, "allocation": "relative", "folder": tmp_path}
    first = lobs.prune(model, statistics, **options)
    (tmp_path / "counts.json").write_text(text)
    with pytest.warns(UserWarning, match="counts.json is damaged: it is computed again") as caught:
        same(lobs.prune(model, statistics, **options), first)
    assert caught[0].filename == __file__


def test_nonsense_is_refused_in_one_sentence(model):
    statistics = lobs.collect_statistics(model, BATCHES)
    plan = lobs.plan(model, statistics, batches=BATCHES)
    for call, kind, message in (
        (lambda: plan.prune(0.1), TypeError, r"budget must be a lobs.Budget, got 0.1: give its fields by name"),
        (lambda: plan.prune(densty=0.1), TypeError, "unknown argument 'densty': accepted are density"),
        (lambda: plan.curve(0.1), TypeError, "densities must be a list of numbers between 0 and 1, got 0.1"),
        (
            lambda: plan.prune(density=0.2, allocation="foo"),
            ValueError,
            "unknown allocation 'foo'",
        ),
        (
            lambda: lobs.prune(model, statistics, tolerance=0.3, allocation="foo"),
            ValueError,
            "unknown allocation 'foo'",
        ),
        (lambda: plan.prune(density=0.2, allocation=[1]), ValueError, r"unknown allocation \[1\]"),
        (
            lambda: lobs.plan(model, statistics, execution={}),
            TypeError,
            r"must be a lobs.Execution, got \{\}",
        ),
        (lambda: lobs.plan(model, {"0": 1}), TypeError, "statistics must come from lobs.collect_statistics, got dict"),
        (lambda: lobs.plan(model, statistics, keep_samples=-1), ValueError, "keep_samples must be a whole number"),
        (lambda: lobs.layer_paths(model, statistics, 3), TypeError, r"method must be a name of lobs.methods\(\)"),
        (lambda: lobs.Execution(folder=3), TypeError, "folder must be a path, got 3"),
        (lambda: lobs.Execution(folder=__file__), ValueError, "is a file: give a folder"),
        (lambda: lobs.Execution(folder=""), ValueError, "would fill the working directory"),
        (lambda: lobs.Execution(memory=float("nan")), ValueError, r"memory is a ceiling in bytes, above 0, .*got nan"),
        (lambda: lobs.Budget(tolerance=-1), ValueError, "tolerance must be >= 0, got -1"),
        (lambda: lobs.Budget(density=0.1, tolerance_rule="foo"), ValueError, "unknown rule 'foo': accepted are error"),
    ):
        with pytest.raises(kind, match=message):
            call()


def test_layers_factorised_in_parts_are_found_by_the_plan_that_prunes(tmp_path, model, monkeypatch):
    statistics = lobs.collect_statistics(model, [X])

    def made(folder=None):
        return lobs.plan(model, statistics, "exact_obs", execution=lobs.Execution(folder=folder))

    expected = made().prune(density=0.3)
    names = list(expected.masks)
    assert made(tmp_path).factorise(names[:1]) == 1
    assert made(tmp_path).factorise(names[1:]) == len(names) - 1

    def again(*_):
        raise AssertionError("factorised once more")

    monkeypatch.setattr("lobs.schedule.paths.solve", again)
    found = made(tmp_path).prune(density=0.3)
    assert all(torch.equal(mask, found.masks[name]) for name, mask in expected.masks.items())
    with pytest.raises(ValueError, match="paths are kept in a folder"):
        made().factorise(names)
    with pytest.raises(ValueError, match="nowhere"):
        made(tmp_path).factorise(["nowhere"])


def test_a_network_that_has_fewer_weights_than_asked_for_is_noted(model):
    first = lobs.prune(model, method="magnitude", density=0.1, batches=[X]).model
    again = lobs.prune(first, method="magnitude", density=0.5, batches=[X])
    assert [note for note in again.notes if note.startswith("nothing was removed: only 0.")]
    assert not [
        note for note in lobs.prune(model, method="magnitude", density=0.5, batches=[X]).notes if "removed" in note
    ]
