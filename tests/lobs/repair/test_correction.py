"""Corrections from calibration data, against means and variances over all of it at once."""

import copy

import pytest
import torch
from torch import nn

import lobs
from lobs import correct
from lobs.repair.correction import output_distance


class Network(nn.Module):
    """A bias-free convolution before a batch norm, one with a bias before another, a layer called twice, a branch."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.middle = nn.Conv2d(4, 4, 1)
        self.second = nn.BatchNorm2d(4)
        self.free = nn.Conv2d(4, 4, 1, bias=False)
        self.shared = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        y = torch.relu(self.norm(self.stem(x)))
        y = torch.relu(self.second(self.middle(y))) + self.free(y)
        y = self.drop(y.mean((2, 3)))
        return self.head(self.shared(torch.relu(self.shared(y))))


@pytest.fixture
def images():
    return torch.randn(96, 1, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.5


@pytest.fixture
def pair(images):
    """A network whose running statistics fit the images, and its pruned copy."""
    torch.manual_seed(0)
    dense = Network().double()
    correct(dense, dense, images.split(12), "batch_norm")
    statistics = lobs.collect_statistics(dense, images.split(12))
    pruned = lobs.prune(dense, statistics, "magnitude", density=0.5).model
    return dense.eval(), pruned.eval()


def outputs(model, name, images):
    """All rows ``[samples, channels]`` that a module gives."""
    found = []

    def hook(module, args, output):
        found.append(output.movedim(1, -1).reshape(-1, output.shape[1]) if output.dim() == 4 else output)

    handle = model.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        model(images)
    handle.remove()
    return torch.cat(found)


def test_biases_make_the_means_agree(pair, images):
    dense, pruned = pair
    before = copy.deepcopy(pruned)
    assert correct(dense, pruned, images.split(13), "bias") == "bias"
    changed = {name for name, value in pruned.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert changed == {"norm.bias", "second.bias", "shared.bias", "head.bias"}, "a batch norm takes its layer's part"
    for name in ("norm", "second"):
        mean = outputs(pruned, name, images).mean(0)
        torch.testing.assert_close(mean, outputs(dense, name, images).mean(0))
    torch.testing.assert_close(outputs(pruned, "head", images).mean(0), outputs(dense, "head", images).mean(0))
    # a layer that feeds itself: the mean was measured before its own bias changed
    step = pruned.shared.bias - before.shared.bias
    so_far = copy.deepcopy(pruned)
    so_far.shared.bias.data -= step
    expected = outputs(dense, "shared", images).mean(0) - outputs(so_far, "shared", images).mean(0)
    torch.testing.assert_close(step.detach(), expected)
    assert output_distance(dense, pruned, [images]) < output_distance(dense, before, [images])


def test_batch_norms_take_the_averages_of_the_batches(pair, images):
    dense, pruned = pair
    parts = images.split(24)
    before = copy.deepcopy(pruned)
    pruned.norm.momentum = 0.3
    pruned.train()
    assert correct(dense, pruned, [(part, None) for part in parts], "batch_norm") == "batch_norm"
    assert pruned.norm.momentum == 0.3
    assert all(module.training for module in pruned.modules())
    pruned.eval()
    changed = {name for name, value in pruned.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert changed >= {"norm.running_mean", "norm.running_var", "second.running_mean", "second.running_var"}
    assert all("running" in name or "num_batches" in name for name in changed)
    rows = [outputs(before, "stem", part) for part in parts]
    torch.testing.assert_close(pruned.norm.running_mean, torch.stack([part.mean(0) for part in rows]).mean(0))
    torch.testing.assert_close(pruned.norm.running_var, torch.stack([part.var(0) for part in rows]).mean(0))


def test_both_is_one_after_the_other(pair, images):
    dense, pruned = pair
    by_hand = copy.deepcopy(pruned)
    correct(dense, by_hand, images.split(24), "batch_norm")
    correct(dense, by_hand, images.split(24), "bias")
    assert correct(dense, pruned, images.split(24), "both") == "both"
    for name, value in by_hand.state_dict().items():
        assert torch.equal(value, pruned.state_dict()[name])


def test_auto_takes_what_is_closest_on_held_out_batches(pair, images):
    dense, pruned = pair
    parts = images.split(12)
    distances, models = {}, {}
    for how in ("none", "bias", "batch_norm", "both"):
        trial = copy.deepcopy(pruned)
        assert correct(dense, trial, parts[:6], how) == how
        distances[how] = output_distance(dense, trial, parts[6:])
        models[how] = copy.deepcopy(pruned)
        correct(dense, models[how], parts, how)
    best = min(distances, key=distances.get)
    assert correct(dense, pruned, parts, "auto") == best != "none"
    for name, value in models[best].state_dict().items():
        assert torch.equal(value, pruned.state_dict()[name]), "the choice was not estimated anew on all batches"


def test_nothing_to_correct_stays_as_it_is(pair, images):
    dense, _ = pair
    same = copy.deepcopy(dense)
    assert correct(dense, same, images.split(24), "none") == "none"
    assert correct(dense, same, images.split(24), "bias") == "bias"
    for name, value in dense.state_dict().items():
        torch.testing.assert_close(same.state_dict()[name], value)
    linear = nn.Sequential(nn.Linear(3, 2)).double()
    inputs = torch.randn(8, 3, dtype=torch.float64)
    assert correct(linear, copy.deepcopy(linear), inputs.split(2), "auto") == "none"


def test_a_ceiling_on_the_memory_changes_the_way_and_nothing_else(images, monkeypatch):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    dense = dense.double().eval()
    found, walks = [], []
    run_until = lobs.calibration.layerwise.run_until
    monkeypatch.setattr("lobs.calibration.layerwise.run_until", lambda *args: (walks.append(args), run_until(*args)))
    for memory in (None, 1e9, 1):
        pruned = lobs.prune(dense, batches=[images], method="magnitude", density=0.3).model
        assert correct(dense, pruned, images.split(32), "bias", memory=memory) == "bias"
        found.append(torch.cat([pruned[index].bias for index in (0, 2, 5)]))
        assert len(walks) == (9 if memory == 1 else 0)
    assert all(torch.equal(found[0], other) for other in found)
    with pytest.raises(ValueError, match="memory is a ceiling in bytes"):
        correct(dense, pruned, images.split(32), "bias", memory=0)
    result = lobs.prune(dense, batches=images.split(32), method="magnitude", density=0.3, correct="bias", memory=1)
    assert torch.equal(torch.cat([result.model[index].bias for index in (0, 2, 5)]), found[0])
    assert len(walks) > 9


def test_units_that_are_gone_stay_gone():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs = torch.randn(50, 6)
    result = lobs.prune(dense, method="apoz", density=0.4, batches=inputs.split(10), correct="bias")
    dead = ~result.masks["0"].any(1)
    assert dead.any()
    assert not result.model[0].bias[dead].any()
    torch.testing.assert_close(result.model(inputs).mean(0), dense(inputs).mean(0))


@pytest.mark.parametrize("sequential", [False, True])
def test_prune_corrects_and_says_how(pair, images, sequential):
    dense, _ = pair
    batches = images.split(12)
    plain = lobs.prune(dense, method="magnitude", density=0.4, batches=batches, sequential=sequential)
    assert plain.correction == "none"
    by_hand = copy.deepcopy(plain.model)
    done = correct(dense, by_hand, batches, "auto")
    result = lobs.prune(dense, method="magnitude", density=0.4, batches=batches, sequential=sequential, correct="auto")
    assert result.correction == done != "none"
    for name, value in by_hand.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name])
    assert [record.error for record in result.layers] == [record.error for record in plain.layers]
    for name, mask in result.masks.items():
        assert not result.model.get_submodule(name).weight[~mask].any()
    bound = lobs.error_bound(dense, result.model, lobs.collect_statistics(dense, batches))
    assert [record.bound_contribution for record in result.layers] == pytest.approx(list(bound.layers.values()))
    again = lobs.prune(
        dense, method="magnitude", density=0.4, batches=batches, sequential=sequential, correct="auto", in_place=True
    )
    assert again.model is dense
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in by_hand.state_dict().items())


def test_errors_name_what_is_wrong(pair, images):
    dense, pruned = pair
    with pytest.raises(ValueError, match="unknown correction 'x': accepted are none, bias, batch_norm, both, auto"):
        correct(dense, pruned, [images], "x")
    with pytest.raises(ValueError, match="unknown correction 'x'"):
        lobs.prune(dense, density=0.5, batches=[images], correct="x")
    with pytest.raises(ValueError, match=r"correct='bias' needs batches="):
        lobs.prune(dense, lobs.collect_statistics(dense, [images]), density=0.5, correct="bias")
    with pytest.raises(ValueError, match=r"correct='bias' reads batches several times.*list_iterator"):
        correct(dense, pruned, iter([images]), "bias")
    with pytest.raises(ValueError, match=r"last quarter of the batches out: give at least 2, got 1"):
        correct(dense, pruned, [images], "auto")
    for how in ("bias", "batch_norm"):
        with pytest.raises(ValueError, match="batches is empty"):
            correct(dense, pruned, [], how)
    with pytest.raises(ValueError, match="different layers: 0"):
        correct(dense, nn.Sequential(*dense.children()), [images], "bias")

    class Words(nn.Sequential):
        def forward(self, x):
            return str(super().forward(x).argmax())

    with pytest.raises(ValueError, match=r"outputs can be compared where they are tensors of the same shapes; got "):
        correct(Words(nn.Linear(2, 2)), Words(nn.Linear(2, 2)), torch.randn(4, 2).split(1), "auto")


def test_what_a_correction_changed_can_be_put_back(images):
    torch.manual_seed(0)
    dense = Network().double().eval()
    statistics = lobs.collect_statistics(dense, images.split(12))
    plain = lobs.prune(dense, statistics, "magnitude", density=0.5)
    corrected = lobs.prune(dense, statistics, "magnitude", density=0.5, correct="both", batches=images.split(12))
    assert plain.uncorrected == {}
    assert not torch.equal(corrected.model.head.bias, plain.model.head.bias)
    corrected.model.load_state_dict(corrected.uncorrected, strict=False)
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(corrected.model.state_dict()[name], tensor), name
