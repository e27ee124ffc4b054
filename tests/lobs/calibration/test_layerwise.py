"""Front to back: passes that wait before every layer see what passes from the start see."""

import pytest
import torch
from torch import nn

import lobs
from helpers.networks import tied
from helpers.sequence import residual
from lobs.calibration import layerwise, lockstep
from lobs.calibration.batches import CalibrationBatches
from lobs.calibration.layerwise import LayerwisePasses, count_calls, first_input, require_repeatable, run_until
from lobs.calibration.lockstep import LockstepPasses, lockstep_possible


class Branches(nn.Module):
    """A residual branch, ReLUs in place and a batch norm; layers are called once, not in the order of definition."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.stem = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.inside = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.short = nn.Conv2d(2, 4, 1, stride=2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.stem(x))
        y = self.norm(self.inside(y)) + self.short(x)
        return self.head(self.relu(y).mean((2, 3)))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.relu(self.layer(x)))


class Autocast(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.second(self.first(x))


class Fickle(nn.Module):
    """Calls its layers in an order that depends on the data."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(x)) if float(x[0, 0]) > 0 else self.first(self.second(x))


def layers(model):
    return lobs.layers.network.prunable_layers(model)


@pytest.fixture
def images():
    return torch.randn(20, 2, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(1)
    return Branches().eval()


def visited(model, images):
    """What the passes show of each layer, while every layer is changed as soon as it has been seen."""
    found = {}
    batches = images.split(6)
    with LayerwisePasses(model, layers(model), batches) as front_to_back:
        for name in front_to_back.calls:
            found[name] = [(x.clone(), z.clone()) for calls in front_to_back.visits(name) for x, z in calls]
            with torch.no_grad():
                layers(model)[name].weight.mul_(0.5)
    return found


def test_waiting_passes_see_what_passes_from_the_start_see(model, images, monkeypatch):
    assert lockstep_possible(model, layers(model), images.split(6))
    waiting = visited(model, images)
    torch.manual_seed(1)
    monkeypatch.setattr(layerwise, "lockstep_possible", lambda *_: False)
    anew = visited(Branches().eval(), images)
    assert list(waiting) == list(anew) == ["stem", "inside", "short", "head"]
    for name, calls in waiting.items():
        assert len(calls) == 4
        for (x, z), (y, w) in zip(calls, anew[name], strict=True):
            assert torch.equal(x, y)
            assert torch.equal(z, w)


@pytest.mark.parametrize("correct", ["none", "bias"])
def test_pruning_in_sequence_gives_the_same_network_either_way(model, images, correct, monkeypatch):
    def pruned():
        settings = {"density": 0.4, "sequential": True, "batches": images.split(6), "correct": correct}
        return lobs.prune(model, method="exact_obs", **settings).model.state_dict()

    waiting = pruned()
    monkeypatch.setattr(layerwise, "lockstep_possible", lambda *_: False)
    for name, tensor in pruned().items():
        assert torch.equal(tensor, waiting[name]), name


def test_a_walk_reads_the_batches_a_few_times_however_many_layers_there_are(images):
    torch.manual_seed(0)
    deep = nn.Sequential(*[nn.Conv2d(2, 2, 1) for _ in range(12)]).eval()
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    deep[0].register_forward_hook(count)
    with LayerwisePasses(deep, layers(deep), images.split(5)) as front_to_back:
        for name in front_to_back.calls:
            assert len(list(front_to_back.visits(name))) == 4
    assert calls <= 8  # of 12 layers x 4 batches


def test_passes_end_with_the_walk(model, images):
    ended = []

    class Watched(Branches):
        def forward(self, x):
            try:
                return super().forward(x)
            finally:
                ended.append(len(x))

    watched = Watched().eval()
    with LockstepPasses(watched, layers(watched), images.split(6)) as passes:
        passes.input(0, "stem")
    assert ended == [6]
    assert not any(module._forward_pre_hooks for module in watched.modules())


@pytest.mark.parametrize("network", [Shared, Autocast])
def test_networks_whose_passes_cannot_wait_are_known(network):
    model = network().eval()
    assert not lockstep_possible(model, layers(model), [torch.randn(3, 4)])


def test_memory_decides(model, images):
    batches = images.split(5)
    own, widest = 2 * 6 * 6 * 4, 2 * 6 * 6 * 4
    needed = 20 * (own + lockstep.ALIVE * widest)
    assert lockstep_possible(model, layers(model), batches, memory=needed)
    assert not lockstep_possible(model, layers(model), batches, memory=needed - 1)
    assert not lockstep_possible(model, layers(model), batches, 2, memory=needed)


def test_another_order_of_layers_is_named():
    model = Fickle().eval()
    batches = [torch.ones(2, 4), -torch.ones(2, 4)]
    with (
        LayerwisePasses(model, layers(model), batches) as front_to_back,
        pytest.raises(ValueError, match="called layer 'second' where the first one called layer 'first'"),
    ):
        list(front_to_back.visits("first"))


def test_calls_are_counted_in_the_order_of_the_first_ones():
    class Often(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.often, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            for _ in range(3):
                x = self.often(x).relu()
            return self.first(x)

    model = Often().eval()
    counts = count_calls(model, [torch.randn(5, 4)], layers(model))
    assert list(counts.items()) == [("often", 3), ("first", 1)]


def test_a_module_that_a_later_batch_calls_again_is_named():
    """Two calls are enough; one that the first pass calls more often may be called as often as it likes."""

    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.often, self.once = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.often(self.often(x))
            for _ in range(2 if bool((x[:, 0] > 1e3).any()) else 1):
                x = self.once(x)
            return x

    model = Again().eval()
    with torch.no_grad():
        model.often.weight.copy_(torch.eye(4))
    quiet, loud = torch.zeros(2, 4), torch.full((2, 4), 1e4)
    with pytest.raises(ValueError, match="'once' is called 2 times in a forward pass and once in the first one"):
        LayerwisePasses(model, layers(model), [quiet, loud])
    LayerwisePasses(model, layers(model), [loud, quiet])
    LayerwisePasses(model, {"often": model.often}, [quiet, loud])


def test_a_pass_that_does_not_call_a_layer_is_refused():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "spare": nn.Linear(3, 2)})
    model.forward = lambda x: model["used"](x)
    seen = []
    run_until(model, [model["used"]], 1, torch.randn(4, 3), lambda x, z: seen.append((tuple(x.shape), tuple(z.shape))))
    assert seen == [((4, 3), (4, 2))]
    for calls in (1, 2):
        with pytest.raises(ValueError, match=r"layer 'spare' is not called in a forward pass and was in the first one"):
            run_until(model, [model["spare"]], calls, torch.randn(4, 3), lambda *_: None)
    assert not any(module._forward_hooks for module in model.modules())


class Loader:
    """Batches that are made anew on every reading."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_a_walk_from_the_start_says_so_where_more_memory_would_spare_it(model, images):
    from_the_start = "do not fit into memory layer by layer: every layer is reached from the network's start"
    kept = list(images.split(6))
    own = 2 * 6 * 6 * 4
    needed = 20 * (own + lockstep.ALIVE * own)
    for batches, together, memory, noted in (
        (kept, 1, needed, False),
        (kept, 1, needed - 1, True),
        (kept, 2, needed, True),
        (kept, 2, 2 * needed, False),
        (CalibrationBatches(Loader(kept), memory=0), 1, None, True),
    ):
        with LayerwisePasses(model, layers(model), batches, together, memory) as walk:
            assert (walk.note is not None) == noted
            assert not noted or from_the_start in walk.note
            found = {name: [calls[0][0].clone() for calls in walk.visits(name)] for name in walk.calls}
        assert [len(inputs) for inputs in found.values()] == [4] * 4
        assert torch.equal(torch.cat(found["stem"]), images)
    shared = Shared().eval()
    assert LayerwisePasses(shared, layers(shared), [torch.randn(3, 4)]).note is None, "no memory would do"
    loaded = LayerwisePasses(shared, layers(shared), CalibrationBatches(Loader([torch.randn(3, 4)]), memory=0))
    assert from_the_start in loaded.note


def test_walks_need_batches_that_can_be_read_again():
    with pytest.raises(ValueError, match="refit=True needs batches=, the calibration inputs, and got none"):
        require_repeatable(None, "refit=True")
    with pytest.raises(ValueError, match="refit=True reads batches several times, and the list_iterator given is used"):
        require_repeatable(iter([torch.ones(2, 4)]), "refit=True")
    batches = require_repeatable(Loader([torch.ones(2, 4)] * 3), "refit=True", memory=0)
    assert [len(list(batches)), len(list(batches)), batches.kept] == [3, 3, False]
    assert require_repeatable(batches, "refit=True") is batches
    for empty in ([], CalibrationBatches([]), Loader([])):
        with pytest.raises(ValueError, match="batches is empty: there is no calibration batch"):
            first_input(nn.Linear(4, 2), empty)


def test_modules_that_share_a_weight_are_counted_and_seen_together():
    model = tied(bias=True)
    inputs = torch.randn(5, 16)
    assert count_calls(model, [inputs], {"a": model.a}) == {"a": 2}
    with LayerwisePasses(model, {"a": model.a}, [inputs[:3], inputs[3:]]) as walk:
        calls = list(walk.visits("a"))
    hidden = model.a(inputs).relu()
    for (first, second), part in zip(calls, (slice(0, 3), slice(3, 5)), strict=True):
        torch.testing.assert_close(first, (inputs[part], model.a(inputs[part])))
        torch.testing.assert_close(second, (hidden[part], model.b(hidden[part])))


class Overwriting(nn.Module):
    """Calls a layer twice, and overwrites what it was given and what it gave each time."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        for _ in range(2):
            given, x = x, self.layer(x)
            given.zero_()
            hidden = x.relu()
            x.zero_()
            x = hidden
        return x


def test_what_a_network_overwrites_later_is_seen_as_it_was():
    torch.manual_seed(0)
    model, inputs = Overwriting().eval(), torch.randn(6, 4)
    layer = model.layer
    with LayerwisePasses(model, {"layer": layer}, [inputs]) as walk, torch.no_grad():
        (((given, first), (hidden, second)),) = walk.visits("layer")
        assert torch.equal(given, inputs)
        torch.testing.assert_close(first, layer(inputs))
        torch.testing.assert_close(hidden, layer(inputs).relu())
        torch.testing.assert_close(second, layer(hidden))


def test_a_pass_ends_with_a_layers_only_call():
    model, inputs = residual().eval(), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    seen = []
    model.head.register_forward_hook(lambda *_: seen.append("head"))
    got = []
    run_until(model, [next(model.children())], 1, inputs, lambda x, z: got.append((x.shape, z.shape)))
    assert len(got) == 1
    assert not seen
    run_until(model, [model.shared], 2, inputs, lambda x, z: got.append((x.shape, z.shape)))
    assert len(got) == 3
    assert seen == ["head"], "another batch may call it more often"
    assert count_calls(model, [inputs], {"head": model.head, "shared": model.shared}) == {"shared": 2, "head": 1}
    with pytest.raises(ValueError, match="is not called in a forward pass and was in the first one"):
        run_until(model, [nn.Linear(2, 2)], 1, inputs, lambda *_: None)
