"""What every path promises, for every solver on every kind of layer. A new solver adds one row."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lobs
from lobs.calibration.statistics import layer_error
from lobs.registry import METHODS
from lobs.solvers import make

# name, options, compensates: whether the kept weights change
SOLVERS = [
    ("lobs", {}, True),
    ("lobs", {"resolve": True}, True),
    ("lobs", {"alpha": 1e5}, True),
    ("magnitude", {}, False),
    ("random", {"seed": 3}, False),
    ("wanda", {}, False),
    ("sparsegpt", {"block_size": 4}, True),
    ("exact_obs", {}, True),
    ("exact_obs", {"group_size": 4}, True),
    ("exact_obs", {"refine": True}, True),
    ("obd", {}, False),
    ("apoz", {}, False),
    ("net_trim", {"iterations": 60}, True),
    ("net_trim", {"iterations": 60, "resolve": True}, True),
]
# name -> samples, inputs, outputs, bias, what is done to the samples; GROUPS says how many groups such a layer has
LAYERS = {
    "plain": (60, 9, 5, True, lambda x: x),
    "no bias": (60, 8, 4, False, lambda x: x),
    "dead inputs": (60, 9, 5, True, lambda x: x * (torch.arange(9) % 3 > 0)),
    "duplicated inputs": (60, 8, 5, True, lambda x: x[:, [0, 0, 1, 1, 2, 3, 4, 4]]),
    "fewer samples than inputs": (4, 10, 5, True, lambda x: x),
    "scales": (60, 8, 5, True, lambda x: x * torch.logspace(-8, 8, 8, dtype=x.dtype)),
    "one input": (20, 1, 3, True, lambda x: x),
    "all inputs dead": (20, 4, 3, True, lambda x: x * 0),
    "grouped": (60, 5, 6, True, lambda x: x),
    "grouped, dead inputs": (60, 5, 4, False, lambda x: x * (torch.arange(5) % 3 > 0)),
    "depthwise": (60, 4, 5, True, lambda x: x),
}
GROUPS = {"grouped": 3, "grouped, dead inputs": 2, "depthwise": 5}


def make_layer(kind, seed=0):
    count, features, out, bias, change = LAYERS[kind]
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, features + bias, generator=generator, dtype=torch.float64)
    blocks = []
    for _ in range(GROUPS.get(kind, 1)):
        mixing = torch.randn(features, features, generator=generator, dtype=torch.float64)
        blocks.append(change(torch.randn(count, features, generator=generator, dtype=torch.float64) @ mixing))
    moments = [lobs.LayerStatistics.from_samples(block, bias) for block in blocks]
    samples = torch.stack(blocks)
    inputs = torch.cat([samples, samples.new_ones(*samples.shape[:2], int(bias))], 2)
    single = len(blocks) == 1
    return (
        weight,
        samples,
        replace(
            moments[0],
            second_moment=moments[0].second_moment if single else torch.stack([m.second_moment for m in moments]),
            inputs_sample=inputs[0] if single else inputs,
            zero_fraction=torch.rand(out, generator=generator, dtype=torch.float64),
            loss_curvature=torch.rand(weight.shape, generator=generator, dtype=torch.float64),
        ),
    )


def test_the_table_has_a_row_for_every_method():
    assert {name for name, _, _ in SOLVERS} == set(METHODS)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("name", "options", "compensates"), SOLVERS, ids=lambda v: str(v))
def test_contract(name, options, compensates, kind):
    weight, samples, statistics = make_layer(kind)
    path = make(name, **options)(weight, statistics)
    features = statistics.features
    assert path.total == path.removable == weight.shape[0] * features

    curve = path.layer_error()
    assert curve.shape == (path.total + 1,)
    assert curve[0] == pytest.approx(0, abs=1e-12)
    assert (curve.diff() >= 0).all()

    for count in sorted({0, 1, path.total // 3, path.total // 2 + 1, path.total - 1, path.total}):
        pruned, mask = path.at(count)
        assert pruned.dtype == weight.dtype
        assert int((~mask[:, :features]).sum()) == count, "the mask removes another number of weights"
        assert (pruned[~mask] == 0).all()
        assert torch.isfinite(pruned).all()
        if statistics.bias:
            left = mask[:, :-1].any(1) if path.removes_units else torch.ones(len(mask), dtype=torch.bool)
            assert torch.equal(mask[:, -1], left), "only a unit that leaves whole loses its bias"
        if not compensates:
            assert torch.equal(pruned[mask], weight[mask])
        if count == 0:
            torch.testing.assert_close(pruned, weight)
        ones = torch.ones(*samples.shape[:2], int(statistics.bias), dtype=torch.float64)
        inputs = torch.cat([samples, ones], 2)
        changes = (pruned - weight).unflatten(0, (len(samples), -1))
        measured = float((inputs @ changes.mT).square().sum() / inputs.shape[1])
        assert path.measured_error(pruned) == pytest.approx(measured, rel=1e-6, abs=1e-12)
        assert path.layer_error(count) >= measured * (1 - 1e-6) - 1e-12
        assert path.layer_error(count) == pytest.approx(float(curve[count]))

    for wrong in (-1, path.total + 1):
        with pytest.raises(ValueError, match=f"between 0 and {path.total}, got {wrong}"):
            path.at(wrong)


@pytest.mark.parametrize("kind", ["plain", "dead inputs", "grouped"])
@pytest.mark.parametrize(("name", "options", "compensates"), SOLVERS, ids=lambda v: str(v))
def test_a_restored_path_is_the_same(name, options, compensates, kind):
    weight, _, statistics = make_layer(kind)
    solver = make(name, **options)
    path = solver(weight, statistics)
    assert (path.state is not None) == (name == "exact_obs")
    again = solver.restored(weight, statistics, path.state or {})
    assert torch.equal(again.layer_error(), path.layer_error())
    for count in (1, path.total // 2, path.total):
        assert all(torch.equal(one, other) for one, other in zip(again.at(count), path.at(count), strict=True))
        assert again.sensitivity_threshold(count) == path.sensitivity_threshold(count)


@pytest.mark.parametrize("kind", ["plain", "grouped"])
@pytest.mark.parametrize(("name", "options", "compensates"), SOLVERS, ids=lambda v: str(v))
def test_budgets(name, options, compensates, kind):
    weight, _, statistics = make_layer(kind)
    path = make(name, **options)(weight, statistics)
    for density in (0, 0.07, 0.5, 0.999, 1):
        kept = path.removable - path.count_for(density)
        assert kept <= density * path.removable < kept + 1
    for tolerance in (0.0, 0.1, 1.0, 3.0, 1e6):
        count = path.within(tolerance)
        assert path.layer_error(count) <= tolerance**2 * (1 + 1e-9) + 1e-30
        assert count == path.total or path.layer_error(count + 1) > tolerance**2
    with pytest.raises(ValueError, match=r"density is the share of weights kept.*got 7"):
        path.count_for(7)
    with pytest.raises(ValueError, match="tolerance must be >= 0, got -1"):
        path.within(-1)
    with pytest.raises(ValueError, match="unknown rule 'x'"):
        path.within(1, rule="x")


@settings(max_examples=30, deadline=None)
@given(
    row=st.sampled_from(
        [row for row in SOLVERS if not {"alpha", "refine"} & row[1].keys() and "pattern" in METHODS[row[0]].options]
    ),
    groups=st.integers(1, 4),
    pattern=st.sampled_from(["2:4", "1:4", "3:4", "1:2"]),
    share=st.floats(0, 1),
    seed=st.integers(0, 50),
)
def test_patterns(row, groups, pattern, share, seed):
    name, options, _ = row
    kept, group = map(int, pattern.split(":"))
    torch.manual_seed(seed)
    samples = torch.randn(40, groups * group, dtype=torch.float64)
    weight = torch.randn(3, groups * group + 1, dtype=torch.float64)
    statistics = lobs.LayerStatistics.from_samples(samples, bias=True)
    statistics = replace(statistics, loss_curvature=torch.rand_like(weight))
    path = make(name, **options, pattern=pattern)(weight, statistics)
    assert path.total == 3 * groups * (group - kept)
    count = round(share * path.total)
    _, mask = path.at(count)
    assert int((~mask).sum()) == count
    per_group = mask[:, :-1].reshape(3, groups, group).sum(2)
    assert (per_group >= kept).all()
    assert (path.at(path.total)[1][:, :-1].reshape(3, groups, group).sum(2) == kept).all()
    with pytest.raises(ValueError, match="is below the"):
        path.count_for(kept / group - 0.01)


def stays_removed(path, zeros, leaving):
    """Weights that are zero leave first, at no cost, and are zero at every count; ``leaving`` of them leave."""
    weight, features = path.weight, path.statistics.features
    assert path.free == leaving
    assert path.layer_error(leaving) == pytest.approx(0, abs=1e-20)
    for count in {0, 1, leaving - 1, leaving, leaving + 1, (leaving + path.total) // 2, path.total}:
        if not 0 <= count <= path.total:
            continue
        pruned, mask = path.at(count)
        removed = ~mask[:, :features]
        assert int(removed.sum()) == count
        assert torch.equal(path.kept(count), ~removed)
        assert not pruned[:, :features][zeros].any(), "a removed weight came back"
        assert not pruned[~mask].any()
        assert torch.isfinite(pruned).all()
        assert int((removed & zeros).sum()) == min(count, leaving), "another weight left before a zero"
        if count <= leaving:
            torch.testing.assert_close(pruned, weight, rtol=1e-12, atol=0)
        assert path.layer_error(count) >= path.measured_error(pruned) * (1 - 1e-6) - 1e-12


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("kind", [kind for kind in LAYERS if kind != "one input"])
@pytest.mark.parametrize(("name", "options", "compensates"), SOLVERS, ids=lambda v: str(v))
def test_what_was_removed_stays_removed(name, options, compensates, kind, share):
    weight, _, statistics = make_layer(kind)
    features = statistics.features
    zeros = torch.rand(weight.shape[0], features, generator=torch.Generator().manual_seed(1)) < share
    zeros[-1] = True
    weight[:, :features][zeros] = 0.0
    curvature = statistics.loss_curvature - 0.5  # where it is negative, a zero's saliency is not the smallest
    path = make(name, **options)(weight, replace(statistics, loss_curvature=curvature))
    if not path.removes_units:
        stays_removed(path, zeros, int(zeros.sum()))
        return
    for count in (0, features, path.total // 2, path.total):  # whole units leave, and every zero leaves the mask
        pruned, mask = path.at(count)
        assert torch.equal(mask[:, :features], path.kept(count) & ~zeros)
        assert torch.equal(pruned[:, :features] != 0, mask[:, :features])
        assert torch.equal(pruned[:, features:] != 0, path.kept(count).any(1, keepdim=True)[:, : statistics.bias])


@settings(max_examples=60, deadline=None)
@given(
    row=st.sampled_from(
        [(name, options) for name, options, _ in SOLVERS if "pattern" in METHODS[name].options]
        + [("exact_obs", {"precision": "float32"}), ("lobs", {"damping": 0.0})]
    ).filter(lambda row: "refine" not in row[1]),
    way=st.sampled_from([{"pattern": "2:4"}, {"pattern": "1:4"}, {"pattern": "3:4"}, {"block": 2}, {"block": 4}, {}]),
    blocks=st.integers(1, 3),
    convolution=st.sampled_from([1, 3]),
    dead=st.integers(0, 4),
    share=st.sampled_from([0.1, 0.5, 0.8, 1.0]),
    seed=st.integers(0, 50),
)
def test_what_was_removed_stays_removed_in_patterns_and_blocks(row, way, blocks, convolution, dead, share, seed):
    name, options = row
    if "block" in way and name != "exact_obs":
        return
    features, generator = 4 * blocks, torch.Generator().manual_seed(seed)
    samples = torch.randn(convolution, 60, features, generator=generator, dtype=torch.float64)
    for group in samples:
        group[:, torch.randperm(features, generator=generator)[:dead]] = 0
    samples = torch.cat([samples, samples.new_ones(convolution, 60, 1)], 2)
    moments = samples.mT @ samples / 60
    weight = torch.randn(convolution * 3, features + 1, generator=generator, dtype=torch.float64)
    zeros = torch.rand(len(weight), features, generator=generator) < share
    weight[:, :features][zeros] = 0.0
    curvature = torch.rand(weight.shape, generator=generator, dtype=torch.float64) - 0.5
    statistics = lobs.LayerStatistics(moments if convolution > 1 else moments[0], 60, 60, True, None, curvature)
    kept, width = map(int, way.get("pattern", "0:4").split(":"))
    leaving = int(zeros.reshape(-1, width).sum(1).clamp_max(width - kept).sum())
    path = make(name, **options, **way)(weight, statistics)
    stays_removed(path, zeros, leaving)
    if name == "exact_obs" and "group_size" not in options:  # the curve knows what the zeros cannot take over
        count = (leaving + path.total) // 2
        change = (path.at(count)[0] - weight).unflatten(0, (convolution, -1))
        damping = [make("lobs")(rows, statistics.group(i)).damping for i, rows in enumerate(weight.chunk(convolution))]
        damped = (torch.tensor(damping)[:, None, None] * change.square()).sum()
        measured = path.measured_error(path.at(count)[0]) + float(damped)
        assert path.layer_error(count) == pytest.approx(measured, rel=1e-3 if "precision" in options else 1e-6)


@pytest.mark.parametrize("pattern", ["4:2", "2-4", "2:2", "x"])
def test_a_wrong_pattern_is_named(pattern):
    weight, _, statistics = make_layer("no bias")
    with pytest.raises(ValueError, match="pattern must read N:M"):
        make("magnitude", pattern=pattern)(weight, statistics)
    with pytest.raises(ValueError, match="3 does not divide the layer's 8 inputs"):
        make("magnitude", pattern="1:3")(weight, statistics)


def test_wrong_arguments_are_named():
    weight, _, statistics = make_layer("plain")
    with pytest.raises(ValueError, match=r"shape \(5, 9\) does not fit statistics of 10 inputs \(bias included\)"):
        make("lobs")(weight[:, 1:], statistics)
    with pytest.raises(ValueError, match="holds NaN"):
        make("lobs")(weight * float("nan"), statistics)
    grouped_weight, _, grouped = make_layer("grouped")
    with pytest.raises(ValueError, match="a weight of 5 outputs does not fit statistics of 3 groups"):
        make("lobs")(grouped_weight[:5], grouped)
    with pytest.raises(ValueError, match="unknown method 'l-obs': accepted are lobs"):
        make("l-obs")
    with pytest.raises(ValueError, match="method magnitude: unknown option 'damping': accepted are pattern"):
        make("magnitude", damping=1)
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        make("sparsegpt", block_size=0)(weight, statistics)


def test_layer_error_is_the_mean_squared_output_change():
    weight, samples, statistics = make_layer("no bias")
    change = torch.randn_like(weight)
    expected = (samples[0] @ change.T).square().sum(1).mean()
    assert layer_error(change, statistics.second_moment) == pytest.approx(float(expected))
