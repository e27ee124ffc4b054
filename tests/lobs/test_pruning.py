"""Pruning a whole network, through the public API."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import lobs
from lobs.allocation.output_distance import OutputDistance
from lobs.export.sparse_layout import sparse_bytes
from lobs.registry import ALLOCATIONS


class Mixed(nn.Module):
    """Somebody else's network: a convolution, a layer called by name, a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.body = nn.Sequential(nn.Linear(4 * 16, 12), nn.ReLU(), nn.Linear(12, 8, bias=False))
        self.head = nn.Linear(8, 3)
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.stem(x)), 2)
        return self.head(torch.relu(self.body(x.flatten(1))))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Mixed()


@pytest.fixture
def images():
    return torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def statistics(network, images):
    return lobs.collect_statistics(network, images.split(64), keep_samples=60)


# OBD's curvature needs modules all through, ApoZ removes whole units: both are tested on their own.
@pytest.mark.parametrize("method", [name for name in lobs.methods() if name not in ("obd", "apoz")])
def test_every_method_prunes_a_foreign_network(network, images, statistics, method):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = lobs.prune(network, statistics, method, density=0.4)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), "the caller's model was changed"
    assert list(result.masks) == ["stem", "body.0", "body.2", "head"]
    kept = removable = 0
    for record in result.layers:
        weight = result.model.get_submodule(record.name).weight
        mask = result.masks[record.name]
        assert mask.shape == weight.shape == torch.Size(record.shape)
        assert (weight[~mask] == 0).all()
        assert int(mask.sum()) == record.kept == int(0.4 * weight.numel())
        assert record.density == record.kept / weight.numel()
        kept, removable = kept + record.kept, removable + weight.numel()
    assert result.density == kept / removable <= 0.4
    assert result.model(images).isfinite().all()
    assert torch.equal(result.model.spare.weight, network.spare.weight)


def test_errors_are_what_the_network_shows(network, images, statistics):
    result = lobs.prune(network, statistics, "lobs", density=0.3)
    x = images
    for record, cut in zip(result.layers, range(4), strict=True):
        dense, pruned = network.get_submodule(record.name), result.model.get_submodule(record.name)
        inputs = [x, torch.max_pool2d(torch.relu(network.stem(x)), 2).flatten(1)]
        inputs += [torch.relu(network.body[0](inputs[1]))]
        inputs += [torch.relu(network.body[2](inputs[2]))]
        output = dense(inputs[cut]).detach()
        change = pruned(inputs[cut]).detach() - output
        samples = change.numel() / change.shape[1]
        assert record.error == pytest.approx(float(change.square().sum() / samples), rel=1e-4)
        assert record.relative_error == pytest.approx(record.error / float(output.square().sum() / samples), rel=1e-4)


def test_the_bound_holds_and_adds_up(network, images, statistics):
    for method in ("lobs", "magnitude"):
        result = lobs.prune(network, statistics, method, density=0.3)
        bound = lobs.error_bound(network, result.model, statistics)
        with torch.no_grad():
            measured = float((result.model(images) - network(images)).square().sum(1).mean().sqrt())
        assert measured <= bound.total
        assert bound.total == pytest.approx(sum(bound.layers.values()))
        assert [record.bound_contribution for record in result.layers] == pytest.approx(list(bound.layers.values()))


def test_budgets(network, statistics):
    paths = lobs.layer_paths(network, statistics, "lobs")
    by_density = lobs.prune(network, statistics, "lobs", paths=paths, density=0.5)
    again = lobs.prune(network, statistics, "lobs", density=0.5)
    assert all(torch.equal(by_density.masks[name], again.masks[name]) for name in paths)

    by_tolerance = lobs.prune(network, statistics, "lobs", paths=paths, tolerance=0.5)
    assert all(record.error <= 0.25 * (1 + 1e-6) for record in by_tolerance.layers)
    assert any(record.removed for record in by_tolerance.layers)
    by_score = lobs.prune(network, statistics, "lobs", paths=paths, tolerance=0.01, tolerance_rule="sensitivity")
    assert all(record.sensitivity_threshold <= 1e-4 for record in by_score.layers)

    densities = {"stem": 1.0, "body.0": 0.1, "body.2": 0.5, "head": 0.9}
    chosen = lobs.prune(network, statistics, "lobs", densities=densities)
    for record in chosen.layers:
        assert record.kept == int(densities[record.name] * (record.kept + record.removed) + 1e-9)
    some = lobs.prune(network, statistics, "lobs", density=0.2, layers=["body.*"])
    assert list(some.masks) == ["body.0", "body.2"]
    assert torch.equal(some.model.stem.weight, network.stem.weight)


def test_apoz_removes_whole_units_and_the_weights_that_read_them(network, images, statistics):
    result = lobs.prune(network, statistics, "apoz", density=0.3)
    assert 0.15 < result.density <= 0.3
    order = ["stem", "body.0", "body.2", "head"]
    alive = {}
    for name in order:
        module, mask = result.model.get_submodule(name), result.masks[name].flatten(1)
        alive[name] = mask.any(1)
        dead = ~alive[name]
        assert (module.weight.flatten(1)[dead] == 0).all()
        assert module.bias is None or (module.bias[dead] == 0).all(), "a removed unit still answers with its bias"
        zeros = statistics[name].zero_fraction
        if dead.any():
            assert zeros[dead].min() >= zeros[alive[name]].max(), "another unit is zero more often"
    assert alive["head"].all(), "the network's outputs cannot leave"
    # channel i of the stem is map i of the flattened input, 16 positions each
    columns = alive["stem"].repeat_interleave(16)
    assert torch.equal(result.masks["body.0"][alive["body.0"]].all(0), columns)
    assert torch.equal(result.masks["body.2"].any(0), alive["body.0"])
    kept = sum(int(mask.sum()) for mask in result.masks.values())
    assert result.density == kept / sum(mask.numel() for mask in result.masks.values())
    with pytest.raises(ValueError, match=r"density 0.001 is below 0\.\d+, which one unit in every layer takes"):
        lobs.prune(network, statistics, "apoz", density=0.001)
    assert lobs.prune(network, statistics, "apoz", density=1.0).density == 1.0


def test_in_place_and_solver_objects(network, statistics):
    solver = lobs.solvers.make("lobs", resolve=True)
    expected = lobs.prune(network, statistics, solver, density=0.3)
    result = lobs.prune(network, statistics, solver, density=0.3, in_place=True)
    assert result.model is network
    assert [r.error for r in result.layers] == [r.error for r in expected.layers]
    assert [r.bound_contribution for r in result.layers] == [r.bound_contribution for r in expected.layers]
    assert torch.equal(network.head.weight, expected.model.head.weight)


def test_half_precision_networks_keep_their_type(network, images):
    network.bfloat16()
    statistics = lobs.collect_statistics(network, [images.bfloat16()])
    result = lobs.prune(network, statistics, "lobs", density=0.5)
    assert result.model.head.weight.dtype == torch.bfloat16
    assert result.model(images.bfloat16()).isfinite().all()


def test_errors_name_what_is_wrong(network, statistics):
    for wrong in (7, -0.1):
        with pytest.raises(ValueError, match=rf"density is the share .* got {wrong}"):
            lobs.prune(network, statistics, density=wrong)
    with pytest.raises(ValueError, match="tolerance must be >= 0, got -2"):
        lobs.prune(network, statistics, tolerance=-2)
    with pytest.raises(ValueError, match=r"exactly one of .* got none"):
        lobs.prune(network, statistics)
    with pytest.raises(ValueError, match=r"exactly one of .* got density=0.1 and tolerance=0.2"):
        lobs.prune(network, statistics, density=0.1, tolerance=0.2)
    with pytest.raises(ValueError, match="unknown method 'obs': accepted are lobs"):
        lobs.prune(network, statistics, "obs", density=0.1)
    with pytest.raises(ValueError, match="unknown allocation 'x': accepted are uniform, global"):
        lobs.prune(network, statistics, density=0.1, allocation="x")
    with pytest.raises(ValueError, match="unknown: tail; missing: head"):
        lobs.prune(network, statistics, densities={"stem": 1, "body.0": 1, "body.2": 1, "tail": 1})
    with pytest.raises(ValueError, match="no statistics of layer 'spare'"):
        lobs.prune(network, statistics, density=0.1, layers=["spare"])
    with pytest.raises(ValueError, match="statistics hold layer 'stem'; the network has 0"):
        lobs.prune(nn.Sequential(nn.Linear(2, 2)), statistics, density=0.1)
    with pytest.raises(TypeError, match="got 'network'"):
        lobs.prune("network", statistics, density=0.1)
    with pytest.raises(TypeError, match="collect_statistics, got list"):
        lobs.prune(network, [], density=0.1)
    other = nn.Sequential(nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"layer '0': .* does not fit statistics of 5 inputs"):
        lobs.prune(nn.Sequential(nn.Linear(4, 2)), lobs.collect_statistics(other, [torch.randn(3, 5)]), density=0.1)


def test_importing_the_library_imports_torch_only_when_used():
    """Floors: none of the experiment's packages, and torch itself only on first use."""
    code = (
        "import sys, lobs; assert 'torch' not in sys.modules; lobs.prune; assert 'torch' in sys.modules;"
        "heavy = {'pytorch_lightning', 'lightning', 'hydra', 'omegaconf', 'mlflow', 'dvc', 'numba', 'matplotlib'};"
        "found = heavy & set(sys.modules); assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_attributes_are_named():
    with pytest.raises(AttributeError, match="no attribute 'prunes'; it has collect_statistics"):
        lobs.prunes  # noqa: B018
    assert "prune" in dir(lobs)


def test_a_budget_of_flops_counts_a_convolutions_positions(network, statistics):
    result = lobs.prune(network, statistics, "exact_obs", flops=0.3, allocation="relative")
    positions = {"stem": 64, "body.0": 1, "body.2": 1, "head": 1}
    spent = sum(record.kept * positions[record.name] for record in result.layers)
    whole = sum((record.kept + record.removed) * positions[record.name] for record in result.layers)
    assert 0.3 * whole - 64 < spent <= 0.3 * whole


def test_a_budget_of_bytes_is_that_of_a_sparse_file(network, statistics, tmp_path):
    size = 3000
    with pytest.raises(ValueError, match=r"the file's other tensors and its header alone keep \d+ bytes, .* size=500"):
        lobs.prune(network, statistics, "magnitude", size=500, allocation="relative")
    result = lobs.prune(network, statistics, "magnitude", size=size, allocation="relative")
    file = tmp_path / "net.safetensors"
    assert lobs.save_sparse(result.model, file) <= file.stat().st_size <= size
    assert file.stat().st_size > size - 500
    spent = 4 * network.spare.weight.numel() + 4 * len(network.spare.bias)
    for record in result.layers:
        weights = record.kept + record.removed
        spent += int(sparse_bytes(torch.tensor(record.kept), weights))
        module = network.get_submodule(record.name)
        spent += 4 * (0 if module.bias is None else len(module.bias))
    assert spent == lobs.save_sparse(result.model, file)


def test_limits_hold_and_excluded_layers_stay_dense(network, statistics):
    options = {"density": 0.2, "allocation": "relative"}
    limited = lobs.prune(network, statistics, "exact_obs", limits={"head": (0.5, 1.0), "body.*": (0, 0.15)}, **options)
    densities = {record.name: record.density for record in limited.layers}
    assert densities["head"] >= 0.5
    assert densities["body.0"] <= 0.15 >= densities["body.2"]
    assert limited.density == pytest.approx(0.2, abs=2e-3)
    assert not limited.notes
    low = lobs.prune(network, statistics, "magnitude", density=0.9, limits={"*": (0, 0.5)})
    assert low.density == pytest.approx(0.5, abs=2e-3)
    assert low.notes == [f"the limits allow to keep {low.density:.4g} of the weights, less than the budget of 0.9"]
    again = lobs.prune(low.model, statistics, "magnitude", density=0.7, limits={"*": (0, 1)}).notes
    assert any("nothing was removed" in note for note in again) and not any("limits" in note for note in again)
    excluded = lobs.prune(network, statistics, "exact_obs", exclude=["head", "stem"], **options)
    assert [record.name for record in excluded.layers] == ["body.0", "body.2"]
    assert excluded.density == pytest.approx(0.2, abs=2e-3)
    assert torch.equal(excluded.model.head.weight, network.head.weight)


def test_global_measures_the_network_where_it_is_given_images(network, images, statistics):
    options = {"method": "exact_obs", "density": 0.3}
    batches = images.split(64)
    without = lobs.prune(network, statistics, allocation="global", **options)
    relative = lobs.prune(network, statistics, allocation="relative", **options)
    measured = lobs.prune(network, statistics, allocation="global", batches=batches, **options)
    assert [r.kept for r in without.layers] == [r.kept for r in relative.layers]
    assert without.compared_allocations == {}
    distance = OutputDistance(network, list(batches))
    names = ["fisher", "fisher_summed", "fisher_units", "uniform"]
    for name in names:
        alone = lobs.prune(network, statistics, allocation=name, batches=batches, **options)
        assert measured.compared_allocations[name] == pytest.approx(distance.of_network(alone.model))
        if name == measured.shared_by:
            assert all(torch.equal(measured.masks[layer], mask) for layer, mask in alone.masks.items())
    compared = measured.compared_allocations
    assert list(compared) == names
    assert measured.shared_by == min(compared, key=compared.get)
    assert f"budget shared out by {measured.shared_by}, outputs compared by kl, as class logits (fisher" in repr(
        measured
    )


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_losses_computed_once_serve_many_budgets(network, images, statistics, allocation):
    batches = [(part, None) for part in images.split(50)]  # gradients are taken of half of them
    plan = lobs.plan(network, statistics, "exact_obs", batches=batches)
    if allocation == "uniform":
        with pytest.raises(ValueError, match="unknown allocation with loss curves 'uniform'"):
            plan.losses(allocation)
    for density in (0.5, 0.2):
        options = {"density": density, "allocation": allocation, "batches": batches}
        expected = lobs.prune(network, statistics, "exact_obs", **options)
        results = [plan.prune(density=density, allocation=allocation)]
        # The others look at several orders of the weights.
        if allocation not in ("uniform", "global", "fisher_units"):
            options |= {"losses": plan.losses(allocation), "paths": plan.paths}
            results.append(lobs.prune(network, statistics, "exact_obs", **options))
        for found in results:
            assert all(torch.equal(expected.masks[name], mask) for name, mask in found.masks.items())
            assert found.shared_by == expected.shared_by
            assert found.compared_allocations == expected.compared_allocations
    units = lobs.plan(network, statistics, "apoz", batches=batches).prune(density=0.5, allocation=allocation)
    apoz = lobs.prune(network, statistics, "apoz", density=0.5)
    assert all(torch.equal(apoz.masks[name], mask) for name, mask in units.masks.items())


@pytest.mark.parametrize("allocation", ["global", "fisher_units"])
def test_losses_of_one_order_are_refused_where_others_are_looked_at(network, images, statistics, allocation):
    losses = lobs.plan(network, statistics, "magnitude", batches=[images]).losses("fisher")
    options = {"density": 0.5, "allocation": allocation, "batches": [images]}
    with pytest.raises(ValueError, match=f"losses= belong to one order of the weights, and '{allocation}' looks"):
        lobs.prune(network, statistics, "magnitude", losses=losses, **options)


def test_a_folder_keeps_orders_and_shares(network, images, statistics, tmp_path, monkeypatch):
    options = {"density": 0.3, "allocation": "measured_joint", "batches": images.split(64), "folder": str(tmp_path)}
    first = lobs.prune(network, statistics, "exact_obs", **options)
    monkeypatch.setattr("lobs.allocation.sharing.allocate", None)
    monkeypatch.setattr("lobs.solvers.exact_obs.ExactOBS.path", None)
    again = lobs.prune(network, statistics, "exact_obs", **options)
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    assert [record.error for record in again.layers] == [record.error for record in first.layers]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.3, "flops": 0.3}, r"exactly one of .* got density=0.3 and flops=0.3"),
        ({"tolerance": 0.3, "limits": {"head": (0, 1)}}, r"limits=.* go with density, flops or size; got tolerance"),
        ({"density": 0.1, "limits": {"heads": (0, 1)}}, r"no layer fits 'heads'"),
        ({"density": 0.01, "limits": {"*": (0.5, 1)}}, r"limits alone keep 0.5"),
        ({"density": 0.3, "allocation": "fisher"}, r"'fisher' needs calibration images: give batches="),
        ({"density": 0.3, "exclude": ["nothing"]}, r"no layer fits 'nothing'"),
        ({"density": 0.3, "method": "apoz", "limits": {"head": (0, 1)}}, r"removes whole units takes a density alone"),
    ],
)
def test_budgets_and_limits_that_make_no_sense(network, statistics, options, message):
    if options.get("method") == "apoz":
        network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        statistics = lobs.collect_statistics(network, [torch.randn(9, 4)])
        options = {**options, "limits": {"0": (0, 1)}}
    with pytest.raises(ValueError, match=message):
        lobs.prune(network, statistics, **options)


def test_excluding_by_a_string_is_refused(network, statistics):
    with pytest.raises(TypeError, match="exclude must be a list of names, got the single string 'head'"):
        lobs.prune(network, statistics, density=0.5, exclude="head")
