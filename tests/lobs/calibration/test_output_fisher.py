"""The Fisher information of pre-activations against autograd per image and label, and against measured divergence."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from helpers.networks import Normalised
from lobs.calibration.output_fisher import Sensitivity, _Sums, mixed_gradient, output_sensitivity, sensitivity_note
from lobs.layers.matrix import unit_outputs
from lobs.layers.network import prunable_layers


def network(activation=nn.Tanh):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), activation(), nn.Flatten(), nn.Linear(48, 7), activation(), nn.Linear(7, 4)
    )
    return model.double()


def by_label(model, inputs):
    """g_i together and apart by one gradient per image and label, weighted by the label's probability."""
    modules = prunable_layers(model)
    sums = {name: [0.0, 0.0] for name in modules}
    for image in inputs:
        calls = []
        handles = [
            module.register_forward_hook(lambda m, a, output, name=name, seen=calls: seen.append((name, output)))
            for name, module in modules.items()
        ]
        logs = model(image[None]).log_softmax(dim=1)[0]
        for handle in handles:
            handle.remove()
        for log in logs:
            gradients = torch.autograd.grad(-log, [output for _, output in calls], retain_graph=True)
            positions = {}
            for (name, _), gradient in zip(calls, gradients, strict=True):
                positions.setdefault(name, []).append(unit_outputs(modules[name], gradient))
            for name, parts in positions.items():
                rows, p = torch.cat(parts), float(log.detach().exp())
                sums[name][0] += p * rows.sum(0).square() / len(inputs)
                sums[name][1] += p * rows.square().sum(0) / len(inputs)
    return {name: Sensitivity(*parts) for name, parts in sums.items()}


def over_signs(model, batches, seeds):
    """Means and standard errors over draws of the signs, by layer: both kinds stacked, ``[2, out]``."""
    draws = [output_sensitivity(model, batches, seed=seed) for seed in range(seeds)]
    stacked = {name: torch.stack([torch.stack([d[name].together, d[name].apart]) for d in draws]) for name in draws[0]}
    return {name: (values.mean(0), values.std(0) / seeds**0.5) for name, values in stacked.items()}


def same(one, other):
    assert list(one) == list(other)
    for name, found in one.items():
        torch.testing.assert_close(found.together, other[name].together)
        torch.testing.assert_close(found.apart, other[name].apart)


def test_the_signs_average_to_the_fisher_information_of_the_logits():
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0]], dtype=torch.float64)
    p = logits.softmax(1)[0]
    draws = [mixed_gradient(logits, torch.tensor([signs]))[0] for signs in product((-1, 1), repeat=4)]
    mean = torch.stack([v.outer(v) for v in draws]).mean(0)
    torch.testing.assert_close(mean, p.diag() - p.outer(p))


class Shared(nn.Module):
    """A layer that is called twice and one that reads both answers."""

    def __init__(self):
        super().__init__()
        self.square, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.square(torch.tanh(self.square(x)))))


class Tokens(nn.Module):
    """A Linear layer on every token of an image."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.token(x)).mean(1))


CASES = {
    "convolution": (network, (12, 1, 6, 6)),
    "called twice": (lambda: seeded(Shared), (12, 5)),
    "tokens": (lambda: seeded(Tokens), (12, 7, 4)),
}


def seeded(kind):
    torch.manual_seed(0)
    return kind().double()


@pytest.mark.parametrize("kind", CASES)
def test_it_agrees_with_one_gradient_per_image_position_and_label(kind):
    make, shape = CASES[kind]
    model, inputs = make(), 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = by_label(model, inputs)
    found = over_signs(model, [inputs[:5], (inputs[5:], None)], 200)
    assert list(found) == list(exact)
    for name, (mean, error) in found.items():
        expected = torch.stack([exact[name].together, exact[name].apart])
        assert ((mean - expected).abs() < 4.5 * error).all()
        assert (error * 200**0.5 < 2 * expected).all()


@pytest.mark.parametrize("kind", CASES)
def test_positions_are_those_of_one_image(kind):
    """On one image and with signs that are known, both are sums over the rows of one gradient."""
    make, shape = CASES[kind]
    model, inputs = make(), torch.randn((1, *shape[1:]), generator=torch.Generator().manual_seed(1)).double()
    modules, calls = prunable_layers(model), []
    handles = [m.register_forward_hook(lambda m, a, o, n=n: calls.append((n, o))) for n, m in modules.items()]
    logits = model(inputs)
    for handle in handles:
        handle.remove()
    signs = torch.randint(0, 2, logits.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    gradients = torch.autograd.grad(logits, [o for _, o in calls], mixed_gradient(logits.detach(), signs))
    for name, found in output_sensitivity(model, [inputs], seed=0).items():
        pairs = zip(calls, gradients, strict=True)
        rows = torch.cat([unit_outputs(modules[name], part) for (called, _), part in pairs if called == name])
        torch.testing.assert_close(found.together, rows.sum(0).square())
        torch.testing.assert_close(found.apart, rows.square().sum(0))


def test_on_a_vector_both_are_the_same():
    found = output_sensitivity(network(), [torch.randn(9, 1, 6, 6, dtype=torch.float64)])
    assert not torch.equal(found["0"].together, found["0"].apart)
    for name in ("3", "5"):
        torch.testing.assert_close(found[name].together, found[name].apart)


class Routed(nn.Module):
    """Only some rows reach the layer: nothing says which image they are of."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        rows = x.flatten(0, 1)
        chosen = rows[:, 0] > rows[:, 0].median()
        answers = rows.new_zeros(len(rows), 6)
        answers[chosen] = torch.tanh(self.token(rows[chosen]))
        return self.head(answers.unflatten(0, x.shape[:2]).sum(1))


def test_rows_that_do_not_fit_the_images_are_apart():
    inputs = torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model, seen = seeded(Routed), []
    handle = model.token.register_forward_hook(lambda m, a, output: seen.append(len(output)))
    found = output_sensitivity(model, [inputs])
    handle.remove()
    assert seen[0] % len(inputs), "the example shows nothing"
    assert torch.equal(found["token"].together, found["token"].apart)
    assert (found["token"].apart > 0).all()


@pytest.mark.parametrize("layer", ["0", "3", "5"])
def test_half_of_it_times_the_layer_error_is_the_divergence(layer):
    """Under its assumptions: small errors, the same everywhere, independent of each other and of the image."""
    model = network()
    inputs = torch.randn(300, 1, 6, 6, dtype=torch.float64)
    s = over_signs(model, [inputs], 20)[layer][0][1].mean()  # apart: every position has noise of its own
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


@pytest.mark.parametrize("unit", [0, 2])
def test_half_of_a_units_own_times_its_error_is_the_divergence(unit):
    """Errors that are the same at all positions of an image, and those that have nothing in common."""
    model, noise = network(), 1e-3
    inputs = torch.randn(300, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dense = model(inputs).log_softmax(1).detach()
    generator = torch.Generator().manual_seed(2)
    for kind, shape in enumerate([(300, 1, 1), (300, 4, 4)]):
        divergences = []
        for _ in range(40):

            def noisy(module, args, output, shape=shape):
                output[:, unit] += noise * torch.randn(shape, generator=generator, dtype=torch.float64)

            handle = model[0].register_forward_hook(noisy)
            pruned = model(inputs).log_softmax(1).detach()
            handle.remove()
            divergences.append(functional.kl_div(pruned, dense, reduction="batchmean", log_target=True))
        g = float(over_signs(model, [inputs], 20)["0"][0][kind, unit])
        assert float(torch.stack(divergences).mean()) == pytest.approx(g * noise**2 / 2, rel=0.06)


def test_activations_in_place_and_frozen_weights_change_nothing():
    inputs = torch.randn(20, 1, 6, 6, dtype=torch.float64)
    expected = output_sensitivity(network(nn.ReLU), [inputs])
    model = network(lambda: nn.ReLU(inplace=True)).requires_grad_(False).train()
    with torch.no_grad():
        same(output_sensitivity(model, [inputs]), expected)
    assert model.training
    model = network(nn.ReLU)
    output_sensitivity(model, [inputs])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_chosen_layers_only_and_calls_add_up():
    model = network()
    inputs = torch.randn(8, 1, 6, 6, dtype=torch.float64)
    same(output_sensitivity(model, [inputs], ["3"]), {"3": output_sensitivity(model, [inputs])["3"]})
    square = nn.Linear(5, 5).double()
    twice = nn.Sequential(square, nn.Tanh(), square)
    inputs = torch.randn(9, 5, dtype=torch.float64)
    once = output_sensitivity(square, [inputs])[""]
    assert float(output_sensitivity(twice, [inputs])["0"].apart.mean()) > float(once.apart.mean())


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


def test_an_input_without_a_finite_gradient_does_not_count_and_is_counted():
    torch.manual_seed(0)
    model = Normalised(6, 5, 3).double()
    inputs = torch.randn(20, 6, dtype=torch.float64)
    with_zero = torch.cat([inputs, torch.zeros(1, 6, dtype=torch.float64)])  # the last one: the same signs
    plain, found = (output_sensitivity(model, [batch]) for batch in (inputs, with_zero))
    assert (found["0"].left_out, found["1"].left_out, plain["0"].left_out) == (1, 0, 0)
    assert torch.allclose(found["0"].together, plain["0"].together)
    assert torch.allclose(found["0"].apart, plain["0"].apart)
    with pytest.raises(ValueError, match=r"layer '0': its gradient .* is NaN or infinite for every input"):
        output_sensitivity(model, [torch.zeros(3, 6, dtype=torch.float64)])


def test_where_outputs_are_no_logits_the_squared_distance_over_their_spread_is_taken():
    """Its curvature is 2 / spread in every output, exactly, whatever the signs; spreads are those of all batches."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2))).double()
    inputs = torch.randn(9, 3, dtype=torch.float64)
    outputs = model(inputs).detach()
    spread = float((outputs - outputs.mean(0)).square().sum()) / 9
    for seed in (0, 1):
        (found,) = output_sensitivity(model, inputs.split(4), seed=seed).values()
        expected = torch.full((4,), 2 / spread, dtype=torch.float64)
        torch.testing.assert_close(found.together, expected)
        torch.testing.assert_close(found.apart, expected)


def test_outputs_without_a_graph_are_left_out():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, x):
            return 3 * x.detach(), self.head(x), x.detach()

    torch.manual_seed(0)
    model, inputs = Both().double(), torch.randn(9, 3, dtype=torch.float64)
    outputs = model.head(inputs).detach()
    spread = float((outputs - outputs.mean(0)).square().sum()) / 9
    found = output_sensitivity(model, [inputs])["head"].together
    torch.testing.assert_close(found, torch.full((4,), 2 / spread, dtype=torch.float64))


class Branch(nn.Module):
    """A layer whose second call is not looked at, one that only numbers without a gradient come from, and a third."""

    def __init__(self, cut):
        super().__init__()
        self.cut, self.first, self.chosen, self.head = cut, nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 4)

    def forward(self, x):
        index = self.first(2 * x).argmax(1)
        hidden = self.first(x) + index[:, None]
        return self.head(hidden + (self.chosen(hidden).detach() if self.cut else self.chosen(hidden)))


def test_a_call_that_is_not_looked_at_counts_nothing_and_a_layer_that_no_gradient_reaches_is_named():
    torch.manual_seed(0)
    inputs = torch.randn(6, 3)
    model = Branch(False)
    found = output_sensitivity(model, [inputs])

    class Once(Branch):
        def forward(self, x):
            with torch.no_grad():
                index = nn.functional.linear(2 * x, self.first.weight, self.first.bias).argmax(1)
            hidden = self.first(x) + index[:, None]
            return self.head(hidden + self.chosen(hidden))

    once = Once(False)
    once.load_state_dict(model.state_dict())
    same(found, output_sensitivity(once, [inputs]))
    message = r"layer 'chosen': no gradient reaches it from the network's outputs .*on the way\), so that its sensitiv"
    with pytest.raises(ValueError, match=message):
        output_sensitivity(Branch(True), [inputs])
    with pytest.raises(ValueError, match=r"layer '0': no gradient .*on the way, the outputs have no graph\), so that"):
        output_sensitivity(nn.Sequential(nn.Linear(3, 4), Detached()), [inputs])


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()


def sensitivity(*together, left_out=0):
    return Sensitivity(torch.tensor(together), torch.tensor(together), left_out)


def test_what_does_not_count_is_noted():
    fine = {"a": sensitivity(1.0, 0.0), "b": sensitivity(2e-10, 0.0)}
    assert sensitivity_note(fine) is None
    left_out = sensitivity_note({"a": sensitivity(1.0, left_out=2), "b": sensitivity(1.0, left_out=3)})
    assert left_out.startswith("the gradients of 3 inputs are NaN or infinite at layer 'b'")
    blind = sensitivity_note({"a": sensitivity(0.0, 2.0), "b": sensitivity(1e-10, 0.0), "c": sensitivity(3e-10)})
    assert blind.startswith("nothing that layer 'b' does changes what is compared")
    nothing = sensitivity_note({"a": sensitivity(0.0), "b": sensitivity(0.0)})
    assert nothing.startswith("nothing that layer 'a', 'b' does")
    three = {"a": sensitivity(1.0), **{name: sensitivity(0.0) for name in "bcd"}}
    assert sensitivity_note(three).startswith("nothing that layer 'b', 'c', 'd' does")
    four = sensitivity_note({**three, "e": sensitivity(0.0, left_out=1)})
    assert four.startswith("the gradients of 1 inputs are")
    assert "; nothing that layer 'b', 'c', 'd' and others does" in four


def test_rows_of_no_image_in_particular_are_left_out_together():
    """Three rows of two images: where one is not finite, none of the batch's images counts."""
    sums = _Sums()
    sums.add([torch.tensor([[1.0], [2.0], [3.0]]).double()], 2)
    sums.add([torch.tensor([[1.0], [torch.nan], [3.0]]).double()], 2)
    sums.add([torch.tensor([[1.0], [torch.inf], [3.0], [4.0]]).double()], 2)
    found = sums.means("any")
    assert found.left_out == 3
    # 1 + 4 + 9 of two images, and 9 + 16, or (3 + 4)^2 where rows belong to an image, of one.
    assert found.apart.tolist() == [(14 + 25) / 3]
    assert found.together.tolist() == [(14 + 49) / 3]
