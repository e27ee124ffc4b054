"""Every kernel computes what the layer does; which one is taken is told by a timer that the tests make up."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import lobs
from lobs.export import accelerate as module
from lobs.export.kernels import COLUMNS, CSR, PATCHES, PIXELS, SEMI_STRUCTURED, alternatives

WHOLE = "accelerated"


@pytest.fixture
def timer(monkeypatch):
    """Milliseconds by kernel or network, 10 for what is not named; the functions are run all the same."""
    told = {}

    def race(runs):
        for run in runs.values():
            run()
        return {name: told.get(name, 10.0) for name in runs}

    monkeypatch.setattr(module, "race", race)
    return told


def pruned(network, density=0.2):
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in lobs.layers.prunable_layers(network).values():
            layer.weight.copy_(torch.randn_like(layer.weight) * (torch.rand_like(layer.weight) < density))
    return network.eval()


CALLS = [
    (nn.Linear(7, 5), (3, 7), {CSR, COLUMNS}),
    (nn.Linear(7, 5, bias=False), (2, 3, 7), {CSR, COLUMNS}),
    (nn.Linear(7, 5), (7,), {CSR, COLUMNS}),
    (nn.Conv2d(4, 6, 1), (5, 4, 9, 8), {PIXELS}),
    (nn.Conv2d(4, 6, 1, stride=2, bias=False), (4, 9, 8), {PIXELS}),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (5, 4, 9, 8), {PATCHES}),
    (nn.Conv2d(4, 6, (3, 2), dilation=2, padding="same", padding_mode="reflect"), (5, 4, 9, 8), {PATCHES}),
    (nn.Conv1d(4, 6, 3), (2, 4, 9), {PATCHES}),
    (nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 2, 4, 5, 4), {PATCHES}),
]


@pytest.mark.parametrize(("layer", "shape", "kernels"), CALLS)
def test_every_kernel_computes_the_layer(layer, shape, kernels, monkeypatch):
    monkeypatch.setattr("lobs.export.kernels.PATCH_BYTES", 2**13)  # several chunks of images
    pruned(layer)
    with torch.no_grad():
        layer.weight.flatten(1)[:, 1] = 0
        inputs = torch.randn(shape)
        found = alternatives(layer)
        assert set(found) == kernels
        for other in found.values():
            torch.testing.assert_close(other(inputs), layer(inputs))
            for twin in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
                torch.testing.assert_close(twin.double()(inputs.double()).float(), layer(inputs))
            file = io.BytesIO()
            torch.save(other.state_dict(), file)
            file.seek(0)
            twin = copy.deepcopy(other)
            for buffer in twin.buffers():
                buffer.zero_()
            twin.load_state_dict(torch.load(file))
            torch.testing.assert_close(twin(inputs), layer(inputs))


def test_no_kernel_for_classes_that_compute_otherwise():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    assert alternatives(Own(3, 3)) == alternatives(nn.ConvTranspose2d(2, 2, 3)) == {}


def network():
    convolutions = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.ReLU())
    return pruned(nn.Sequential(convolutions, nn.Flatten(), nn.Linear(96, 32), nn.ReLU(), nn.Linear(32, 10)), 0.4)


def test_the_fastest_kernels_take_the_layers_places(timer):
    model, inputs = network().train(), torch.randn(5, 3, 4, 4)
    state = copy.deepcopy(model.state_dict())
    timer.update({CSR: 1.0, PIXELS: 8.9, PATCHES: 9.5, COLUMNS: 2.0, WHOLE: 5.0})
    found = lobs.accelerate(model, inputs)
    assert {row.name: row.kernel for row in found.layers} == {"0.0": "dense", "0.2": PIXELS, "2": CSR, "4": CSR}
    assert [row.milliseconds_after for row in found.layers] == [10.0, 8.9, 1.0, 1.0]
    assert (found.milliseconds_before, found.milliseconds_after) == (10.0, 5.0)
    assert not found.model.training and not any(p.requires_grad for p in found.model.parameters())
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(model.state_dict()[name], values) for name, values in state.items())
    for twin in (found.model, copy.deepcopy(found.model), pickle.loads(pickle.dumps(found.model))):
        torch.testing.assert_close(twin(inputs), model.eval()(inputs).detach(), rtol=1e-4, atol=1e-4)


def test_the_table_names_all_of_it(timer):
    timer.update({CSR: 1.0, WHOLE: 5.0})
    lines = str(lobs.accelerate(network(), torch.randn(5, 3, 4, 4))).splitlines()
    assert lines[0].split() == ["layer", "density", "kernel", "ms", "before", "ms", "after"]
    assert lines[3].split()[0::2] == ["2", "csr", "1"]
    assert lines[5].split() == ["whole", "network", "10", "5"]


def test_taken_back_where_the_whole_is_no_faster(timer):
    timer.update({CSR: 1.0, WHOLE: 10.0})
    found = lobs.accelerate(network(), torch.randn(5, 3, 4, 4))
    assert {row.kernel for row in found.layers} == {"dense"}
    assert not any("Sparse" in type(each).__name__ for each in found.model.modules())
    assert any("taken back: the whole network took 10 ms with them and 10 ms without" in note for note in found.notes)


def test_taken_back_where_outputs_differ(timer, monkeypatch):
    timer.update({CSR: 1.0, WHOLE: 5.0})

    def wrong(layer):
        others = alternatives(layer)
        if CSR in others:
            others[CSR].values.mul_(1.01)
        return others

    monkeypatch.setattr(module, "alternatives", wrong)
    found = lobs.accelerate(network(), torch.randn(5, 3, 4, 4))
    assert {row.kernel for row in found.layers} == {"dense"}
    assert any("taken back: an output would change by 0.0" in note for note in found.notes)


def test_a_kernel_that_fails_is_named(timer, monkeypatch):
    def fails(self, inputs):
        raise RuntimeError("no such product")

    monkeypatch.setattr("lobs.export.kernels.SparseLinear.forward", fails)
    found = lobs.accelerate(pruned(nn.Sequential(nn.Linear(8, 4)), 0.5), torch.randn(3, 8))
    assert "layer '0': no csr: no such product" in found.notes


def test_a_slower_compacted_network_is_not_taken(timer):
    model = network()
    with torch.no_grad():
        model[4].weight[:, 3] = 0
    timer.update({"compacted": 20.0})
    found = lobs.accelerate(model, torch.randn(5, 3, 4, 4))
    assert found.milliseconds_after == 10.0 and found.model[2].out_features == 32
    assert any("took 20 ms, more than the given one" in note for note in found.notes)
    timer.update({"compacted": 9.0})
    assert lobs.accelerate(model, torch.randn(5, 3, 4, 4)).model[2].out_features < 32


def test_views_that_join_axes_get_contiguous_outputs(timer):
    class Joins(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 6)

        def forward(self, x):
            return self.fc(x).view(-1)

    model, inputs = pruned(Joins(), 0.5), torch.randn(4, 8)
    timer.update({CSR: 1.0, WHOLE: 5.0})
    found = lobs.accelerate(model, inputs)
    assert found.layers[0].kernel == CSR and found.model.fc.contiguous
    torch.testing.assert_close(found.model(inputs), model(inputs).detach())


def test_parts_stay_dense_and_are_listed(timer):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return self.fc(self.block(self.attention(x, x, x)[0]))

    model, inputs = pruned(Attends(), 0.5), torch.randn(2, 3, 8)
    timer.update({CSR: 1.0, WHOLE: 5.0})
    found = lobs.accelerate(model, inputs)
    rows = {row.name: row for row in found.layers}
    assert [name for name, row in rows.items() if row.kernel == CSR] == ["fc"]
    assert "several matrices" in rows["attention.q_proj"].note and "fast path" in rows["block.linear1"].note
    assert "several matrices at once" in found.table()
    torch.testing.assert_close(found.model(inputs), model(inputs).detach(), rtol=1e-4, atol=1e-5)


def test_modules_that_share_a_weight_are_each_replaced(timer):
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    model = nn.Sequential(first, nn.ReLU(), second, first)
    second.weight = first.weight
    pruned(model, 0.5)
    timer.update({CSR: 1.0, WHOLE: 5.0})
    found, inputs = lobs.accelerate(model, torch.randn(3, 6)), torch.randn(3, 6)
    assert [row.milliseconds_before for row in found.layers] == [20.0, 10.0]  # the first is called twice
    assert found.model[0] is found.model[3]
    torch.testing.assert_close(found.model(inputs), model(inputs).detach())


def test_other_ways_to_call_a_network(timer):
    timer.update({CSR: 1.0, WHOLE: 5.0})
    model, inputs = pruned(nn.Linear(6, 4), 0.5), torch.randn(3, 6)
    ways = {
        "nothing to compact: no unit is dead": lobs.accelerate(model, {"input": inputs}),
        "not compacted: torch.fx cannot follow a call=": lobs.accelerate(
            model, [inputs], call=lambda network, batch: network(batch[0])
        ),
    }
    for note, found in ways.items():
        assert note in found.notes
        torch.testing.assert_close(found.model(inputs), model(inputs).detach())


def test_a_network_without_zeros_comes_back_unchanged(timer):
    model = nn.Sequential(nn.Linear(4, 4))
    found = lobs.accelerate(model, torch.randn(2, 4))
    assert found.notes == ["no layer has a zero weight: prune the network first"] and found.layers == []
    assert torch.equal(found.model[0].weight, model[0].weight)


def test_refused_in_one_sentence():
    model = pruned(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="there are no inputs to measure with"):
        lobs.accelerate(model, torch.randn(0, 4))
    with pytest.raises(TypeError, match="a batch must be a tensor"):
        lobs.accelerate(model, None)
    with pytest.raises(ValueError, match="is compiled"):
        lobs.accelerate(torch.compile(model), torch.randn(2, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_of_four_on_a_gpu(timer):
    solver = lobs.solvers.make("magnitude", pattern="2:4")
    dense, inputs = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64)), torch.randn(32, 128)
    model = lobs.prune(dense, batches=[inputs], method=solver, density=0.5).model.half().cuda()
    timer.update({SEMI_STRUCTURED: 1.0, WHOLE: 5.0})
    found = lobs.accelerate(model, inputs.half().cuda())
    assert {row.kernel for row in found.layers} == {SEMI_STRUCTURED}


def test_the_race_gives_medians_and_leaves_out_what_is_slower(monkeypatch):
    clock, calls = [0.0], {"first": 0, "slow": 0, "fast": 0}
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])

    def runner(name, seconds):
        def run():
            calls[name] += 1
            clock[0] += seconds

        return run

    times = module.race({name: runner(name, s) for name, s in {"first": 2e-3, "slow": 5e-3, "fast": 1e-3}.items()})
    assert times == pytest.approx({"first": 2.0, "slow": 5.0, "fast": 1.0})
    assert calls["slow"] == module.WARM_UPS + 2 * module.FEWEST_ROUNDS < calls["fast"] == calls["first"]
