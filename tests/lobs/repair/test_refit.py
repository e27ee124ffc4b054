"""The refit: nearer on inputs that it has not seen, zeros stay zeros, and everything around stays as it was."""

import copy

import pytest
import torch
from torch import nn

import lobs
from helpers.networks import Normalised, X, mlp
from helpers.refits import BATCHES, HELD, divergence, normed, pruned
from lobs.calibration.batches import calibration_batches
from lobs.repair import refit as module

STEPS = {"steps": 40}


@pytest.mark.parametrize("make", [mlp, normed])
@pytest.mark.parametrize("density", [0.6, 0.2])
def test_the_outputs_come_nearer_on_inputs_it_has_not_seen(make, density):
    dense = make().eval()
    result = pruned(dense, density=density)
    before = divergence(dense, result.model, HELD)
    done = lobs.refit(dense, result.model, BATCHES, **STEPS)
    assert isinstance(done, lobs.Refit)
    assert (done.distance, done.held_out) == ("kl", 42)
    # Logits of float32 leave an error of some 1e-8.
    assert done.before == pytest.approx(before, rel=1e-4, abs=1e-7)
    assert done.after == pytest.approx(divergence(dense, result.model, HELD), rel=1e-4, abs=1e-7)
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


class Stop:
    """Interrupts a refit before a step; of its networks it remembers the weights before every step."""

    def __init__(self, at, network):
        self.at, self.network, self.seen = at, network, {}

    def __call__(self, steps):
        for step in steps:
            self.seen[step - 1] = {key: value.clone() for key, value in self.network.state_dict().items()}
            if step == self.at:
                raise KeyboardInterrupt
            yield step


@pytest.mark.parametrize(("at", "rate"), [(2, 3e-3), (12, 3e-3), (40, 3e-3), (40, 1e18)])
def test_an_interruption_leaves_the_best_weights_so_far_and_flags_and_gradients_as_they_were(at, rate):
    """With 40 steps it is measured after every second one."""
    dense, network = mlp(), pruned(mlp()).model.train()
    network(X).sum().backward()
    network[0].weight.requires_grad_(False)
    network[2].bias.grad = None
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}
    stop, held_out = Stop(at, network), [HELD]
    with pytest.raises(KeyboardInterrupt):
        lobs.refit(dense, network, BATCHES, held_out=held_out, progress=stop, learning_rate=rate, **STEPS)
    assert network.training
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (name != "0.weight")
        before = gradients[name]
        assert parameter.grad is None if before is None else torch.equal(parameter.grad, before)
    reached, probe = {}, mlp()
    for step in range(0, at, 2):
        probe.load_state_dict(stop.seen[step])
        reached[step] = divergence(dense, probe, HELD)
    best = 0
    for step, value in reached.items():  # less than a thousandth of what there was is rounding
        best = step if value < reached[best] - 1e-3 * reached[0] else best
    assert (best == 0) == (at == 2 or rate == 1e18)
    assert all(torch.equal(value, stop.seen[best][key]) for key, value in network.state_dict().items())


def test_an_error_inside_a_step_leaves_everything_as_it_was():
    dense, network = mlp(), pruned(mlp()).model
    before = {key: value.clone() for key, value in network.state_dict().items()}
    passes = []

    def failing(module, args):
        passes.append(torch.is_grad_enabled())
        if sum(passes) == 4:  # one pass with gradients finds the size of the minibatches
            raise RuntimeError("no more")

    handle = network.register_forward_pre_hook(failing)
    with pytest.raises(ValueError, match=r"cannot be run on a minibatch, with gradients, .*no more"):
        lobs.refit(dense, network, BATCHES, steps=400)
    handle.remove()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


@pytest.mark.parametrize("rate", [1e-3, 1e18])
def test_what_does_not_help_is_taken_back(rate):
    """The dense network itself cannot come nearer; and steps that are far too long end nowhere."""
    dense = mlp()
    network = copy.deepcopy(dense) if rate < 1 else pruned(dense).model
    before = {key: value.clone() for key, value in network.state_dict().items()}
    done = lobs.refit(dense, network, BATCHES, learning_rate=rate, **STEPS)
    assert (done.steps, done.after) == (0, done.before)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    said = (
        f"; steps too long, 20 times a third of the rate; {done.skipped} minibatches without a finite gradient changed"
    )
    ending = "" if rate < 1 else f"{said} nothing"
    assert str(done).endswith(f"on 42 held-out inputs, nothing helped, taken back{ending}")


def test_steps_that_are_too_long_become_shorter_until_they_help():
    dense = mlp()
    network = pruned(dense).model
    done = lobs.refit(dense, network, BATCHES, learning_rate=1.0, **STEPS)
    assert done.after < done.before and done.shortened > 0
    assert done.after == pytest.approx(divergence(dense, network, HELD), rel=1e-4)
    assert f"steps too long, {done.shortened} times a third of the rate" in str(done)
    assert lobs.refit(dense, pruned(dense).model, BATCHES, **STEPS).shortened == 0


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
        ([X[:11]], "a refit holds a sixth of the inputs out: give at least 48 inputs"),
        ([X[:6], X[6:11]], "a refit holds a sixth of the inputs out: give at least 48 inputs"),
        (iter(BATCHES), "a refit reads batches several times, and the list_iterator given is used up after one pass"),
        (None, "a refit needs batches=, the calibration inputs, and got none"),
    ],
)
def test_batches_that_do_not_do(batches, message):
    with pytest.raises(ValueError, match=message):
        lobs.refit(mlp(), pruned(mlp()).model, batches)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        (iter(BATCHES), "a refit reads batches several times, and the list_iterator given is used up after one pass"),
        ([], "held_out is empty: a refit stops where the outputs on held-out inputs are nearest"),
    ],
)
def test_held_out_batches_that_do_not_do(held_out, message):
    network = pruned(mlp()).model
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        lobs.refit(mlp(), network, BATCHES, held_out=held_out)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_one_batch_in_memory_is_cut():
    dense = mlp()
    networks = [pruned(dense).model for _ in range(2)]
    learned, _ = calibration_batches([X]).divided()
    done = [lobs.refit(dense, networks[0], [X], **STEPS)]
    done.append(lobs.refit(dense, networks[1], [torch.cat(list(learned))], held_out=[HELD], **STEPS))
    assert [each.held_out for each in done] == [42, 42]
    assert (done[0].before, done[0].after, done[0].steps) == (done[1].before, done[1].after, done[1].steps)
    assert torch.equal(networks[0][0].weight, networks[1][0].weight)


def test_what_is_held_out_decides_and_nothing_is_learned_from_it():
    dense = mlp()
    start = pruned(dense).model
    others = (X[:50] + 1).split(20)
    before, found = divergence(dense, start, torch.cat(others)), []
    for batches, held_out in ((BATCHES, others), (BATCHES, [5 * part for part in others])):
        network = copy.deepcopy(start)
        stop = Stop(None, network)
        found.append((lobs.refit(dense, network, batches, held_out=held_out, progress=stop, **STEPS), stop, network))
    one, other = found
    # The way is the same, whatever the inputs beside it, as long as they send nothing back; where it is left they say.
    assert one[0].shortened == other[0].shortened == 0
    assert all(torch.equal(value, other[1].seen[39][key]) for key, value in one[1].seen[39].items())
    assert one[0].held_out == 50
    assert one[0].before == pytest.approx(before, rel=1e-4)
    assert one[0].after == pytest.approx(divergence(dense, one[2], torch.cat(others)), rel=1e-4)
    assert one[0].after < one[0].before
    assert other[0].before != pytest.approx(before, rel=1e-2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be above 0 and finite, got 0\.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0 and finite, got nan"),
    ],
)
def test_numbers_out_of_range(options, said):
    with pytest.raises(ValueError, match=said):
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
    with pytest.raises(ValueError, match="a refit moves pruned layers and batch norms, and masks name none of them"):
        lobs.refit(mlp(), mlp(), BATCHES, masks={})
    with pytest.raises(ValueError, match="Tanh has no layer to prune"):
        lobs.refit(nn.Tanh(), nn.Tanh(), BATCHES)


@pytest.mark.parametrize("target", [True, False])
def test_outputs_that_are_no_class_logits_are_compared_by_their_own_spread(target):
    dense = mlp(3 if target else 1)
    batches = [(part, dense(part).detach()) for part in BATCHES]
    result = lobs.prune(dense, None, "magnitude", density=0.3, batches=batches)
    with torch.no_grad():
        given = dense(HELD)
        spread = (given - given.mean(0)).square().sum(1).mean()

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


def test_minibatches_are_even_and_hold_every_input_once():
    network = nn.Linear(1, 1)
    batches = calibration_batches([torch.arange(50.0)[:, None], torch.arange(50.0, 60)[:, None]])
    inputs = module._minibatches(batches, network, 20, seed=0)
    first, second = ([next(inputs) for _ in range(3)] for _ in range(2))
    assert [len(part) for part in first] == [20, 20, 20]
    first, second = (torch.cat([part.alone for part in parts]) for parts in (first, second))
    assert first.flatten().sort().values.tolist() == list(range(60))
    assert not torch.equal(first, second)
    with torch.no_grad():
        assert [len(next(module._minibatches(batches, network, 1, seed=0)))] == [1]


def test_minibatches_are_as_large_as_what_a_backward_pass_needs_leaves_room_for(monkeypatch):
    network, free = nn.Sequential(nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 4)), [0.0]
    monkeypatch.setattr(module, "available_bytes", lambda device: free[0])
    found = {}
    for megabytes in (1e-6, 0.01, 0.1, 1.0, 1000.0):
        free[0] = megabytes * 2**20
        found[megabytes] = module._size(network, calibration_batches([torch.zeros(8, 10), torch.zeros(9000, 10)]))
    assert found[1e-6] == 1  # one there always is
    assert found[1000.0] == module.MOST_INPUTS
    assert 1 < found[0.01] < found[0.1] < module.MOST_INPUTS
    assert found[0.1] == pytest.approx(10 * found[0.01], abs=10)
    assert module._size(network, calibration_batches([torch.zeros(1, 10)])) == module.FEWEST_INPUTS


def test_a_refit_with_little_memory_takes_small_minibatches(monkeypatch):
    dense, seen = mlp(), []
    network = pruned(dense).model
    monkeypatch.setattr(module, "_size", lambda *_: 5)
    handle = network.register_forward_pre_hook(lambda _, args: seen.append((torch.is_grad_enabled(), len(args[0]))))
    done = lobs.refit(dense, network, BATCHES, **STEPS)
    handle.remove()
    assert {size for learning, size in seen if learning} <= set(range(2, 6))
    assert done.after < done.before


def test_minibatches_without_a_finite_gradient_change_nothing_and_are_counted():
    torch.manual_seed(0)
    dense = Normalised(12, 24, 4).eval()
    inputs = torch.randn(240, 12)
    inputs[7] = 0.0
    start = lobs.prune(dense, method="magnitude", density=0.3, batches=[inputs]).model
    done = lobs.refit(dense, start, list(inputs.split(60)), steps=40)
    assert done.after < done.before and 0 < done.skipped < 40
    assert f"{done.skipped} minibatches without a finite gradient changed nothing" in str(done)


def test_what_is_infinitely_far_at_first_is_improved_upon(monkeypatch):
    dense, far = mlp().eval(), float("inf")
    measured = iter([far, far, 0.5, 0.6, 0.4])
    monkeypatch.setattr(module._Distance, "mean", lambda *_: next(measured, far))
    done = lobs.refit(dense, pruned(dense).model, BATCHES, **STEPS)
    assert (done.before, done.after, done.steps) == (far, 0.4, 8)


def test_shared_weights_and_other_outputs_are_refused():
    dense = mlp().eval()
    shared = pruned(dense).model
    last = [name for name, _ in shared.named_children()][-1]
    setattr(shared, last, getattr(dense, last))
    with pytest.raises(ValueError, match="share weights, which a refit moves"):
        lobs.refit(dense, shared, BATCHES, **STEPS)
    narrow = copy.deepcopy(dense)
    setattr(narrow, last, nn.Linear(getattr(dense, last).in_features, 1))
    with pytest.raises(ValueError, match="the outputs have shapes"):
        lobs.refit(dense, narrow, BATCHES, **STEPS)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"steps": float("inf")}, TypeError, "steps must be a whole number"),
        ({"steps": None}, TypeError, "steps must be a whole number"),
        ({"learning_rate": None}, ValueError, "learning_rate must be above 0"),
        ({"seed": "a"}, TypeError, "seed must be a whole number"),
        ({"masks": [1]}, TypeError, "masks must map layer names"),
        ({"masks": {"0": [1]}}, TypeError, "masks must map layer names"),
    ],
)
def test_arguments_of_another_kind_are_refused(options, error, said):
    dense = mlp().eval()
    with pytest.raises(error, match=said):
        lobs.refit(dense, copy.deepcopy(dense), BATCHES, **options)


def test_batch_norms_that_share_their_parameters_move_once():
    first, second = nn.BatchNorm1d(6), nn.BatchNorm1d(6)
    second.weight, second.bias = first.weight, first.bias
    network = nn.Sequential(nn.Linear(4, 6), first, nn.Linear(6, 6), second)
    found = [id(parameter) for parameter, _ in module._moved(network, None)]
    assert len(found) == len(set(found))
