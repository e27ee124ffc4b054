"""The layers' paths: under a ceiling on the memory, from files, and for layers that do not fit."""

import pytest
import torch
from torch import nn

import lobs
from lobs.base.execution import Execution
from lobs.layers.coverage import Calls
from lobs.layers.matrix import weight_matrix
from lobs.registry import METHODS
from lobs.schedule.paths import PathMaker, check_network, for_layer, layers_with_statistics, selected
from lobs.solvers import make
from lobs.solvers.ranking import Pattern
from lobs.solvers.recomputed import RecomputedPath, path_bytes


@pytest.mark.parametrize("method", ["lobs", "exact_obs", "sparsegpt", "apoz"])
@pytest.mark.parametrize("allocation", ["uniform", "relative", "fisher", "measured"])
def test_pruning_under_a_tiny_ceiling_is_the_same(method, allocation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 3))
    batches = torch.randn(40, 2, 6, 6).split(8)
    statistics = lobs.collect_statistics(model, batches)
    options = {"method": method, "density": 0.4, "allocation": allocation, "batches": batches}
    expected = lobs.prune(model, statistics, **options)
    found = lobs.prune(model, lobs.collect_statistics(model, batches, memory=1), memory=1, **options)
    for name, value in expected.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value)
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert (one.error, one.sensitivity_threshold, one.kept) == (
            other.error,
            other.sensitivity_threshold,
            other.kept,
        )


def test_only_paths_that_fit_are_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 50), nn.Linear(50, 4))
    statistics = lobs.collect_statistics(model, [torch.randn(90, 6)])
    paths = PathMaker(model, statistics, make("exact_obs"), Execution(20_000)).paths(list(statistics))
    assert [isinstance(path, RecomputedPath) for path in paths.values()] == [False, False, True]
    path, whole = paths["2"], make("exact_obs")(lobs.layers.matrix.weight_matrix(model[2]), statistics["2"])
    assert path.statistics.second_moment.is_meta
    assert torch.equal(path.layer_error(), whole.layer_error())
    assert all(torch.equal(one, other) for one, other in zip(path.at(77), whole.at(77), strict=True))
    assert torch.equal(path.kept(77), whole.kept(77))
    with pytest.raises(ValueError, match="between 0 and 200, got 201"):
        path.at(201)


def linear():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return model, lobs.collect_statistics(model, [torch.randn(40, 6)])


def test_a_path_is_the_solvers_for_the_layers_own_matrix():
    model, statistics = linear()
    maker = PathMaker(model, statistics, make("exact_obs"))
    for name in ("0", "2"):
        expected = make("exact_obs")(weight_matrix(model.get_submodule(name)), statistics[name])
        assert torch.equal(maker.path(name).at(7)[0], expected.at(7)[0])
    assert list(maker.paths(["2", "0"])) == ["2", "0"]


def test_half_precision_is_pruned_in_float32():
    model, statistics = linear()
    path = PathMaker(model.bfloat16(), statistics, make("lobs")).path("0")
    assert path.weight.dtype == torch.float32
    assert torch.equal(path.weight, weight_matrix(model[0]).float())


def test_what_took_long_is_read_again_and_what_did_not_is_not_written(tmp_path, monkeypatch):
    model, statistics = linear()
    execution = Execution(folder=tmp_path)
    first = PathMaker(model, statistics, make("exact_obs"), execution).paths(["0", "2"])
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr("lobs.solvers.exact_obs.ExactOBS.path", None)
    for name, path in PathMaker(model, statistics, make("exact_obs"), execution).paths(["0", "2"]).items():
        assert torch.equal(path.layer_error(), first[name].layer_error())
        assert all(torch.equal(one, other) for one, other in zip(path.at(7), first[name].at(7), strict=True))
    PathMaker(model, statistics, make("magnitude"), Execution(folder=tmp_path / "other")).paths(["0"])
    assert not (tmp_path / "other").exists()


def test_a_layer_that_is_refused_is_named_and_the_errors_class_stays():
    model, statistics = linear()
    few = lobs.collect_statistics(model, [torch.randn(3, 6)])
    with pytest.raises(lobs.SingularStatisticsError, match=r"layer '0': .* singular"):
        PathMaker(model, few, make("exact_obs", damping=0.0)).path("0")
    with pytest.raises(ValueError, match=r"layer '2': .* does not fit statistics of 6 inputs"):
        PathMaker(model, {"2": statistics["0"]}, make("lobs")).path("2")


def test_layers_and_statistics_have_to_match():
    model, statistics = linear()
    assert list(layers_with_statistics(model, statistics, None)) == ["0", "2"]
    assert list(layers_with_statistics(model, statistics, ["2"])) == ["2"]
    some = lobs.collect_statistics(model, [torch.randn(9, 6)], layers=["2"])
    assert list(layers_with_statistics(model, some, None)) == ["2"]
    with pytest.raises(ValueError, match="no statistics of layer '0'; there are those of 2"):
        layers_with_statistics(model, some, ["*"])
    with pytest.raises(ValueError, match="the statistics hold layer '2'; the network has 0"):
        layers_with_statistics(model[:1], statistics, None)


def convolutions():
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.Flatten(), nn.Linear(32, 4)]
    return nn.Sequential(*layers).eval(), list(torch.randn(64, 8, 6, 6).split(32))


def channels(mask, size=4):
    """Kept of every group of input channels, at each place of the kernel: ``[out, groups, ...]``."""
    return mask.unflatten(1, (-1, size)).sum(2)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "pattern" in method.options])
@pytest.mark.parametrize("sequential", [False, True])
def test_patterns_run_along_channels_and_input_features(name, sequential):
    model, batches = convolutions()
    if name == "obd":  # its second derivatives are of a Sequential without groups
        model[2] = nn.Conv2d(8, 8, 3)
    loss = {"loss": "cross_entropy"} if name == "obd" else {}
    given = [(x, torch.arange(len(x)) % 4) for x in batches]
    statistics = lobs.collect_statistics(model, given, **loss)
    options = {"density": 0.5, "sequential": sequential, "batches": batches}
    result = lobs.prune(model, statistics, method=make(name, pattern="2:4"), **options)
    for layer, mask in result.masks.items():
        assert (channels(mask) == 2).all(), layer
    assert not (result.model[0].weight[~result.masks["0"]] != 0).any()


@pytest.mark.parametrize("name", ["exact_obs", "magnitude", "lobs", "wanda"])
@pytest.mark.parametrize(("zeros", "dead"), [(False, True), (True, False), (True, True)])
def test_a_pattern_with_a_step_is_that_of_the_columns_in_the_order_of_the_places(name, zeros, dead):
    torch.manual_seed(0)
    samples = torch.randn(200, 24, dtype=torch.float64)
    if dead:
        samples[:, ::5] = 0
    weight = torch.randn(5, 25, dtype=torch.float64)
    if zeros:
        weight[:, :24] *= torch.rand(5, 24) < 0.6
    order = torch.arange(24).reshape(8, 3).T.flatten()  # channel by channel at each place
    with_bias = torch.cat([order, torch.tensor([24])])
    one = make(name, pattern=Pattern(2, 4, 3))(weight, lobs.LayerStatistics.from_samples(samples, bias=True))
    statistics = lobs.LayerStatistics.from_samples(samples[:, order], bias=True)
    other = make(name, pattern="2:4")(weight[:, with_bias], statistics)
    assert one.total == other.total == 60 and one.free == other.free
    torch.testing.assert_close(one.layer_error(), other.layer_error())
    for count in (one.free, max(one.free, 50), 60):  # which zeros leave first is a tie
        found, expected = one.at(count), other.at(count)
        torch.testing.assert_close(found[0][:, with_bias], expected[0])
        assert torch.equal((found[1] & (weight != 0))[:, with_bias], expected[1] & (weight != 0)[:, with_bias])


def test_linear_and_pointwise_layers_have_consecutive_inputs_and_odd_channels_are_named():
    solver = make("exact_obs", pattern="2:4")
    assert for_layer(solver, nn.Linear(8, 4)) is for_layer(solver, nn.Conv2d(8, 4, 1)) is solver
    assert for_layer(solver, nn.Conv2d(8, 4, 3)).pattern == (2, 4, 9)
    assert for_layer(make("apoz"), nn.Conv2d(8, 4, 3)) == make("apoz")
    model = nn.Sequential(nn.Conv2d(6, 4, 2))
    with pytest.raises(ValueError, match="layer '0': pattern 2:4: 4 does not divide the layer's 6 input channels"):
        lobs.prune(model, batches=[torch.randn(4, 6, 5, 5)], method=solver, density=0.5)
    grouped = make("exact_obs", pattern=Pattern(2, 4, 9), group_size="auto")
    assert grouped._sized(10**9, lobs.LayerStatistics.from_samples(torch.randn(9, 720))).group_size == 504


@pytest.mark.parametrize("short", [0, 1])
def test_paths_are_kept_up_to_the_last_byte(short):
    model, statistics = linear()
    maker = PathMaker(model, statistics, make("exact_obs"))
    needed = sum(path_bytes(maker.path(name)) for name in ("0", "2"))
    paths = PathMaker(model, statistics, make("exact_obs"), Execution(needed - short)).paths(["0", "2"])
    assert [isinstance(path, RecomputedPath) for path in paths.values()] == [False, bool(short)]


def test_a_folder_holds_what_took_a_layer_long(tmp_path):
    model, statistics = linear()
    maker = PathMaker(model, statistics, make("exact_obs"), Execution(folder=tmp_path))
    assert not maker.holds("0")
    maker.path("0")
    assert (maker.holds("0"), maker.holds("2")) == (True, False)
    assert not PathMaker(model, statistics, make("exact_obs")).holds("0")


def test_what_a_folder_holds_of_another_weight_or_other_inputs_is_not_taken(tmp_path):
    model, statistics = linear()
    execution = Execution(folder=tmp_path)
    others = lobs.collect_statistics(model, [3 * torch.randn(40, 6)])
    with torch.no_grad():
        changed = linear()[0]
        changed[0].weight[0, 0] += 1
    for network, found in ((model, others), (changed, statistics)):
        PathMaker(model, statistics, make("exact_obs"), execution).path("0")
        taken = PathMaker(network, found, make("exact_obs"), execution).path("0")
        fresh = PathMaker(network, found, make("exact_obs")).path("0")
        assert torch.equal(taken.layer_error(), fresh.layer_error())


def test_layers_are_chosen_and_those_left_out_are_known():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    statistics = lobs.collect_statistics(model, [torch.randn(40, 6)])
    for layers, exclude, names, left_out in (
        (None, [], ["0", "2", "4"], set()),
        (None, ["2"], ["0", "4"], {"2"}),
        (["4", "0"], [], ["0", "4"], {"2"}),
        (["[02]"], ["0"], ["2"], {"0", "4"}),
    ):
        assert selected(model, statistics, layers, exclude) == (names, left_out)
    for layers, exclude, asked in (
        (None, ["*"], r"exclude=\['\*'\] leaves"),
        (["2"], ["2"], r"exclude=\['2'\] leaves"),
        ([], [], r"layers=\[\] leave"),
    ):
        with pytest.raises(ValueError, match=rf"{asked} no layer to prune; those with statistics are 0, 2, 4"):
            selected(model, statistics, layers, exclude)


def test_weights_that_a_function_uses_too_cannot_be_pruned():
    model, statistics = linear()
    check_network(model, ["0", "2"], statistics)
    used = lobs.Statistics(dict(statistics), Calls(["0", "2"], {"2": "mm"}))
    check_network(model, ["0"], used)
    with pytest.raises(ValueError, match=r"layer '2': its weight or bias is used outside of it, too, by mm, whose"):
        check_network(model, ["0", "2"], used)
    with torch.inference_mode():
        made = linear()[0]
    with pytest.raises(ValueError, match=r"made in torch.inference_mode"):
        check_network(made, ["0"], statistics)
    model[2].weight = nn.Parameter(torch.zeros(3, 5, dtype=torch.complex64))
    check_network(model, ["0"], statistics)
    with pytest.raises(ValueError, match=r"layer '2': its weight is torch.complex64"):
        check_network(model, ["0", "2"], statistics)


def test_statistics_of_layers_that_were_not_asked_for_do_no_harm():
    model, statistics = linear()
    assert list(layers_with_statistics(model[:1], statistics, ["0"])) == ["0"]
