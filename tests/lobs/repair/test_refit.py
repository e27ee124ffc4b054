"""The refit: nearer on inputs that it has not seen, zeros stay zeros, and everything around stays as it was."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import lobs
from helpers.networks import X, mlp
from lobs.calibration.batches import calibration_batches
from lobs.repair import refit as module

BATCHES = list(X.split(32))
HELD = torch.cat(BATCHES[-2:])  # a sixth of 256 inputs are two batches of 32
STEPS = {"steps": 40}


class Normed(nn.Module):
    """Convolutions with batch norms, a dropout, and a layer that is not pruned."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.spare = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x.reshape(-1, 1, 4, 4)))).mean((2, 3))
        return self.head(self.drop(torch.relu(self.spare(x))))


def normed():
    torch.manual_seed(3)
    model = Normed()
    with torch.no_grad():
        model.norm.running_mean.normal_(0, 0.1)
        model.norm.running_var.uniform_(0.5, 2)
    return model


def pruned(model, method="magnitude", density=0.3, **options):
    return lobs.prune(model, None, method, density=density, batches=BATCHES, **options)


def divergence(dense, network, inputs):
    """KL(softmax(dense) || softmax(network)), the mean over inputs."""
    with torch.no_grad():
        one, other = (model.eval()(inputs).double().log_softmax(1) for model in (dense, network))
    return float(functional.kl_div(other, one, reduction="batchmean", log_target=True))


@pytest.mark.parametrize("make", [mlp, normed])
@pytest.mark.parametrize("density", [0.6, 0.2])
def test_the_outputs_come_nearer_on_inputs_it_has_not_seen(make, density):
    dense = make().eval()
    result = pruned(dense, density=density)
    before = divergence(dense, result.model, HELD)
    done = lobs.refit(dense, result.model, BATCHES, **STEPS)
    assert isinstance(done, lobs.Refit)
    assert (done.distance, done.held_out) == ("kl", 64)
    assert done.before == pytest.approx(before, rel=1e-4)
    assert done.after == pytest.approx(divergence(dense, result.model, HELD), rel=1e-4)
    assert done.after < done.before
    assert 0 < done.steps <= 40


@pytest.mark.parametrize("given", [True, False])
def test_removed_weights_and_layers_that_were_not_pruned_stay_as_they_are(given):
    dense = normed().eval()
    result = pruned(dense, exclude=["spare"])
    before = copy.deepcopy(result.model)
    lobs.refit(dense, result.model, BATCHES, masks=result.masks if given else None, **STEPS)
    for name, mask in result.masks.items():
        layer = result.model.get_submodule(name)
        assert torch.equal(layer.weight[~mask], torch.zeros(int((~mask).sum())))
        assert not torch.equal(layer.weight, before.get_submodule(name).weight)
    # Without masks every layer's weights are looked at.
    assert torch.equal(result.model.spare.weight, before.spare.weight) == given
    assert torch.equal(result.model.spare.bias, before.spare.bias) == given


def test_nothing_around_it_changes():
    dense, flags = normed(), {}
    dense.conv.weight.requires_grad_(False)
    dense.train()
    result = pruned(dense)
    network = result.model.train()
    network.norm.eval()
    network.head.bias.requires_grad_(False)
    network.spare.weight.requires_grad_(False)
    dense(X).sum().backward()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in dense.named_parameters()}
    weights = {name: value.clone() for name, value in dense.state_dict().items()}
    running = {name: value.clone() for name, value in network.named_buffers()}
    for key, model in (("dense", dense), ("pruned", network)):
        flags[key] = (
            {name: each.training for name, each in model.named_modules()},
            {name: p.requires_grad for name, p in model.named_parameters()},
        )
    lobs.refit(dense, network, BATCHES, **STEPS)
    for key, model in (("dense", dense), ("pruned", network)):
        assert {name: each.training for name, each in model.named_modules()} == flags[key][0]
        assert {name: p.requires_grad for name, p in model.named_parameters()} == flags[key][1]
    for name, parameter in dense.named_parameters():
        kept = gradients[name]
        assert parameter.grad is None if kept is None else torch.equal(parameter.grad, kept)
    assert all(torch.equal(value, weights[name]) for name, value in dense.state_dict().items())
    assert all(torch.equal(value, running[name]) for name, value in network.named_buffers())


def test_gradients_of_the_pruned_network_stay_as_they_were():
    dense = mlp()
    network = pruned(dense).model
    network(X).sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
    lobs.refit(dense, network, BATCHES, **STEPS)
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in network.named_parameters())


def test_an_error_on_the_way_leaves_the_flags_as_they_were():
    dense, network = mlp(), pruned(mlp()).model.train()
    network[0].weight.requires_grad_(False)

    def stopped(steps):
        for step in steps:
            if step == 5:
                raise KeyboardInterrupt
            yield step

    with pytest.raises(KeyboardInterrupt):
        lobs.refit(dense, network, BATCHES, progress=stopped, **STEPS)
    assert network.training
    flags = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    assert flags == {name: name != "0.weight" for name in flags}


@pytest.mark.parametrize("rate", [1e-3, 1e6])
def test_what_does_not_help_is_taken_back(rate):
    """The dense network itself cannot come nearer; and steps that are far too long end nowhere."""
    dense = mlp()
    network = copy.deepcopy(dense) if rate < 1 else pruned(dense).model
    before = {key: value.clone() for key, value in network.state_dict().items()}
    done = lobs.refit(dense, network, BATCHES, learning_rate=rate, **STEPS)
    assert (done.steps, done.after) == (0, done.before)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert str(done).endswith("on 64 held-out inputs, nothing helped, taken back")


def test_it_is_the_same_each_time_and_the_modes_around_do_not_matter():
    dense, found = mlp(), []
    for around in (torch.enable_grad, torch.no_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        network = pruned(dense).model
        with around():
            lobs.refit(dense, network, BATCHES, **STEPS)
        found.append(network.state_dict())
    for other in found[1:]:
        assert all(torch.equal(value, other[key]) for key, value in found[0].items())
    network = pruned(dense).model
    lobs.refit(dense, network, BATCHES, seed=1, **STEPS)
    assert not torch.equal(network[0].weight, found[0]["0.weight"])


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([X], "a refit holds the last of the batches out: give at least 2, got 1"),
        (iter(BATCHES), "a refit reads batches several times, and the list_iterator given is used up after one pass"),
        (None, "a refit needs batches=, the calibration inputs, and got none"),
    ],
)
def test_batches_that_do_not_do(batches, message):
    with pytest.raises(ValueError, match=message):
        lobs.refit(mlp(), pruned(mlp()).model, batches)


@pytest.mark.parametrize("options", [{"steps": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}])
def test_numbers_out_of_range(options):
    with pytest.raises(ValueError, match="steps must be at least 1 and learning_rate above 0, got"):
        lobs.refit(mlp(), mlp(), BATCHES, **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype):
    batches = [part.to(dtype) for part in BATCHES]
    with pytest.raises(ValueError, match=f"a refit moves weights by little steps, which {dtype} does not hold"):
        lobs.refit(mlp().to(dtype), mlp().to(dtype), batches)


def test_networks_that_no_gradient_leaves_or_that_hold_nothing_to_move():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mlp()

        def forward(self, x):
            return self.inner(x).detach()

    with pytest.raises(ValueError, match="no gradient reaches the network's weights from its outputs"):
        lobs.refit(Cut(), Cut(), BATCHES, **STEPS)
    with pytest.raises(ValueError, match="a refit moves pruned layers and batch norms, and the network has none of th"):
        lobs.refit(mlp(), mlp(), BATCHES, masks={})


@pytest.mark.parametrize("target", [True, False])
def test_outputs_that_are_no_class_logits_are_compared_by_their_own_spread(target):
    dense = mlp(3 if target else 1)
    batches = [(part, dense(part).detach()) for part in BATCHES]
    result = lobs.prune(dense, None, "magnitude", density=0.3, batches=batches)
    with torch.no_grad():
        first = dense(BATCHES[0])
        spread = (first - first.mean(0)).square().sum(1).mean()

        def distance():
            return float((dense(HELD) - result.model(HELD)).square().sum(1).mean() / spread)

        before = distance()
    done = lobs.refit(dense, result.model, batches, **STEPS)
    assert done.distance == "relative"
    assert done.before == pytest.approx(before, rel=1e-4)
    with torch.no_grad():
        assert done.after == pytest.approx(distance(), rel=1e-4)
    assert done.after < done.before


def test_units_that_are_gone_stay_gone():
    dense = mlp()
    result = pruned(dense, "apoz", density=0.4)
    dead = {name: ~mask.flatten(1).any(1) for name, mask in result.masks.items()}
    assert dead["0"].any()
    done = lobs.refit(dense, result.model, BATCHES, masks=result.masks, **STEPS)
    assert done.after < done.before
    for name, rows in dead.items():
        layer = result.model.get_submodule(name)
        assert not layer.weight[rows].any() and not layer.bias[rows].any()
        assert not layer.weight[~result.masks[name]].any()


def test_a_unit_without_weights_whose_bias_is_kept_may_move_it():
    dense, network = mlp(), pruned(mlp()).model
    with torch.no_grad():
        network[2].weight[0] = 0
    assert network[2].bias[0] != 0
    before = network[2].bias[0].item()
    lobs.refit(dense, network, BATCHES, **STEPS)
    assert network[2].bias[0].item() != before
    assert not network[2].weight[0].any()


def test_shared_weights_move_once():
    torch.manual_seed(2)
    dense = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 16, bias=False)).eval()
    dense[2].weight = dense[0].weight
    network = copy.deepcopy(dense)
    with torch.no_grad():
        network[0].weight[:, :8] = 0
    done = lobs.refit(dense, network, BATCHES, **STEPS)
    assert network[2].weight is network[0].weight
    assert not network[0].weight[:, :8].any()
    assert done.after < done.before


@pytest.mark.parametrize(
    ("sizes", "learned"),
    [([60, 60], 1), ([10] * 12, 10), ([100, 1, 1], 1), ([1, 1, 100], 2), ([5000, 5000, 40_000], 2), ([3] * 7, 5)],
)
def test_the_last_sixth_is_held_out_in_whole_batches(sizes, learned):
    batches = calibration_batches([torch.zeros(size, 1) for size in sizes])
    seen, held = module._divided(batches)
    assert (seen.input_counts(), held.input_counts()) == (sizes[:learned], sizes[learned:])


def test_minibatches_are_even_and_hold_every_input_once(monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", 20)
    network = nn.Linear(1, 1)
    batches = calibration_batches([torch.arange(50.0)[:, None], torch.arange(50.0, 60)[:, None]])
    inputs = module._minibatches(batches, network, seed=0)
    first, second = ([next(inputs) for _ in range(4)] for _ in range(2))
    assert [len(part) for part in first] == [17, 17, 16, 10]
    assert torch.cat(first).flatten().sort().values.tolist() == list(range(60))
    assert not torch.equal(torch.cat(first), torch.cat(second))


def test_pruning_asks_for_it_and_what_it_moved_can_be_put_back():
    dense = normed().eval()
    plain = pruned(dense, "exact_obs")
    result = pruned(dense, "exact_obs", refit=True)
    assert result.refit.after < result.refit.before
    assert str(result.refit) in repr(result)
    assert set(result.before_refit) == {
        key for key, value in result.model.state_dict().items() if not torch.equal(value, plain.model.state_dict()[key])
    }
    assert not any("running" in key for key in result.before_refit)
    bound = lobs.error_bound(dense, result.model, lobs.collect_statistics(dense, BATCHES))
    assert [r.bound_contribution for r in result.layers] == pytest.approx(list(bound.layers.values()))
    result.model.load_state_dict(result.before_refit, strict=False)
    assert all(torch.equal(value, plain.model.state_dict()[key]) for key, value in result.model.state_dict().items())
    assert (plain.refit, plain.before_refit) == (None, {})


def test_a_refit_that_was_asked_for_and_cannot_be_made_is_an_error():
    statistics = lobs.collect_statistics(mlp(), BATCHES)
    with pytest.raises(ValueError, match="refit=True needs batches="):
        lobs.prune(mlp(), statistics, "magnitude", density=0.3, refit=True)
    with pytest.raises(ValueError, match="refit=True reads batches several times"):
        lobs.prune(mlp(), statistics, "magnitude", density=0.3, refit=True, batches=iter(BATCHES))
    with pytest.raises(ValueError, match="a refit holds the last of the batches out: give at least 2, got 1"):
        lobs.prune(mlp(), statistics, "magnitude", density=0.3, refit=True, batches=[X])


def test_a_plan_refits_too_and_in_place_is_in_place():
    dense = mlp()
    expected = pruned(dense, "exact_obs", refit=True)
    planned = lobs.plan(dense, None, "exact_obs", batches=BATCHES).prune(density=0.3, refit=True)
    for key, value in expected.model.state_dict().items():
        assert torch.equal(planned.model.state_dict()[key], value)
    result = pruned(dense, "exact_obs", refit=True, in_place=True)
    assert result.model is dense
    assert all(torch.equal(value, expected.model.state_dict()[key]) for key, value in dense.state_dict().items())
