"""Networks that strangers brought: weights that change by themselves, names, outputs, inputs that belong together."""

import pytest
import torch
from torch import nn

import lobs
from helpers.networks import net


class Positive(nn.Linear):
    """Keeps its weight positive by itself."""

    def forward(self, x):
        self.weight.data.clamp_(min=1e-3)
        return super().forward(x)


class Merged(nn.Linear):
    """Adds an adapter to its weight in evaluation mode, as loralib does."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.more, self.merged = nn.Parameter(torch.randn(outputs, inputs)), False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += -self.more.data if mode else self.more.data
            self.merged = not mode
        return self

    def forward(self, x):
        return super().forward(x) + (0 if self.merged else x @ self.more.T)


def sliced():
    model = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 16), nn.Linear(16, 28, bias=False))
    model[2].weight = nn.Parameter(model[0].weight.data[2:])
    return model, [torch.randint(30, (40,))]


@pytest.mark.parametrize(
    ("model", "batches", "message"),
    [
        (nn.Sequential(Positive(6, 20), nn.ReLU(), Positive(20, 3)), None, "'0': .* removed are not zero"),
        (nn.Sequential(Merged(6, 20), nn.ReLU(), nn.Linear(20, 3)), None, "'0': train.* of Merged changes its weight"),
        (*sliced(), "'2' shares its weight with 'weight' of '0'"),
    ],
    ids=["written", "merged", "sliced"],
)
def test_weights_whose_zeros_would_not_last_are_refused(model, batches, message):
    model.eval()
    with pytest.raises(ValueError, match=message):
        lobs.prune(model, batches=batches or [torch.randn(40, 6)], method="magnitude", density=0.3)


def test_a_train_of_its_own_is_not_called():
    model = nn.Sequential(Merged(6, 20), nn.ReLU(), nn.Linear(20, 3)).train()
    before = model[0].weight.detach().clone()
    result = lobs.prune(model, batches=[torch.randn(40, 6)], method="magnitude", density=0.3, exclude=["0"])
    assert list(result.masks) == ["2"]
    assert torch.equal(model[0].weight, before)
    assert model[0].training
    assert not model[0].merged


def test_autocast_inside_a_network_sees_the_weights_that_are_written():
    class Half(nn.Sequential):
        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(x)

    torch.manual_seed(0)
    model, batches = Half(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4)).eval(), list(torch.randn(120, 6).split(40))
    result = lobs.prune(model, batches=batches, method="exact_obs", density=0.3, sequential=True, refit=100)
    assert result.refit.after < 0.98 * result.refit.before


def test_a_name_with_brackets_is_no_pattern():
    def make(*names):
        parts = nn.ModuleDict({name: nn.Linear(6, 6) for name in names})
        return net(
            lambda self, x: self.head(sum(part(x) for part in self.parts.values()).relu()),
            parts=parts,
            head=nn.Linear(6, 2),
        )

    batches = [torch.randn(40, 6)]
    pruned = lobs.prune(make("a[0]", "a0"), batches=batches, method="magnitude", density=0.3, exclude=["parts.a[0]"])
    assert list(pruned.masks) == ["parts.a0", "head"]
    limits = {"parts.a[0]": (0.9, 1), "*": (0, 1)}
    kept = lobs.prune(make("a[0]", "a0"), batches=batches, method="magnitude", density=0.5, limits=limits)
    assert [layer.density > 0.85 for layer in kept.layers][:2] == [True, False]


def test_torchscript_is_refused_in_a_sentence():
    scripted = torch.jit.trace(nn.Sequential(nn.Linear(6, 6)), torch.randn(2, 6))
    for model, name in ((scripted, "model is"), (nn.Sequential(scripted, nn.Linear(6, 2)), "'0' of model is")):
        with pytest.raises(TypeError, match=f"{name} TorchScript, whose layers cannot be reached"):
            lobs.prune(model, batches=[torch.randn(40, 6)], density=0.3)


def test_layers_that_the_softmax_does_not_see_are_named():
    class Duel(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.value, self.advantage = nn.Linear(6, 16), nn.Linear(16, 1), nn.Linear(16, 4)

        def forward(self, x):
            h = self.trunk(x).relu()
            a = self.advantage(h)
            return self.value(h) + a - a.mean(1, keepdim=True)

    torch.manual_seed(0)
    model, batches = Duel().eval(), list(torch.randn(120, 6).split(40))
    with pytest.warns(UserWarning, match="nothing that layer 'value' does changes what is compared"):
        result = lobs.prune(model, batches=batches, method="exact_obs", density=0.5, allocation="global")
    assert any("layer 'value'" in note for note in result.notes)
    asked = {"density": 0.5, "allocation": "global", "output": lambda y: y.unsqueeze(1)}
    assert not any("'value'" in note for note in lobs.prune(model, batches=batches, method="exact_obs", **asked).notes)


def test_one_number_repeated_is_no_class_logits():
    model = net(lambda self, x: self.b(self.a(x).relu()).repeat(1, 5), a=nn.Linear(6, 16), b=nn.Linear(16, 1))
    result = lobs.prune(model, batches=list(torch.randn(120, 6).split(40)), density=0.4)
    assert result.distance == "relative"


def test_pairs_of_inputs_are_not_taken_apart():
    seen = []

    def forward(self, x):
        seen.append(x)
        h = self.a(x).relu().unflatten(0, (-1, 2))
        return self.b(torch.stack([h.flatten(1), h.flip(1).flatten(1)], 1).flatten(0, 1))

    model, x = net(forward, a=nn.Linear(6, 8), b=nn.Linear(16, 3)), torch.randn(96, 6)
    lobs.prune(model, batches=list(x.split(24)), density=0.4)
    given = {tuple(pair) for pair in x.unflatten(0, (-1, 2)).flatten(1).tolist()}
    wrong = [len({tuple(pair) for pair in rows.unflatten(0, (-1, 2)).flatten(1).tolist()} - given) for rows in seen]
    assert sum(wrong) <= 1  # the question whether they belong together


def test_a_graph_whose_nodes_belong_together_is_pruned_whole():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x, adjacent):
            return self.b((adjacent @ self.a(x)).relu())

    model = Graph().eval()
    batches = [((torch.randn(40, 6), torch.eye(40)), None) for _ in range(3)]
    for options in ({"method": "magnitude"}, {}):
        assert lobs.prune(model, batches=batches, density=0.4, **options).density == pytest.approx(0.4, abs=0.02)
