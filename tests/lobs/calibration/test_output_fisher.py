"""The Fisher information of pre-activations against autograd per image and label, and against measured divergence."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from lobs.calibration.output_fisher import mixed_gradient, output_sensitivity
from lobs.layers.matrix import unit_outputs
from lobs.layers.network import prunable_layers


def network(activation=nn.Tanh):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), activation(), nn.Flatten(), nn.Linear(48, 7), activation(), nn.Linear(7, 4)
    )
    return model.double()


def plain(model, inputs):
    """s_l by one gradient per image and label, weighted by the label's probability."""
    modules = prunable_layers(model)
    sums = dict.fromkeys(modules, 0.0)
    for image in inputs:
        outputs = {}
        handles = [
            module.register_forward_hook(lambda m, a, output, name=name, seen=outputs: seen.__setitem__(name, output))
            for name, module in modules.items()
        ]
        logs = model(image[None]).log_softmax(dim=1)[0]
        for handle in handles:
            handle.remove()
        for log in logs:
            gradients = torch.autograd.grad(-log, list(outputs.values()), retain_graph=True)
            for name, gradient in zip(outputs, gradients, strict=True):
                units = unit_outputs(modules[name], gradient)
                sums[name] += float(log.detach().exp() * units.square().sum(0).mean())
    return {name: total / len(inputs) for name, total in sums.items()}


def test_the_signs_average_to_the_fisher_information_of_the_logits():
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0]], dtype=torch.float64)
    p = logits.softmax(1)[0]
    draws = [mixed_gradient(logits, torch.tensor([signs]))[0] for signs in product((-1, 1), repeat=4)]
    mean = torch.stack([v.outer(v) for v in draws]).mean(0)
    torch.testing.assert_close(mean, p.diag() - p.outer(p))


def test_it_agrees_with_one_gradient_per_image_and_label():
    model = network()
    inputs = 2 * torch.randn(12, 1, 6, 6, dtype=torch.float64)
    exact = plain(model, inputs)
    repeated = [output_sensitivity(model, [inputs[:5], (inputs[5:], None)], seed=seed) for seed in range(200)]
    for name, value in exact.items():
        draws = torch.tensor([draw[name] for draw in repeated])
        assert abs(float(draws.mean()) - value) < 4 * float(draws.std()) / len(draws) ** 0.5
        assert float(draws.std()) < value
    assert list(repeated[0]) == list(exact)


@pytest.mark.parametrize("layer", ["0", "3", "5"])
def test_half_of_it_times_the_layer_error_is_the_divergence(layer):
    """Under its assumptions: small errors, the same everywhere, independent of each other and of the image."""
    model = network()
    inputs = torch.randn(300, 1, 6, 6, dtype=torch.float64)
    s = torch.tensor([output_sensitivity(model, [inputs], seed=seed)[layer] for seed in range(20)]).mean()
    dense = model(inputs).log_softmax(1).detach()
    noise = 1e-3
    divergences = []
    for _ in range(40):
        handle = model.get_submodule(layer).register_forward_hook(lambda m, a, out: out + noise * torch.randn_like(out))
        pruned = model(inputs).log_softmax(1).detach()
        handle.remove()
        divergences.append(functional.kl_div(pruned, dense, reduction="batchmean", log_target=True))
    units = prunable_layers(model)[layer].weight.shape[0]
    error = noise**2 * units  # mean over images and positions, sum over units
    assert float(torch.stack(divergences).mean()) == pytest.approx(float(s) * error / 2, rel=0.05)


def test_activations_in_place_and_frozen_weights_change_nothing():
    inputs = torch.randn(20, 1, 6, 6, dtype=torch.float64)
    expected = output_sensitivity(network(nn.ReLU), [inputs])
    model = network(lambda: nn.ReLU(inplace=True)).requires_grad_(False).train()
    with torch.no_grad():
        assert output_sensitivity(model, [inputs]) == pytest.approx(expected)
    assert model.training
    model = network(nn.ReLU)
    output_sensitivity(model, [inputs])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_chosen_layers_only_and_calls_add_up():
    model = network()
    inputs = torch.randn(8, 1, 6, 6, dtype=torch.float64)
    assert output_sensitivity(model, [inputs], ["3"]) == {"3": output_sensitivity(model, [inputs])["3"]}
    square = nn.Linear(5, 5).double()
    twice = nn.Sequential(square, nn.Tanh(), square)
    inputs = torch.randn(9, 5, dtype=torch.float64)
    assert output_sensitivity(twice, [inputs])["0"] > output_sensitivity(square, [inputs])[""]


def test_errors_are_named():
    model = network()
    with pytest.raises(ValueError, match="no calibration batch"):
        output_sensitivity(model, [])
    with pytest.raises(ValueError, match=r"outputs are the same for all calibration inputs.*allocation='relative'"):
        output_sensitivity(nn.Sequential(nn.Linear(2, 2), nn.Threshold(1e9, 1.0)), [torch.randn(3, 5, 2)])
    model.add_module("spare", nn.Identity())
    model.spare.inner = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"layer 'spare.inner' is never called"):
        output_sensitivity(model, [torch.randn(2, 1, 6, 6, dtype=torch.float64)], ["*"])
