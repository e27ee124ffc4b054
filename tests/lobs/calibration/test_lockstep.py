"""Forward passes that wait: each goes its own way, none outlives the walk, and some networks do not allow it."""

import gc
import weakref

import pytest
import torch
from greenlet import greenlet
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lobs
from helpers.networks import X, mlp, net, tied, tied_by_data
from lobs.calibration.batches import CalibrationBatches
from lobs.calibration.lockstep import LockstepPasses, lockstep_possible


class Watched(nn.Module):
    """A network that overwrites its input, one layer called by keyword, and a note of how every pass ends."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.relu = nn.ReLU(inplace=True)
        self.ends = []

    def forward(self, x):
        try:
            x = self.relu(self.first(self.relu(x)))
            y = self.second(input=x)
            if x.isnan().any():
                raise RuntimeError("not with such numbers")
            y = self.third(self.relu(y.add_(x)))
        except Exception:
            self.ends.append("caught")
            raise
        except BaseException:
            self.ends.append("left")
            raise
        self.ends.append("done")
        return y


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def inputs_of(model, batch):
    """What each layer is given in an ordinary pass."""
    seen = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen.update({name: (args or [kwargs["input"]])[0].clone()}),
            with_kwargs=True,
        )
        for name, module in layers(model).items()
    ]
    with torch.no_grad():
        model(batch.clone())
    for hook in hooks:
        hook.remove()
    return seen


def hooks_of(model):
    return [hook for module in model.modules() for hook in (*module._forward_pre_hooks, *module._forward_hooks)]


@settings(max_examples=20, deadline=None)
@given(order=st.permutations([0, 0, 0, 1, 1, 1, 2, 2, 2]))
def test_every_batch_goes_on_by_itself(order):
    model, batches = Watched().eval(), [torch.randn(count, 4) for count in (5, 1, 3)]
    expected = [inputs_of(model, batch) for batch in batches]
    before = [batch.clone() for batch in batches]
    places = [iter(layers(model)) for _ in batches]
    with LockstepPasses(model, layers(model), batches) as passes:
        for index in order:
            name = next(places[index])
            found = passes.input(index, name)
            assert torch.equal(found, expected[index][name])
            assert not found.requires_grad
    assert torch.is_grad_enabled()
    assert all(torch.equal(one, other) for one, other in zip(batches, before, strict=True))


def test_an_error_of_the_network_reaches_the_caller_and_leaves_the_other_passes():
    model, batches = Watched().eval(), [torch.randn(2, 4), torch.full((2, 4), float("nan"))]
    with LockstepPasses(model, layers(model), batches) as passes:
        for index in range(2):
            for name in ("first", "second"):
                passes.input(index, name)
        with pytest.raises(RuntimeError, match="not with such numbers"):
            passes.input(1, "third")
        passes.input(0, "third")
    assert model.ends == ["caught", "left"]
    assert not hooks_of(model)


def test_closing_early_ends_the_passes_that_have_begun_and_frees_what_they_held():
    model = Watched().eval()
    passes = LockstepPasses(model, layers(model), [torch.randn(2, 4) for _ in range(3)])
    held = [weakref.ref(passes.input(0, "first")), weakref.ref(passes.input(1, "first"))]
    held.append(weakref.ref(passes.input(1, "second")))
    assert all(each() is not None for each in (held[0], held[2]))
    passes.close()
    gc.collect()
    assert model.ends == ["left", "left"], "the third pass never began, and no `except Exception` saw the others end"
    assert not any(each() is not None for each in held)
    assert not hooks_of(model)
    passes.close()


def test_a_pass_that_is_over_says_so():
    model = Watched().eval()
    with LockstepPasses(model, layers(model), [torch.randn(2, 4)]) as passes:
        for name in layers(model):
            passes.input(0, name)
        with pytest.raises(ValueError, match="a forward pass ended where the first one called layer 'fourth'"):
            passes.input(0, "fourth")
    assert model.ends == ["done"]


def test_calls_from_outside_are_not_held():
    model, batch = Watched().eval(), torch.randn(2, 4)
    expected = model(batch.clone())
    with LockstepPasses(model, layers(model), [batch]) as passes:
        passes.input(0, "first")
        assert torch.equal(model(batch.clone()), expected)
        assert torch.equal(greenlet(model).switch(batch.clone()), expected)
        passes.input(0, "second")
    assert model.ends == ["done", "done", "done", "left"]


class Listed(nn.Linear):
    def forward(self, parts):
        return parts[0]


class Once:
    """Inputs that are not kept: a loader's."""

    def __iter__(self):
        return iter(X.split(64))


CASES = {
    "a chain": (mlp, list(X.split(64)), True),
    "a layer that is never called": (
        lambda: net(lambda self, x: self.used(x), used=nn.Linear(16, 4), spare=nn.Linear(4, 4)),
        [X],
        True,
    ),
    "autocast around everything inside": (
        lambda: net(lambda self, x: self.a(x) if torch.is_autocast_enabled("cpu") else x, a=nn.Linear(16, 4)),
        [X],
        True,
    ),
    "a shared weight": (tied, [X], False),
    "weights that share their data": (tied_by_data, [X], False),
    "a layer that is given no tensor": (
        lambda: net(lambda self, x: self.a([x]), a=Listed(4, 4)),
        [X],
        False,
    ),
    "batches that are not kept": (mlp, CalibrationBatches(Once(), memory=0), False),
}


@pytest.mark.parametrize("case", CASES)
def test_whether_a_networks_passes_can_wait(case):
    network, batches, expected = CASES[case]
    model = network()
    assert lockstep_possible(model, layers(model), batches) == expected
    assert not hooks_of(model)


def test_a_network_that_fails_is_left_without_hooks():
    model = mlp()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        lockstep_possible(model, layers(model), [torch.randn(3, 5)])
    assert not hooks_of(model)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad, torch.no_grad])
def test_modes_that_a_network_switches_stay_its_own(mode):
    """Passes that wait inside such a block would leave it to each other, and to the caller."""

    class Switching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(16, 12), nn.Linear(12, 4)

        def forward(self, x):
            with mode():
                x = torch.relu(self.first(x))
            return self.second(x.clone())

    model, batches = Switching().eval(), list(torch.randn(64, 16).split(16))
    before = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    result = lobs.prune(model, batches=batches, method="exact_obs", density=0.4, sequential=True, correct="bias")
    assert (torch.is_inference_mode_enabled(), torch.is_grad_enabled()) == before
    assert not any(mask.is_inference() for mask in result.masks.values())
    assert not any(parameter.is_inference() for parameter in result.model.parameters())
