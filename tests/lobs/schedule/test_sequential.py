"""Pruning in sequence against brute force: all inputs and outputs at once, least squares on the mask."""

import copy
import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import lobs
from helpers.sequence import NETWORKS, brute_force, full_mask, mlp, pairs, plain_solution
from lobs.schedule import sequential as in_sequence
from lobs.schedule.paths import PathMaker
from lobs.schedule.sequential import paired_statistics, reference_weight
from lobs.solvers.hessian import DAMPING


@pytest.fixture(params=NETWORKS)
def case(request):
    make, shape = NETWORKS[request.param]
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return make(), inputs


def test_every_layer_is_least_squares_on_its_mask(case):
    dense, inputs = case
    result = lobs.prune(dense, method="exact_obs", density=0.4, sequential=True, batches=inputs.split(17))
    order = list(lobs.collect_statistics(dense, [inputs]))
    assert [record.name for record in result.layers] == order
    so_far = copy.deepcopy(dense)
    for record in result.layers:
        module, pruned = dense.get_submodule(record.name), result.model.get_submodule(record.name)
        x, z = brute_force(dense, so_far, record.name, inputs)
        alive = x.square().mean(0)[: module.weight[0].numel()]
        assert record.damping == pytest.approx(DAMPING * float(alive[alive > 0].mean()))
        mask = full_mask(result.masks[record.name], module.bias is not None)
        assert record.kept == int(result.masks[record.name].sum()) == int(0.4 * module.weight.numel())
        expected = plain_solution(x, z, lobs.layers.matrix.weight_matrix(module), mask, record.damping)
        ours = lobs.layers.matrix.weight_matrix(pruned)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-8)
        error = float((x @ ours.T - z).square().sum() / len(x))
        assert record.error == pytest.approx(error, rel=1e-9)
        assert record.relative_error == pytest.approx(error / float(z.square().sum() / len(z)), rel=1e-9)
        so_far.get_submodule(record.name).load_state_dict(pruned.state_dict())
    bound = lobs.error_bound(dense, result.model, lobs.collect_statistics(dense, [inputs]))
    assert [record.bound_contribution for record in result.layers] == pytest.approx(list(bound.layers.values()))


def test_the_reference_weight_and_the_floor(case):
    dense, inputs = case
    pruned = copy.deepcopy(dense)
    names = list(lobs.collect_statistics(dense, [inputs]))
    with torch.no_grad():
        pruned.get_submodule(names[0]).weight.mul_(torch.rand(pruned.get_submodule(names[0]).weight.shape) > 0.4)
    name = names[-2]
    base = lobs.collect_statistics(dense, [inputs])[name]
    dense.eval(), pruned.eval()
    layer = pairs(dense, pruned, name, inputs.split(23), base, keep=9)
    x, z = brute_force(dense, pruned, name, inputs)
    weight = lobs.layers.matrix.weight_matrix(dense.get_submodule(name))
    torch.testing.assert_close(layer.second_moment, x.T @ x / len(x))
    torch.testing.assert_close(layer.target_moment, z.T @ x / len(x))
    assert layer.target_power == pytest.approx(float(z.square().sum() / len(z)))
    assert (layer.samples, layer.inputs) == (len(x), len(inputs))
    rows = (x[None] == layer.inputs_sample[:, None]).all(2).double().argmax(1)
    torch.testing.assert_close(layer.target_sample, z[rows])

    for other in (weight, torch.randn_like(weight), torch.zeros_like(weight)):
        assert layer.target_error(other) == pytest.approx(float((x @ other.T - z).square().sum() / len(x)))
    best = torch.linalg.lstsq(x, z, driver="gelsd").solution.T
    floor = float((x @ best.T - z).square().sum() / len(x))
    assert floor > 0
    assert layer.target_floor() == pytest.approx(floor)
    everything = torch.ones_like(weight, dtype=torch.bool)
    alive = layer.second_moment.diagonal()
    damping = DAMPING * float(alive[alive > 0].mean())
    expected = plain_solution(x, z, weight, everything, damping)
    torch.testing.assert_close(reference_weight(weight, layer), expected, rtol=1e-7, atol=1e-9)
    strong = reference_weight(weight, layer, alpha=1e-9)
    torch.testing.assert_close(strong, weight, rtol=1e-6, atol=1e-6)


def test_nothing_pruned_before_means_nothing_to_repair():
    """Float32: the first layer is pruned exactly as alone, and with density 1 the network stays as it is."""
    model, inputs = mlp(torch.float32), torch.randn(200, 8)
    statistics = lobs.collect_statistics(model, inputs.split(50))
    alone = lobs.prune(model, statistics, "exact_obs", density=0.5)
    sequence = lobs.prune(model, statistics, "exact_obs", density=0.5, sequential=True, batches=inputs.split(50))
    assert torch.equal(alone.model[0].weight, sequence.model[0].weight)
    assert sequence.layers[0].error == pytest.approx(alone.layers[0].error, rel=1e-6)
    assert not torch.equal(alone.model[2].weight, sequence.model[2].weight)
    same = lobs.prune(model, statistics, density=1.0, sequential=True, batches=inputs.split(50))
    for name, value in same.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    assert [record.error for record in same.layers] == pytest.approx([0, 0, 0], abs=1e-12)


def test_the_first_layer_needs_no_pass_of_its_own_and_no_second_path(monkeypatch):
    model, inputs = mlp(torch.float32), torch.randn(200, 8)
    seen, made = [], []
    monkeypatch.setattr(in_sequence, "paired_statistics", _noting(paired_statistics, seen))
    monkeypatch.setattr(PathMaker, "path", _noting(PathMaker.path, made))
    batches = inputs.split(50)
    lobs.prune(model, method="exact_obs", density=0.5, allocation="relative", sequential=True, batches=batches)
    assert (seen, made) == (["2", "4"], ["0", "2", "4"])
    seen.clear()
    lobs.prune(model, method="exact_obs", density=0.25, sequential=True, stages=2, batches=batches)
    assert seen == ["2", "4", "0", "2", "4"]  # in a second stage the first layer has been pruned


def _noting(function, names):
    """The same function; notes which of its arguments is a layer's name."""

    def noted(*args):
        names.append(next(value for value in args if isinstance(value, str)))
        return function(*args)

    return noted


def test_the_network_comes_closer_than_independently(case):
    dense, inputs = case
    distances = {}
    for sequential in (False, True):
        result = lobs.prune(
            dense,
            method="exact_obs",
            density=0.3,
            allocation="relative",
            sequential=sequential,
            batches=inputs.split(20),
        )
        with torch.no_grad():
            distances[sequential] = float((result.model.eval()(inputs) - dense.eval()(inputs)).square().sum())
    assert distances[True] < 0.8 * distances[False]


def test_batches_do_not_matter_and_the_caller_keeps_the_model(case):
    dense, inputs = case
    dense.train()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    one = lobs.prune(dense, method="lobs", density=0.5, sequential=True, batches=[inputs])
    parts = [(part, None) for part in inputs.split(7)]
    many = lobs.prune(dense, method="lobs", density=0.5, sequential=True, batches=parts)
    for name, value in dense.state_dict().items():
        assert torch.equal(value, before[name])
        torch.testing.assert_close(one.model.state_dict()[name], many.model.state_dict()[name])
    assert all(module.training for module in [*dense.modules(), *one.model.modules()])
    again = lobs.prune(dense, method="lobs", density=0.5, sequential=True, batches=[inputs], in_place=True)
    assert again.model is dense
    assert all(torch.equal(value, one.model.state_dict()[name]) for name, value in dense.state_dict().items())


def test_budgets():
    model, inputs = mlp(), torch.randn(300, 8, dtype=torch.float64)
    batches = inputs.split(100)
    statistics = lobs.collect_statistics(model, batches)
    shared = lobs.prune(model, statistics, "exact_obs", density=0.3, allocation="relative")
    sequence = lobs.prune(
        model, statistics, "exact_obs", density=0.3, allocation="relative", sequential=True, batches=batches
    )
    assert [r.kept for r in sequence.layers] == [r.kept for r in shared.layers]
    assert len({r.density for r in sequence.layers}) > 1
    paths = lobs.layer_paths(model, statistics, "exact_obs")
    reused = lobs.prune(
        model,
        statistics,
        "exact_obs",
        density=0.3,
        allocation="relative",
        sequential=True,
        batches=batches,
        paths=paths,
    )
    assert torch.equal(reused.model[4].weight, sequence.model[4].weight)

    chosen = {"0": 0.9, "2": 0.5, "4": 0.25}
    result = lobs.prune(model, statistics, densities=chosen, sequential=True, batches=batches)
    assert [r.kept for r in result.layers] == [72, 35, 7]
    with pytest.raises(ValueError, match=r"exactly the pruned layers 0, 2, 4; unknown: 5; missing: 4"):
        lobs.prune(model, statistics, densities={"0": 1, "2": 1, "5": 1}, sequential=True, batches=batches)
    some = lobs.prune(model, statistics, density=0.5, layers=["2"], sequential=True, batches=batches)
    assert list(some.masks) == ["2"]

    result = lobs.prune(model, statistics, "exact_obs", tolerance=0.2, sequential=True, batches=batches)
    assert result.layers[0].error <= 0.04 * (1 + 1e-9)
    assert all(record.removed for record in result.layers)
    # the floor that the layers before leave is not the layer's own doing
    so_far = copy.deepcopy(model)
    for record in result.layers:
        x, z = brute_force(model, so_far, record.name, inputs)
        best = torch.linalg.lstsq(x, z).solution
        floor = float((x @ best - z).square().sum() / len(x))
        assert record.error - floor <= 0.04 * (1 + 1e-2)
        so_far.get_submodule(record.name).load_state_dict(result.model.get_submodule(record.name).state_dict())


@pytest.mark.parametrize("method", [name for name in lobs.methods() if name != "apoz"])
def test_every_method_goes_in_sequence(method):
    model, inputs = mlp(), torch.randn(60, 8, dtype=torch.float64)
    batches = [(part, torch.randint(4, (len(part),))) for part in inputs.split(20)]
    statistics = lobs.collect_statistics(model, batches, loss="cross_entropy", keep_samples=40)
    result = lobs.prune(model, statistics, method, density=0.5, sequential=True, batches=batches)
    assert [record.kept for record in result.layers] == [40, 35, 14]
    assert result.model(inputs).isfinite().all()


def test_samples_for_net_trim_are_kept_on_request():
    model, inputs = mlp(), torch.randn(60, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"layer '0': net_trim needs raw inputs.*keep_samples=2000"):
        lobs.prune(model, method="net_trim", density=0.5, sequential=True, batches=[inputs])
    first = lobs.prune(model, method="net_trim", density=0.5, sequential=True, batches=[inputs], keep_samples=30)
    second = lobs.prune(model, method="net_trim", density=0.5, sequential=True, batches=[inputs], keep_samples=60)
    assert not torch.equal(first.model[0].weight, second.model[0].weight)


def test_errors_name_what_is_wrong():
    model, inputs = mlp(), torch.randn(20, 8, dtype=torch.float64)
    statistics = lobs.collect_statistics(model, [inputs])
    with pytest.raises(ValueError, match=r"give statistics .* or batches .*; got neither"):
        lobs.prune(model, density=0.5)
    with pytest.raises(ValueError, match=r"sequential=True needs batches=.*got none"):
        lobs.prune(model, statistics, density=0.5, sequential=True)
    with pytest.raises(ValueError, match=r"sequential=True reads batches several times.*generator given is used up"):
        lobs.prune(model, density=0.5, sequential=True, batches=(part for part in [inputs]))
    with pytest.raises(ValueError, match="batches is empty"):
        lobs.prune(model, statistics, density=0.5, sequential=True, batches=[])
    with pytest.raises(ValueError, match=r"ApoZ removes whole units.*cannot be used with sequential=True"):
        lobs.prune(model, statistics, "apoz", density=0.5, sequential=True, batches=[inputs])
    with pytest.raises(ValueError, match=r"layer '0': obd needs the loss's curvature"):
        lobs.prune(model, method="obd", density=0.5, sequential=True, batches=[inputs])
    with pytest.raises(ValueError, match=r"density is the share .* got 2"):
        lobs.prune(model, density=2, sequential=True, batches=[inputs])
    solver = lobs.solvers.make("exact_obs", damping=0.0)
    with pytest.raises(lobs.SingularStatisticsError, match="layer '0'"):
        lobs.prune(model, method=solver, density=0.5, sequential=True, batches=[inputs[:4]])

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.spare(self.first(x)) if len(x) > 3 else self.used(self.first(x))

    half, both = Half(), [torch.randn(5, 2), torch.randn(3, 2)]
    with pytest.raises(ValueError, match="layer 'used' is never called with these batches"):
        lobs.prune(half, density=0.5, sequential=True, batches=both)
    with pytest.raises(ValueError, match="ended where the first one called layer 'spare': networks that call"):
        lobs.prune(half, density=0.5, sequential=True, batches=both, layers=["first", "spare"])


@pytest.mark.parametrize("budget", [{"density": 0.4}, {"density": 0.4, "allocation": "measured_joint"}])
def test_an_interrupted_call_goes_on_at_the_layer_where_it_stopped(case, tmp_path, budget):
    model, inputs = case
    batches = inputs.split(20)
    statistics = lobs.collect_statistics(model, batches)
    options = {"method": "exact_obs", "sequential": True, "batches": batches, **budget}
    expected = lobs.prune(model, statistics, **options)

    def interrupted(names):
        for position, name in enumerate(names):
            if list(names) == list(statistics) and position == 2:
                raise KeyboardInterrupt
            yield name

    paths = lobs.layer_paths(model, statistics, "exact_obs")
    with pytest.raises(KeyboardInterrupt):
        lobs.prune(model, statistics, **options, paths=paths, progress=interrupted, folder=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert (tmp_path / "counts.json").exists() == ("allocation" in budget)
    for remaining in (list(statistics)[2:], None):
        seen = []
        resumed = lobs.prune(
            model,
            statistics,
            **options,
            progress=lambda names, seen=seen: seen.append(list(names)) or seen[-1],
            folder=tmp_path,
        )
        assert seen == ([] if remaining is None else [remaining])
        for name, value in expected.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], value)
        assert [replace(r, seconds=0) for r in resumed.layers] == [replace(r, seconds=0) for r in expected.layers]
        assert all(torch.equal(resumed.masks[name], mask) for name, mask in expected.masks.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_that_were_zero_stay_zero_in_any_precision(dtype):
    model, inputs = mlp(dtype), torch.randn(100, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            layer.weight[:, ::3] = 0
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = lobs.prune(model, method="exact_obs", density=0.6, sequential=True, batches=[inputs])
    for name, mask in result.masks.items():
        assert not mask[:, ::3].any()
        assert not result.model.get_submodule(name).weight[~mask].any()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_reference_weight_is_a_new_one():
    weight = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight[:, 1] = 0
    samples = torch.randn(40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    targets = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    statistics = lobs.LayerStatistics.from_samples(samples)
    before = weight.clone()
    found = reference_weight(weight, replace(statistics, target_moment=targets.T @ samples / 40), 1e-6)
    assert torch.equal(weight, before)
    kept = [0, 2, 3, 4]
    expected = torch.linalg.lstsq(samples[:, kept], targets).solution.T
    torch.testing.assert_close(found[:, kept], expected, rtol=1e-4, atol=1e-4)
    assert not found[:, 1].any()


@pytest.mark.parametrize("memory", [80_000, 100_000])
@pytest.mark.parametrize("kind", [list, torch.utils.data.DataLoader])
def test_inputs_that_do_not_fit_take_the_slower_walk_and_the_result_says_so(memory, kind):
    model, inputs = mlp(), torch.randn(200, 8, dtype=torch.float64)
    batches = list(inputs.split(20)) if kind is list else kind(inputs, batch_size=20)
    wanted = lobs.prune(model, method="exact_obs", density=0.5, sequential=True, batches=batches)
    found = lobs.prune(model, method="exact_obs", density=0.5, sequential=True, batches=batches, memory=memory)
    # 200 inputs of 8, and of 10 and what skips them, in float64, in two networks.
    slower = memory < 2 * 200 * (8 + 2 * 10) * 8
    assert [note for note in found.notes if "do not fit into memory" in note] == found.notes
    assert len(found.notes) == slower
    assert not wanted.notes
    assert all(torch.equal(found.masks[name], mask) for name, mask in wanted.masks.items())


def test_a_layer_that_is_refused_in_the_middle_is_named():
    """Without damping: two units of the first layer are one, so that the second layer's inputs are singular."""
    model, inputs = mlp(), torch.randn(200, 8, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[3] = model[0].weight[5]
        model[0].bias[3] = model[0].bias[5]
    solver = lobs.solvers.make("exact_obs", damping=0.0)
    with pytest.raises(lobs.SingularStatisticsError, match="layer '2'"):
        lobs.prune(model, method=solver, density=1.0, sequential=True, batches=[inputs])


def test_half_precision_goes_in_sequence_in_float32():
    model, inputs = mlp(torch.float32), torch.randn(200, 8)
    inputs = inputs.bfloat16().float()
    rounded = copy.deepcopy(model).bfloat16()
    options = {"method": "exact_obs", "density": 0.5, "sequential": True}
    expected = lobs.prune(copy.deepcopy(rounded).float(), batches=[inputs], **options)
    found = lobs.prune(rounded, batches=[inputs.bfloat16()], **options)
    for name, mask in expected.masks.items():
        weight = found.model.get_submodule(name).weight
        assert weight.dtype == torch.bfloat16
        assert (found.masks[name] == mask).float().mean() > 0.9
        assert not weight[~found.masks[name]].any()
    assert found.layers[0].error == pytest.approx(expected.layers[0].error, rel=0.05)


def test_double_precision_stays_double():
    model, inputs = mlp(), torch.randn(200, 8, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter /= 3  # no float32 numbers any more
    same = lobs.prune(model, method="exact_obs", density=1.0, sequential=True, batches=[inputs])
    for name, value in same.model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-12, atol=1e-13)


def test_a_reference_weight_needs_targets():
    statistics = lobs.LayerStatistics.from_samples(torch.randn(9, 3))
    with pytest.raises(ValueError, match="these statistics hold no targets: sequential pruning collects them"):
        reference_weight(torch.randn(2, 3), statistics)


def test_every_layers_time_is_its_own(monkeypatch):
    """By a clock that goes on by one at every look."""
    model, inputs = mlp(), torch.randn(60, 8, dtype=torch.float64)
    monkeypatch.setattr(in_sequence, "time", SimpleNamespace(perf_counter=itertools.count(10).__next__))
    result = lobs.prune(model, method="magnitude", density=0.5, sequential=True, batches=[inputs])
    assert [record.seconds for record in result.layers] == [1, 1, 1]
