"""What strangers brought that was silently wrong, or failed in somebody else's words."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import lobs
from helpers.networks import net
from lobs.layers.matrix import VIEWS


class Conv1D(nn.Module):
    """As transformers has it."""

    def __init__(self, size, bias=True):
        super().__init__()
        self.nf, self.weight = size, nn.Parameter(torch.randn(size, size))
        if bias:
            self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        return x @ self.weight + getattr(self, "bias", 0)


def tied(first, second, key="weight"):
    model = nn.Sequential(first, second)
    setattr(second, key, getattr(first, key))
    return model.eval()


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (tied(Conv1D(6), nn.Linear(6, 6)), torch.randn(60, 6)),
        (tied(nn.Conv2d(3, 3, 3, bias=False), nn.ConvTranspose2d(3, 3, 3, bias=False)), torch.randn(60, 3, 5, 5)),
    ],
)
def test_one_weight_that_two_classes_see_otherwise_is_refused(model, inputs):
    with pytest.raises(ValueError, match=r"shares its weight with 'weight' of '0' .* computes with it in another way"):
        lobs.prune(model, batches=[inputs], method="magnitude", density=0.5)


class Turned(nn.Linear):
    pass


def test_a_view_that_does_not_undo_itself_is_refused():
    class View(type(VIEWS[nn.Linear])):
        def matrix(self, module, values):
            return values.flip(1)

        def samples(self, module, inputs, chunk_bytes):
            yield inputs.flip(1)[None]

    lobs.layers.register(Turned, View())
    try:
        with pytest.raises(ValueError, match=r"layer '0': View of Turned does not undo its matrix\(\) in shaped\(\)"):
            lobs.prune(nn.Sequential(Turned(6, 4)), batches=[torch.randn(60, 6)], method="magnitude", density=0.5)
    finally:
        del VIEWS[Turned]


def test_a_size_that_is_given_at_the_call_is_refused_whenever_it_comes():
    model = net(lambda self, x: self.up(x, output_size=[x.shape[-1] * 2]), up=nn.ConvTranspose1d(2, 3, 2, stride=2))
    lobs.prune(model, batches=[torch.randn(60, 2, 7)], method="magnitude", density=0.5)
    model = net(
        lambda self, x: self.up(x, output_size=[2 * x.shape[-1] - x.shape[-1] % 2]),
        up=nn.ConvTranspose1d(2, 3, 1, stride=2),
    )
    batches = [torch.randn(60, 2, 7), torch.randn(60, 2, 8)]
    with pytest.raises(ValueError, match=r"layer 'up' was given \d+ samples and gave \d+ in one call \(output_size="):
        lobs.prune(model, batches=batches, method="magnitude", density=0.5)


@pytest.mark.parametrize("memory", [nn.LSTM(6, 6), nn.TransformerEncoderLayer(6, 2, 8)])
def test_batches_whose_first_axis_is_time_stay_whole(memory):
    seen = set()

    def forward(self, x):
        seen.add(tuple(x.shape))
        states = self.memory(x)
        return self.head(states[0] if isinstance(states, tuple) else states)

    model = net(forward, memory=memory, head=nn.Linear(6, 3))
    result = lobs.prune(model.eval(), batches=[torch.randn(9, 10, 6) for _ in range(7)], density=0.5, refit=5)
    assert {shape[1] for shape in seen} == {10}
    assert {shape[0] for shape in seen} == {2, 9}, "a probe of two, else whole sequences"
    assert any("batches stay whole" in note for note in result.notes)


def test_inputs_that_do_not_depend_on_each_other_are_taken_one_by_one():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    result = lobs.prune(model, batches=[torch.randn(60, 6)], density=0.5, refit=5)
    assert result.held_out == 10
    assert not any("whole" in note for note in result.notes)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_sequences_of_many_lengths_are_gone_through(kind):
    model = net(
        lambda self, x: self.head(self.memory(x)[1][-1][-1] if kind is nn.LSTM else self.memory(x)[1][-1]),
        memory=kind(6, 5),
        head=nn.Linear(5, 3),
    )
    batches = [
        pack_sequence([torch.randn(n, 6) for n in sorted(sizes, reverse=True)]) for sizes in ((3, 5), (7, 2), (4, 4))
    ]
    result = lobs.prune(
        model.eval(),
        batches=batches,
        call=lambda network, batch: network(batch),
        density=0.5,
        sequential=True,
        method="exact_obs",
    )
    assert set(result.masks) == {"memory.ih_l0", "memory.hh_l0", "head"}


def test_layers_without_a_bias_of_any_kind():
    lobs.layers.register(Turned, VIEWS[nn.Linear])
    try:
        layer = Turned(6, 4, bias=False)
        del layer._parameters["bias"]
        with pytest.raises(ValueError, match="layer '0': Turned is registered as a layer and has no weight or no bias"):
            lobs.layers.prunable_layers(nn.Sequential(layer))
    finally:
        del VIEWS[Turned]
    with pytest.raises(ValueError, match="has no layer to prune"):
        lobs.layers.prunable_layers(nn.Sequential(Conv1D(4, bias=False)))


def test_parts_of_a_shared_weight_are_counted_once():
    one, other = nn.MultiheadAttention(8, 2, batch_first=True), nn.MultiheadAttention(8, 2, batch_first=True)
    other.in_proj_weight, other.in_proj_bias = one.in_proj_weight, one.in_proj_bias
    model = net(lambda self, x: self.b(*[self.a(x, x, x)[0]] * 3)[0], a=one, b=other).eval()
    result = lobs.prune(model, batches=[torch.randn(60, 3, 8)], method="magnitude", density=0.5, exclude=["a.q_proj"])
    pruned = sum(record.kept + record.removed for record in result.layers)
    assert pruned + sum(entry.weights for entry in result.unpruned) == result.weights == 5 * 64


def test_weights_that_share_their_memory_alone_do_so_in_the_copy():
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False))
    model[2].weight.data = model[0].weight.data
    result = lobs.prune(model.eval(), batches=[torch.randn(60, 6)], method="magnitude", density=0.5)
    assert torch.equal(result.model[0].weight, result.model[2].weight)
    assert result.model[0].weight.data_ptr() == result.model[2].weight.data_ptr() != model[0].weight.data_ptr()
    assert int((result.model[2].weight == 0).sum()) == 18


def test_a_module_of_several_layers_is_named_with_its_layers():
    model = net(lambda self, x: self.a(x, x, x)[0], a=nn.MultiheadAttention(8, 2, batch_first=True))
    with pytest.raises(TypeError, match=r"'a' is a MultiheadAttention of several layers: all of them are 'a\.\*'"):
        lobs.prune(model.eval(), batches=[torch.randn(60, 3, 8)], method="magnitude", density=0.5, exclude=["a"])


def test_attention_made_in_inference_mode_is_refused_like_any_other_layer():
    with torch.inference_mode():
        model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)).eval()
    with pytest.raises(ValueError, match=r"made in torch\.inference_mode"):
        lobs.prune(model, batches=[torch.randn(60, 3, 8)], method="magnitude", density=0.5)


def test_a_compact_file_of_one_module_in_two_places_comes_back(tmp_path):
    def make():
        layer = nn.Linear(6, 6)
        return nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(6, 2)).eval()

    model, inputs = make(), torch.randn(60, 6)
    small = lobs.compact(lobs.prune(model, batches=[inputs], method="magnitude", density=0.5).model, inputs)
    lobs.save_compact(small, tmp_path / "small.safetensors")
    again = lobs.load_compact(tmp_path / "small.safetensors", into=make())
    torch.testing.assert_close(again(inputs), small.model(inputs))


class Chain(nn.Module):
    """Two layers; `extra` is its state beside them."""

    def __init__(self, extra=None):
        super().__init__()
        self.one, self.two, self.extra = nn.Linear(6, 8), nn.Linear(8, 3), extra

    def forward(self, x):
        return self.two(self.between(self.one(x)))

    def between(self, h):
        return h.relu()


class Counting(Chain):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def between(self, h):
        self.calls.add_(1)
        return h.relu()


class Beside(Chain):
    """A state that is another object every time."""

    def get_extra_state(self):
        return io.BytesIO(b"abc")

    def set_extra_state(self, state):
        pass


class Graph(Chain):
    def __init__(self):
        super().__init__()
        self.register_buffer("places", torch.eye(8).to_sparse())

    def between(self, h):
        return torch.sparse.mm(self.places, h.T).T.relu()


class ByName(Chain):
    def forward(self, x):
        return self.two(input=self.one(input=x).relu())


@pytest.mark.parametrize("kind", [Counting, Beside, Graph, ByName])
@pytest.mark.filterwarnings("ignore:.*gave way")
def test_networks_with_a_state_of_their_own_are_pruned_by_the_default(kind):
    torch.manual_seed(0)
    model, batches = kind().eval(), [torch.randn(30, 6) for _ in range(3)]
    before = {key: value.clone() for key, value in model.state_dict().items() if torch.is_tensor(value)}
    result = lobs.prune(model, batches=batches, density=0.4)
    assert result.density <= 0.4
    assert not [note for note in result.notes if "another network" in note]
    assert all(torch.equal(dense(before[key]), dense(model.state_dict()[key])) for key in before)
    corrected = lobs.prune(model, batches=batches, method="magnitude", density=0.4, correct="bias")
    assert corrected.correction


def dense(tensor):
    return tensor.to_dense() if tensor.is_sparse else tensor


def test_a_network_without_a_derivative_is_not_refitted_and_says_so():
    class Overwriting(Chain):
        def between(self, h):
            return h.sigmoid().mul_(2)

    model, batches = Overwriting().eval(), [torch.randn(30, 6) for _ in range(3)]
    result = lobs.prune(model, batches=batches, density=0.4, refit=None, method="magnitude", sequential=True)
    assert not result.refit
    with pytest.raises(ValueError, match="the network cannot be differentiated, as a refit has to"):
        lobs.refit(model, result.model, batches)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_callers_random_numbers_are_not_drawn_for_parts(kind):
    model = kind(4, 3)
    state = torch.get_rng_state()
    lobs.layers.prunable_layers(model)
    assert torch.equal(state, torch.get_rng_state())


def test_parts_of_a_network_with_another_function_are_refused(tmp_path):
    class Chosen(Chain):
        def between(self, h):
            return h.tanh() if self.extra else h.relu()

    torch.manual_seed(0)
    first, batches = Chosen().eval(), [torch.randn(30, 6)]
    lobs.collect_statistics(first, batches, folder=tmp_path)
    second = copy.deepcopy(first)
    second.extra = True
    with pytest.raises(ValueError, match="holds parts of another call: outputs differ"):
        lobs.collect_statistics(second, batches, folder=tmp_path)


@pytest.mark.parametrize("change", ["buffer", "module"])
def test_a_plan_notices_more_than_weights(change):
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)).eval()
    plan = lobs.plan(model, batches=[torch.randn(40, 6)], method="magnitude")
    if change == "buffer":
        model[1].running_mean.add_(1)
    else:
        model[2] = nn.Tanh()
    with pytest.raises(ValueError, match="this plan's model has changed since"):
        plan.prune(density=0.5)
