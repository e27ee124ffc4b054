"""What people bring, kind by kind: pruned right, or refused in one sentence that names what is wrong.

One row per kind: what is brought, and the words of the message; None where it has to be pruned right.
"""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torch.utils.data import DataLoader, TensorDataset

import lobs
from helpers.networks import (
    Answer,
    Cosine,
    Fresh,
    Padded,
    Pairs,
    Scaled,
    Standardised,
    X,
    Y,
    again_if_positive,
    cached,
    checkpointed,
    compiled,
    embedding,
    experts,
    in_inference_mode,
    mlp,
    net,
    no_grad_trunk,
    tied,
    tied_by_data,
    with_hook,
)
from lobs.layers.checks import check_layers


def brought(model, batches=None, **options):
    return model, {"batches": list(X.split(64)) if batches is None else batches, **options}


IMAGES = [torch.randn(8, 1, 4, 4)]
SEQUENCE = {"sequential": True}
GLOBAL = {"allocation": "global"}
COMPILED = r"is compiled \(torch.compile\).*_orig_mod"
NOT_ITS_PRODUCT = r"does not give its weight times its inputs|output positions"
KINDS = {
    # batches
    "a loader that shuffles, in sequence": (lambda: brought(mlp(), DataLoader(X, 64, shuffle=True), **SEQUENCE), None),
    "a loader that shuffles, global": (lambda: brought(mlp(), DataLoader(X, 64, shuffle=True), **GLOBAL), None),
    "random augmentation, in sequence": (lambda: brought(mlp(), Fresh(), **SEQUENCE, correct="bias"), None),
    "random augmentation that is not kept": (
        lambda: brought(mlp(), Fresh(), **SEQUENCE, memory=1000),
        r"batches gives other batches when it is read again \(batch 0 .* shuffling",
    ),
    "shuffling that is not kept": (
        lambda: brought(mlp(), DataLoader(X, 64, shuffle=True), **SEQUENCE, memory=1000),
        "batches gives other batches when it is read again",
    ),
    "an iterator, in sequence": (lambda: brought(mlp(), iter(X.split(64)), **SEQUENCE), "used up after one pass"),
    "workers": (lambda: brought(mlp(), DataLoader(X, 64, shuffle=True, num_workers=1), **SEQUENCE), None),
    "one tensor": (lambda: brought(mlp(), X), r"got one tensor of shape \(256, 16\): give \[tensor\]"),
    "one pair of inputs and labels": (
        lambda: brought(mlp(), (X, Y)),
        r"got one pair of an input .* \[\(input, target\)\]",
    ),
    "a data set instead of a loader": (lambda: brought(mlp(), Pairs()), r"data set Pairs of .*DataLoader\(dataset"),
    "a data set of tensors": (lambda: brought(mlp(), TensorDataset(X, Y)), "TensorDataset of single examples"),
    "a loader of pairs": (lambda: brought(mlp(), DataLoader(Pairs(), 64), **GLOBAL), None),
    "no batches": (lambda: brought(mlp(), []), "batches is empty"),
    "batches made in inference mode": (lambda: brought(mlp(), in_inference_mode(), allocation="fisher"), None),
    "inputs of another width": (lambda: brought(mlp(), [torch.randn(4, 9)]), r"cannot be run on .* \(2, 9\)"),
    "inputs that are not finite": (lambda: brought(mlp(), [X * float("nan")]), "layer '0': .*NaN"),
    "a network that changes its input in place": (
        lambda: brought(
            nn.Sequential(nn.ReLU(inplace=True), *mlp()).eval(), list(X.clone().split(64)), **SEQUENCE, correct="bias"
        ),
        None,
    ),
    # layers that are not what they seem
    "a convolution that pads by itself": (
        lambda: brought(nn.Sequential(Padded(1, 4, 3, 2)).eval(), IMAGES),
        None,
    ),
    "a convolution that standardises its weight": (
        lambda: brought(nn.Sequential(Standardised(1, 4, 3)).eval(), IMAGES),
        NOT_ITS_PRODUCT,
    ),
    "a layer that scales its output": (lambda: brought(nn.Sequential(Scaled(16, 4)).eval()), NOT_ITS_PRODUCT),
    "a cosine classifier": (lambda: brought(nn.Sequential(Cosine(16, 4)).eval()), NOT_ITS_PRODUCT),
    "such a layer, left out": (lambda: brought(nn.Sequential(*mlp(), Scaled(4, 4)).eval(), exclude=["5"]), None),
    "a hook that changes an output": (lambda: brought(with_hook(mlp(), "output")), NOT_ITS_PRODUCT),
    "a hook that changes an input": (lambda: brought(with_hook(mlp(), "input"), **SEQUENCE), None),
    "a compiled network": (lambda: brought(compiled("whole")), COMPILED),
    "a layer compiled in place": (lambda: brought(compiled("in place")), "its module '2' is compiled"),
    "whole units beside a way around them": (
        lambda: brought(
            net(
                lambda self, x: self.c(x + self.b(self.a(x).relu())),
                **{name: nn.Linear(16, 16) for name in "abc"},
            ),
            method="apoz",
        ),
        "layer 'c' does not simply follow layer 'b': it reads something beside its units",
    ),
    "whole units of a chain with norms": (
        lambda: brought(
            nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 4)).eval(),
            method="apoz",
        ),
        None,
    ),
    "calls by keyword": (lambda: brought(net(lambda self, x: self.a(input=x), a=nn.Linear(16, 4)), **SEQUENCE), None),
    # weights that are not parameters of their own
    "weight norm": (
        lambda: brought(nn.Sequential(parametrizations.weight_norm(nn.Linear(16, 4)))),
        r"layer '0': its weight is computed from .*remove_parametrizations\(module, 'weight'\)",
    ),
    "orthogonal weights": (
        lambda: brought(nn.Sequential(parametrizations.orthogonal(nn.Linear(16, 16)))),
        "remove_parametrizations",
    ),
    "spectral norm": (
        lambda: brought(nn.Sequential(parametrizations.spectral_norm(nn.Linear(16, 4))).eval()),
        "remove_parametrizations",
    ),
    "weight norm, old": (
        lambda: brought(nn.Sequential(nn.utils.weight_norm(nn.Linear(16, 4)))),
        r"torch.nn.utils.remove_weight_norm\(module, 'weight'\)",
    ),
    "spectral norm, old": (
        lambda: brought(nn.Sequential(nn.utils.spectral_norm(nn.Linear(16, 4))).eval()),
        r"torch.nn.utils.remove_spectral_norm\(module, 'weight'\)",
    ),
    "masks of torch.nn.utils.prune": (
        lambda: brought(nn.Sequential(torch_prune.l1_unstructured(nn.Linear(16, 4), "weight", 0.5))),
        r"torch.nn.utils.prune.remove\(module, 'weight'\)",
    ),
    "weight norm, left out": (
        lambda: brought(nn.Sequential(*mlp(), parametrizations.weight_norm(nn.Linear(4, 4))).eval(), exclude=["5"]),
        None,
    ),
    "a weight on the meta device": (
        lambda: brought(nn.Sequential(nn.Linear(16, 4, device="meta"))),
        r"layer '0' has no values yet",
    ),
    "a lazy layer": (lambda: brought(nn.Sequential(nn.LazyLinear(4))), r"layer '0' has no values yet"),
    "tied layers without biases": (lambda: brought(tied()), None),
    "tied layers with biases of their own": (lambda: brought(tied(bias=True)), None),
    "tied layers, in sequence": (lambda: brought(tied(bias=True), **SEQUENCE), None),
    "layers tied by their data": (lambda: brought(tied_by_data()), None),
    "a tied embedding": (lambda: brought(embedding()), r"shares its weight with 'weight' of 'embed' \(Embedding\)"),
    "a tied embedding, left out": (
        lambda: brought(nn.Sequential(embedding(), nn.Linear(16, 4)).eval(), exclude=["0.head"]),
        None,
    ),
    "a weight used by a function, too": (
        lambda: brought(net(lambda self, x: functional.linear(self.a(x), self.a.weight.t()), a=nn.Linear(16, 8))),
        "its weight or bias is used outside of it, too, by mm",
    ),
    "a tensor with a graph in the network": (lambda: brought(cached()), r"'memory' of its module '' .* detach"),
    # outputs
    "one logit": (lambda: brought(mlp(1), **GLOBAL), None),
    "one logit, by Fisher information": (lambda: brought(mlp(1), allocation="fisher"), None),
    "a regression": (lambda: brought(mlp(3), [(x, torch.randn(64, 3)) for x in X.split(64)], **GLOBAL), None),
    "a dictionary of outputs": (
        lambda: brought(net(lambda self, x: {"y": self.m(x)}, m=mlp()), **GLOBAL, sequential=True, correct="auto"),
        None,
    ),
    "two outputs": (lambda: brought(net(lambda self, x: (self.m(x), self.m(-x).exp()), m=mlp()), **GLOBAL), None),
    "a dataclass": (lambda: brought(net(lambda self, x: Answer(self.m(x), x), m=mlp()), **GLOBAL), None),
    "maps": (lambda: brought(nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 2, 1)).eval(), IMAGES, **GLOBAL), None),
    "dropout in a dictionary": (
        lambda: brought(net(lambda self, x: {"y": functional.dropout(self.m(x), 0.5, True)}, m=mlp())),
        "answers the same inputs differently",
    ),
    "dropout in a dataclass": (
        lambda: brought(net(lambda self, x: Answer(functional.dropout(self.m(x), 0.5, True), x), m=mlp())),
        "answers the same inputs differently",
    ),
    "outputs that never change": (
        lambda: brought(net(lambda self, x: (0 * self.m(x)).sum(1), m=mlp()), **GLOBAL),
        "outputs are the same for all calibration inputs",
    ),
    "a trunk without gradients": (
        lambda: brought(no_grad_trunk(), allocation="fisher"),
        r"layer 'a': no gradient reaches it .* allocation='relative'",
    ),
    "a trunk without gradients, compared": (lambda: brought(no_grad_trunk(), **GLOBAL), None),
    "a reentrant checkpoint": (
        lambda: brought(checkpointed(True), allocation="fisher"),
        "layer '.': no gradient reaches it",
    ),
    "a checkpoint": (lambda: brought(checkpointed(False), allocation="fisher"), None),
    # budgets and choices
    "a layer that would be wiped out": (lambda: brought(mlp(), density=0.01, allocation="relative"), None),
    "a density below one weight a layer": (
        lambda: brought(mlp(), density=0.001, allocation="relative"),
        r"one weight per layer .* limits=\{'\*': \(0, 1\)\}",
    ),
    "everything excluded": (lambda: brought(mlp(), exclude=["*"]), r"exclude=\['\*'\] leaves no layer"),
    "no layers": (lambda: brought(mlp(), layers=[]), r"no layer"),
    "an expert without rows": (lambda: brought(experts(True)), None),
    "experts, in sequence": (
        lambda: brought(nn.Sequential(mlp(16), experts(False)).eval(), **SEQUENCE),
        "mixture of experts|depending on the data",
    ),
    "a layer called again where the data ask for it, in sequence": (
        lambda: brought(again_if_positive(), [-X.abs(), X.abs() + 1], **SEQUENCE, memory=1000),
        "layer 'a' is called 2 times in a forward pass and once in the first",
    ),
    "a layer called again where the data ask for it": (
        lambda: brought(again_if_positive(), [-X.abs(), X.abs() + 1]),
        None,
    ),
    "half precision": (lambda: brought(mlp().bfloat16(), [x.bfloat16() for x in X.split(64)], **SEQUENCE), None),
    "float64": (lambda: brought(mlp().double(), [x.double() for x in X.split(64)], **GLOBAL), None),
    "a pruned network": (
        lambda: brought(lobs.prune(mlp(), batches=[X], method="exact_obs", density=0.5).model, **SEQUENCE),
        None,
    ),
    "a network on which autograd is off": (lambda: brought(mlp().requires_grad_(False), allocation="fisher"), None),
    "no module": (lambda: brought(lambda x: x), "model must be a torch.nn.Module"),
    "no layer to prune": (lambda: brought(nn.Sequential(nn.ReLU())), "has no layer to prune"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_pruned_right_or_refused(kind):
    make, message = KINDS[kind]
    model, options = make()
    options = {"method": "exact_obs", "density": 0.3, **options}
    before = copy.deepcopy(model.state_dict()) if isinstance(model, nn.Module) and message is None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if message is not None:
            with pytest.raises((ValueError, TypeError), match=message) as caught:
                lobs.prune(model, **options)
            assert len(str(caught.value).split()) >= 6
            assert "\n" not in str(caught.value)
            return
        result = lobs.prune(model, **options)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "the network given was changed"
    batch = next(iter(options["batches"]))
    inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
    check_layers(result.model, inputs, list(result.masks))
    for record in result.layers:
        weight = result.model.get_submodule(record.name).weight
        assert not (weight[~result.masks[record.name]] != 0).any(), record.name
        assert record.kept == int(result.masks[record.name].sum()) > 0
    assert result.density <= options["density"] + 1e-9
    with torch.no_grad():
        outputs = lobs.calibration.outputs.output_tensors(result.model(inputs))
    assert all(part.isfinite().all() for part in outputs)


@pytest.mark.parametrize("kind", ["one logit", "a regression", "maps", "two outputs"])
def test_shares_that_are_measured_are_no_worse_than_uniform_ones(kind):
    model, options = KINDS[kind][0]()
    options = {**options, "method": "exact_obs", "density": 0.2}
    measure = lobs.allocation.output_distance.OutputDistance(model, options["batches"])
    for sequential in (False, True):
        found = [
            measure.of_network(lobs.prune(model, **{**options, "allocation": name, "sequential": sequential}).model)
            for name in ("global", "uniform")
        ]
        assert found[0] <= found[1] * 1.0001


def test_a_folder_belongs_to_its_call(tmp_path):
    model, options = mlp(), {"method": "exact_obs", "density": 0.3, "sequential": True, "folder": tmp_path}
    batches = list(X.split(64))
    first = lobs.prune(model, batches=batches, **options)
    again = lobs.prune(model, batches=batches, **options)
    assert all(torch.equal(first.masks[name], mask) for name, mask in again.masks.items())
    other = mlp()
    with torch.no_grad():
        other[0].weight[0, 0] += 1
    for changed in (
        {"density": 0.1},
        {"method": "lobs"},
        {"method": lobs.solvers.make("exact_obs", damping=0.5)},
        {"correct": "bias"},
        {"exclude": ["0"]},
        {"batches": batches[1:]},
        {"batches": [batch + 1 for batch in batches]},
    ):
        with pytest.raises(ValueError, match=r"holds parts of another call: .* differ.* a folder of its own"):
            lobs.prune(model, **{"batches": batches, **options, **changed})
    with pytest.raises(ValueError, match=r"holds parts of another call: .*network"):
        lobs.prune(other, batches=batches, **options)
    with pytest.raises(ValueError, match=r"holds files and no call.json"):
        (tmp_path / "call.json").unlink()
        lobs.prune(model, batches=batches, **options)


def test_a_folder_of_statistics_belongs_to_its_call(tmp_path):
    model, batches = mlp(), list(X.split(64))
    first = lobs.collect_statistics(model, batches, folder=tmp_path)
    again = lobs.collect_statistics(model, batches, folder=tmp_path)
    assert all(torch.equal(first[name].second_moment, again[name].second_moment) for name in first)
    for changed in ({"batches": batches[:2]}, {"keep_samples": 5}, {"layers": ["0"]}, {"model": mlp(5)}):
        with pytest.raises(ValueError, match="holds parts of another call"):
            lobs.collect_statistics(**{"model": model, "batches": batches, "folder": tmp_path, **changed})


def test_tied_layers_are_pruned_once_on_the_sum_of_their_statistics():
    model = tied()
    statistics = lobs.collect_statistics(model, [X])
    assert list(statistics) == ["a"]
    seen = torch.cat([X, torch.relu(model.a(X))]).double().detach()
    torch.testing.assert_close(statistics["a"].second_moment, seen.T @ seen / len(seen), rtol=1e-5, atol=1e-6)
    result = lobs.prune(model, statistics, "exact_obs", density=0.3)
    assert [record.name for record in result.layers] == ["a"]
    assert result.model.b.weight is result.model.a.weight
    assert result.weights == 16 * 16
    assert not result.unpruned


def test_labels_beyond_the_outputs_and_targets_of_another_shape():
    with pytest.raises(ValueError, match="labels from 0 to 9, the network has 4 outputs"):
        lobs.collect_statistics(mlp(), [(X, torch.arange(256) % 10)], loss="cross_entropy")
    with pytest.raises(ValueError, match=r"outputs \(256, 4\) with targets \(256,\)"):
        lobs.collect_statistics(mlp(), [(X, torch.randn(256))], loss="mse")


def test_the_last_layer_and_the_bound_know_the_layers_that_were_not_collected():
    model = mlp()
    some = lobs.collect_statistics(model, [X], layers=["0"])
    assert not some["0"].last
    assert some.calls.called == ["0", "2", "4"]
    with pytest.warns(UserWarning, match="no statistics of it"):
        result = lobs.prune(model, some, "magnitude", density=0.3)
    everything = lobs.collect_statistics(model, [X])
    whole = lobs.error_bound(model, result.model, everything)
    assert lobs.error_bound(model, result.model, some).total == pytest.approx(whole.total)


def test_weights_that_were_removed_stay_removed():
    batches = list(X.split(64))
    first = lobs.prune(mlp(), batches=batches, method="exact_obs", density=0.4, sequential=True)
    for method in lobs.methods():
        if method in ("apoz", "obd"):
            continue
        for sequential in (False, True):
            options = {"sequential": sequential, "keep_samples": 100}
            second = lobs.prune(first.model, batches=batches, method=method, density=0.25, **options)
            for name, mask in first.masks.items():
                assert not (second.masks[name] & ~mask).any(), (method, name)
                assert not (second.model.get_submodule(name).weight[~mask] != 0).any(), (method, name)
    fuller = lobs.prune(first.model, batches=batches, method="exact_obs", density=0.8)
    assert fuller.density == pytest.approx(first.density)
