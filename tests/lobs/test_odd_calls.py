"""Calls that cannot mean anything: one sentence that names what was given, and nothing computed."""

import re

import pytest
import torch
from torch import nn

import lobs
from lobs.base.tensor_files import layer_file
from lobs.solvers import make

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))


def network(inputs=4, outputs=3):
    return nn.Sequential(nn.Linear(inputs, 6), nn.ReLU(), nn.Linear(6, outputs))


def collected(inputs=4):
    model = network(inputs)
    return model, lobs.collect_statistics(model, [torch.randn(32, inputs)])


class Named(nn.Module):
    """One layer under any name."""

    def __init__(self, name):
        super().__init__()
        self.add_module(name, nn.Linear(4, 3))

    def forward(self, inputs):
        return next(self.children())(inputs)


def collect(*batches, model=None, **options):
    return lobs.collect_statistics(network() if model is None else model, list(batches), **options)


def bound(model=None, pruned=None, statistics=None):
    plain, own = collected()
    return lobs.error_bound(
        plain if model is None else model,
        plain if pruned is None else pruned,
        own if statistics is None else statistics,
    )


def prune(method="lobs", **options):
    model, statistics = collected()
    return lobs.prune(model, statistics, method, density=0.5, **options)


def prune_another_kind():
    _, statistics = collected()
    same_numbers = nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1))
    return lobs.prune(same_numbers, statistics, "lobs", density=0.5)


def broken():
    model = network()
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    return model


# What is called, the error, and what its sentence says.
CALLS = {
    "integer inputs": (lambda: collect(X.long()), ValueError, r"\(2, 4\) torch.int64: .*parameters are torch.float32"),
    "float64 inputs": (lambda: collect(X.double()), ValueError, "torch.float64: .*parameters are torch.float32"),
    "float16, second batch": (lambda: collect(X, X.half()), ValueError, "torch.float16: .*parameters are torch.fl"),
    "complex inputs": (lambda: collect(X.cfloat()), ValueError, "torch.complex64: .*parameters are torch.float32"),
    "another shape": (lambda: collect(torch.randn(8, 5)), ValueError, r"the first batch of inputs \(2, 5\)"),
    "another shape, second batch": (lambda: collect(X, torch.randn(8, 5)), ValueError, r"a batch of inputs \(8, 5\)"),
    "meta inputs": (lambda: collect(X.to("meta")), TypeError, "tensor on the meta device, which has no values"),
    "meta inputs, second batch": (lambda: collect(X, X.to("meta")), TypeError, "tensor on the meta device"),
    "sparse inputs": (lambda: collect(X.to_sparse()), TypeError, r"sparse tensor \(torch.sparse_coo\).*to_dense"),
    "sparse inputs, second batch": (lambda: collect(X, X.to_sparse_csr()), TypeError, r"sparse tensor \(torch.spars"),
    "nested inputs": (lambda: collect(torch.nested.nested_tensor([X, X])), TypeError, "nested tensor"),
    "quantized inputs": (
        lambda: collect(torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)),
        TypeError,
        r"quantized tensor \(torch.qint8\).*dequantize",
    ),
    "large inputs": (lambda: collect(X * 1e19), ValueError, "infinite values, or some so large that .* overflows"),
    "NaN inputs": (lambda: collect(X * float("nan")), ValueError, "layer '0': its calibration inputs hold NaN or inf"),
    "a lazy layer": (lambda: collect(X, model=nn.Sequential(nn.LazyLinear(3))), ValueError, "layer '0' has no values"),
    "a meta network": (lambda: collect(X, model=network().to("meta")), ValueError, "layer '0' has no values yet"),
    "no inputs": (
        lambda: collect(torch.randn(8, 0), model=nn.Sequential(nn.Linear(0, 3))),
        ValueError,
        r"layer '0' has a weight of shape \(3, 0\).*exclude=\['0'\]",
    ),
    "no outputs": (
        lambda: collect(X, model=nn.Sequential(nn.Linear(4, 0))),
        ValueError,
        r"layer '0' has a weight of shape \(0, 4\)",
    ),
    "a weight that is no number": (lambda: collect(X, model=broken()), ValueError, "layer '0': its weight holds NaN"),
    "no module": (lambda: collect(X, model="net"), TypeError, r"must be a torch.nn.Module, got 'net' \(str\)"),
    "a class": (lambda: collect(X, model=nn.Linear), TypeError, "must be a torch.nn.Module, got <class"),
    "no module to prune": (lambda: lobs.prune("net", density=0.5), TypeError, "must be a torch.nn.Module, got 'net'"),
    "no module in the bound": (lambda: bound(model="net"), TypeError, "must be a torch.nn.Module, got 'net'"),
    "no layers": (lambda: collect(X, layers=[]), ValueError, r"layers=\[\] asks for no layer; the network has 0, 2"),
    "no layers to prune": (lambda: prune(layers=[]), ValueError, r"layers=\[\] leave no layer to prune"),
    "a number among layers": (lambda: collect(X, layers=[0]), TypeError, "layers must be a list .* got 0 among them"),
    "a single string": (lambda: collect(X, exclude="0"), TypeError, "exclude must be a list of names, got the single"),
    "limits in a list": (lambda: prune(limits=[("0", (0, 1))]), TypeError, "limits must map layer names .* got a list"),
    "one number as limits": (lambda: prune(limits={"0": 0.5}), TypeError, "limits must map .* got '0': 0.5"),
    "negative samples": (lambda: collect(X, keep_samples=-3), ValueError, "keep_samples must be at least 0, got -3"),
    "half samples": (lambda: collect(X, keep_samples=2.5), TypeError, "keep_samples must be a whole number.* got 2.5"),
    "memory in words": (lambda: collect(X, memory="2G"), TypeError, "memory must be a ceiling in bytes.*'2G'"),
    "endless memory": (lambda: collect(X, memory=float("inf")), ValueError, "memory is a ceiling .* got inf"),
    "a folder that is a number": (lambda: collect(X, folder=3), TypeError, "folder must be a path, got 3"),
    "progress gives nothing": (
        lambda: collect(X, progress=lambda items: None),
        TypeError,
        "progress must give back the iterable that it wraps .* got None",
    ),
    "progress gives nothing to prune": (lambda: prune(progress=lambda items: None), TypeError, "progress must give"),
    "progress drops batches": (
        lambda: collect(X, X, progress=lambda items: [next(iter(items))]),
        ValueError,
        "progress gave back 1 items and was given more",
    ),
    "progress drops layers": (
        lambda: prune(progress=lambda items: items[:1]),
        ValueError,
        "progress gave back 1 items",
    ),
    "progress is a number": (lambda: collect(X, progress=3), TypeError, "progress must be a function .* got 3"),
    "no statistics in the bound": (
        lambda: bound(statistics={}),
        TypeError,
        "statistics must come from lobs.collect_statistics, got dict",
    ),
    "another network's statistics": (
        lambda: bound(statistics=collected(5)[1]),
        ValueError,
        "layer '0': .* does not fit statistics of 5 inputs",
    ),
    "statistics of other names": (
        lambda: bound(statistics=collect(X, model=Named("a"))),
        ValueError,
        "the statistics hold layer 'a'; the networks have 0, 2",
    ),
    "another network in the bound": (
        lambda: bound(pruned=network(5)),
        ValueError,
        "layer '0': a weight .* does not fit",
    ),
    "another kind of layer": (
        prune_another_kind,
        ValueError,
        "layer '0': ConvolutionView of 4 axes does not fit statistics of LinearView of 2 axes",
    ),
}
OPTIONS = [
    ("net_trim", {"tolerance": -1.0}, ValueError, "tolerance is a relative residual, 0 or more; got -1.0"),
    ("net_trim", {"tolerance": "x"}, TypeError, "tolerance must be a relative residual, a number; got 'x'"),
    ("net_trim", {"iterations": -5}, ValueError, "iterations must be at least 1, got -5"),
    ("net_trim", {"bisections": -1}, ValueError, "bisections must be at least 0, got -1"),
    ("net_trim", {"resolve": "no"}, TypeError, "resolve must be True or False, got 'no'"),
    ("lobs", {"damping": -1.0}, ValueError, "damping must be >= 0.*got -1.0"),
    ("lobs", {"damping": float("nan")}, ValueError, "damping must be >= 0.*got nan"),
    ("lobs", {"alpha": 0.0}, ValueError, "alpha must be > 0.*got 0.0"),
    ("lobs", {"resolve": 2}, TypeError, "resolve must be True or False, got 2"),
    ("exact_obs", {"damping": None}, ValueError, "damping must be >= 0.*got None"),
    ("exact_obs", {"damping": "x"}, TypeError, "damping must be lambda .*, a number; got 'x'"),
    ("exact_obs", {"block": 0}, ValueError, "block must be at least 1, got 0"),
    ("exact_obs", {"block": 1.5}, TypeError, "block must be a whole number, 1 or more; got 1.5"),
    ("exact_obs", {"refine": "yes"}, TypeError, "refine must be True or False, got 'yes'"),
    ("exact_obs", {"precision": "half"}, ValueError, "precision must be one of float64, float32, auto, got 'half'"),
    ("sparsegpt", {"block_size": 0}, ValueError, "block_size must be at least 1, got 0"),
    ("sparsegpt", {"damping": float("inf")}, ValueError, "damping must be >= 0.*got inf"),
    ("random", {"seed": 0.5}, TypeError, "seed must be a whole number, 0 or more; got 0.5"),
    ("random", {"seed": -1}, ValueError, "seed must be at least 0, got -1"),
]


@pytest.mark.parametrize("what", CALLS)
def test_one_sentence_says_what_is_wrong(what):
    call, kind, sentence = CALLS[what]
    with pytest.raises(kind, match=sentence) as raised:
        call()
    assert type(raised.value) is kind
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("method", "options", "kind", "sentence"), OPTIONS, ids=str)
def test_options_that_mean_nothing_are_refused_at_once(method, options, kind, sentence):
    with pytest.raises(kind, match=sentence):
        make(method, **options)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("call", [lambda folder: collect(X, folder=folder), lambda folder: prune(folder=folder)])
def test_a_folder_that_is_a_file(tmp_path, call, inside):
    file = tmp_path / "file"
    file.write_text("mine")
    folder = file / "parts" if inside else file
    with pytest.raises(ValueError, match=re.escape(f"folder='{folder}' is ") + ".*a file: give a folder"):
        call(folder)
    assert file.read_text() == "mine"


def test_layer_names_of_any_length(tmp_path):
    names = ["a" * 300, "a" * 299 + "b", "ä" * 150]
    assert len({layer_file(tmp_path, name) for name in names}) == 3
    for name in names:
        model = Named(name)
        lobs.prune(model, None, "exact_obs", density=0.5, batches=[X], folder=tmp_path / str(len(name)) / name[-1])
        assert list(lobs.collect_statistics(model, [X], memory=1)[name].second_moment.shape) == [5, 5]


@pytest.mark.parametrize("options", [{"allocation": "relative"}, {"sequential": True, "batches": [X]}])
def test_a_part_with_another_layers_data_is_computed_again(tmp_path, options):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    statistics = lobs.collect_statistics(model, [X])
    wanted = lobs.prune(model, statistics, "exact_obs", density=0.5, folder=tmp_path, **options)
    first, second = sorted(file for file in tmp_path.rglob("*.safetensors") if file.parent.name != "statistics")[-2:]
    first.write_bytes(second.read_bytes())
    with pytest.warns(UserWarning, match="made from another layer or call: it is computed again"):
        found = lobs.prune(model, statistics, "exact_obs", density=0.5, folder=tmp_path, **options)
    assert all(torch.equal(found.masks[name], mask) for name, mask in wanted.masks.items())
