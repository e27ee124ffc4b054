"""The loss's curvature against autograd's Hessian."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

import lobs
from helpers.networks import mlp
from lobs.calibration.loss_hessian import LossCurvature

LOSSES = {
    "cross_entropy": lambda outputs, targets: functional.cross_entropy(outputs, targets),
    "mse": lambda outputs, targets: (outputs - targets).square().sum() / len(outputs),
}


def convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=1, bias=False),
        nn.Sigmoid(),
        nn.Conv2d(3, 4, 2, dilation=2),
        nn.ReLU(),
        nn.MaxPool2d((1, 2)),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def perceptron():
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 3))


NETWORKS = {"convolutions": (convolutions, (2, 5, 5)), "perceptron": (perceptron, (5,))}


def case(network, loss, dtype=torch.float64):
    torch.manual_seed(3)
    make, shape = NETWORKS[network]
    targets = torch.randint(3, (7,)) if loss == "cross_entropy" else torch.randn(7, 3, dtype=dtype)
    return make().to(dtype), torch.randn(7, *shape, dtype=dtype), targets


def diagonal(model, key, inputs, targets, loss):
    """Of the Hessian of the mean loss in one parameter, by autograd."""
    value = model.get_parameter(key).detach()

    def of(parameter):
        return LOSSES[loss](torch.func.functional_call(model, {key: parameter}, inputs), targets)

    return torch.autograd.functional.hessian(of, value).reshape(value.numel(), -1).diagonal()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_diagonal_is_autograds_over_unequal_batches(network, loss):
    model, inputs, targets = case(network, loss)
    names = [name for name, module in model.named_modules() if hasattr(module, "weight")]
    curvature = LossCurvature(model, loss, names)
    for part in zip(inputs.split((4, 1, 2)), targets.split((4, 1, 2)), strict=True):
        curvature.add(*part)
    found = curvature.result()
    assert list(found) == names
    for name in names:
        module = model.get_submodule(name)
        expected = diagonal(model, f"{name}.weight", inputs, targets, loss).reshape(len(module.weight), -1)
        if module.bias is not None:
            expected = torch.cat([expected, diagonal(model, f"{name}.bias", inputs, targets, loss)[:, None]], 1)
        torch.testing.assert_close(found[name], expected, rtol=1e-9, atol=1e-12)


def test_only_the_layers_wanted_are_given_and_in_float64():
    model, inputs, targets = case("perceptron", "mse", torch.float32)
    curvature = LossCurvature(model, "mse", ["4"])
    curvature.add(inputs, targets)
    assert {name: (value.shape, value.dtype) for name, value in curvature.result().items()} == {
        "4": ((3, 4), torch.float64)
    }


def test_the_network_is_left_as_it_was():
    model, inputs, targets = case("convolutions", "cross_entropy")
    model.requires_grad_(False).train()
    before, attributes = copy.deepcopy(model.state_dict()), {m: set(vars(m)) for m in model.modules()}
    with torch.no_grad():
        curvature = LossCurvature(model, "cross_entropy", ["0"])
        curvature.add(inputs, targets)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(set(vars(module)) == names and module.training for module, names in attributes.items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert (curvature.result()["0"] != 0).any()


def test_what_cannot_be_had_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="unknown loss 'hinge': accepted are cross_entropy, mse"):
        LossCurvature(mlp(), "hinge", ["0"])
    curvature = LossCurvature(mlp(), "cross_entropy", ["0"])
    with pytest.raises(ValueError, match=r"labels from -100 to 3, the network has 4 outputs: .* between 0 and 3"):
        curvature.add(torch.randn(2, 16), torch.tensor([3, -100]))
    with pytest.raises(ValueError, match=r"outputs \(2, 4\) with targets \(2, 3\): give targets of the same shape"):
        LossCurvature(mlp(), "mse", ["0"]).add(torch.randn(2, 16), torch.randn(2, 3))
    monkeypatch.setitem(sys.modules, "backpack", None)
    with pytest.raises(ValueError, match="loss='mse' needs the package backpack-for-pytorch"):
        LossCurvature(mlp(), "mse", ["0"])


def _hessian_diagonal(model, parameter, inputs, targets):
    """By autograd, one row at a time."""
    loss = nn.functional.cross_entropy(model(inputs), targets)
    (gradient,) = torch.autograd.grad(loss, parameter, create_graph=True)
    rows = [torch.autograd.grad(g, parameter, retain_graph=True)[0].flatten() for g in gradient.flatten()]
    return torch.stack(rows).diagonal().reshape(parameter.shape)


def test_activations_in_place_and_modules_used_twice_are_followed():
    torch.manual_seed(0)
    shared = nn.Sigmoid()
    model = nn.Sequential(nn.Linear(4, 4), shared, nn.Linear(4, 4), shared, nn.Linear(4, 4), nn.ReLU(inplace=True))
    inputs, targets = torch.randn(6, 4), torch.randint(4, (6,))
    statistics = lobs.collect_statistics(model.eval(), [(inputs, targets)], loss="cross_entropy")
    for name in ("0", "2", "4"):
        expected = _hessian_diagonal(model, model.get_submodule(name).weight, inputs, targets)
        torch.testing.assert_close(statistics[name].loss_curvature[:, :4].float(), expected, rtol=1e-4, atol=1e-6)
    assert model[1] is model[3]
    assert model[5].inplace


def test_what_backpack_does_not_see_is_refused():
    inputs, targets = torch.randn(6, 4), torch.randint(4, (6,))

    def collect(model):
        return lobs.collect_statistics(model.eval(), [(inputs, targets)], loss="cross_entropy")

    hooked = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    handle = hooked[1].register_forward_hook(lambda module, given, output: 3 * output)
    with pytest.raises(ValueError, match="without hooks that change what its modules give"):
        collect(hooked)
    handle.remove()
    hooked[1].register_forward_hook(lambda module, given, output: None)  # looks on
    collect(hooked)
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    with pytest.raises(ValueError, match="layer '0' shares its weight with '2'"):
        collect(tied)

    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    with pytest.raises(ValueError, match=r"needs a network that is an nn\.Sequential of modules BackPACK knows"):
        collect(Residual(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))


def test_the_loss_changes_nothing_else_that_is_collected():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)).eval()
    batches = [(torch.randn(16, 6), torch.randint(0, 4, (16,))) for _ in range(4)]
    plain = lobs.collect_statistics(model, batches)
    curved = lobs.collect_statistics(model, batches, loss="cross_entropy")
    for name, layer in plain.items():
        assert (curved[name].samples, curved[name].inputs) == (layer.samples, layer.inputs) == (64, 64)
        assert torch.equal(curved[name].second_moment, layer.second_moment)
        assert torch.equal(curved[name].zero_fraction, layer.zero_fraction)


@pytest.mark.parametrize(("labels", "refused"), [([0, 3], False), ([1, 4], True), ([-1, 3], True)])
def test_labels_are_those_of_the_networks_outputs(labels, refused):
    curvature = LossCurvature(mlp(), "cross_entropy", ["4"])
    if refused:
        with pytest.raises(ValueError, match=rf"labels from {labels[0]} to {labels[1]}, the network has 4 outputs"):
            curvature.add(torch.randn(2, 16), torch.tensor(labels))
        return
    curvature.add(torch.randn(2, 16), torch.tensor(labels))
    assert curvature.result()["4"].shape == (4, 25)
