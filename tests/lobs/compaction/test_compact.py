"""Compaction: the function stays, what is dead leaves, and what has to stay stays."""

import copy
from dataclasses import dataclass

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

import lobs
from helpers.compaction import ConvNet, Depthwise, Residual, kill
from lobs_paper.networks.lenet5 import LeNet5
from lobs_paper.networks.lenet300 import LeNet300


class Methods(nn.Module):
    """Methods, in-place steps and layouts; a constant that nobody needs makes no bias."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.one(x).contiguous(memory_format=torch.channels_last).relu_()
        x = self.two(x).clone().sigmoid()
        x -= 0.5
        count = x.shape[0]
        return self.head(functional.avg_pool2d(x, 4).reshape((count, -1)))


class Branches(nn.Module):
    """Concatenation, a gate, scalars, and functions in the place of modules."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.gate = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 5, 3), nn.Conv2d(11, 11, 1)
        self.mix, self.head = nn.Conv2d(11, 8, 3), nn.Linear(8 * 4 * 4, 5)

    def forward(self, x):
        x = torch.cat([functional.silu(self.left(x)), torch.tanh(self.right(x)) * 2 - 0.5], dim=1)
        x = x * torch.sigmoid(self.gate(functional.adaptive_avg_pool2d(x, 1)))
        x = functional.max_pool2d(functional.leaky_relu(self.mix(x), 0.1), 2)
        x = functional.dropout(x, 0.5, training=self.training)
        return self.head(x.view(x.size(0), -1))


NETWORKS = {
    "lenet300": (LeNet300, (1, 28, 28)),
    "lenet5": (LeNet5, (1, 28, 28)),
    "convolutions with batch norm": (ConvNet, (3, 16, 16)),
    "zero padding": (lambda: ConvNet(padding=1), (3, 16, 16)),
    "an activation that does not keep zero": (lambda: ConvNet(padding=1, act=nn.Sigmoid), (3, 16, 16)),
    "PReLU": (lambda: ConvNet(act=nn.PReLU), (3, 16, 16)),
    "residual": (Residual, (3, 8, 8)),
    "depthwise": (Depthwise, (3, 9, 9)),
    "groups of four": (lambda: Depthwise(groups=2), (3, 9, 9)),
    "methods": (Methods, (3, 8, 8)),
    "branches": (Branches, (3, 12, 12)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_and_the_network_shrinks(name, dtype):
    build, shape = NETWORKS[name]
    model = kill(build()).to(dtype)
    before = copy.deepcopy(model.state_dict())
    result = lobs.compact(model, torch.randn(2, *shape, dtype=dtype))
    inputs = torch.randn(7, *shape, dtype=dtype)
    assert (model(inputs) - result.model(inputs)).abs().max() < (1e-12 if dtype == torch.float64 else 1e-5)
    assert sum(result.removed.values()) > 0
    assert result.parameters_left == sum(entry.numel() for entry in result.model.parameters()) < result.parameters
    assert result.difference < 1e-5
    assert type(result.model) is type(model)
    assert all(torch.equal(entry, before[key]) for key, entry in model.state_dict().items())
    for key, size in result.layers.items():
        layer = result.model.get_submodule(key)
        units = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        assert units == layer.weight.shape[0] == size.units - len(size.removed_units)


@pytest.mark.parametrize("name", NETWORKS)
def test_compacting_twice_finds_nothing_more(name):
    build, shape = NETWORKS[name]
    once = lobs.compact(kill(build()), torch.randn(2, *shape))
    twice = lobs.compact(once.model, torch.randn(2, *shape))
    assert twice.parameters_left == once.parameters_left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 64), ("vgg16_bn", 32), ("alexnet", 224), ("efficientnet_lite0", 64)]
)
def test_networks_of_torchvision_and_efficientnet_lite_shrink(name, size):
    if name == "efficientnet_lite0":
        from efficientnet_lite_pytorch import EfficientNet

        model = EfficientNet.from_name("efficientnet-lite0")
    else:
        model = torchvision.models.get_model(name)
    kill(model)
    result = lobs.compact(model, torch.randn(2, 3, size, size))
    inputs = torch.randn(3, 3, size, size)
    with torch.no_grad():
        assert (model(inputs) - result.model(inputs)).abs().max() < 1e-5
    assert result.parameters_left < 0.8 * result.parameters


def alive(model):
    """Fresh networks with scales and heads that are not all but zero."""
    for name, entry in model.named_parameters():
        if "layer_scale" in name or name.startswith(("heads", "class_token")):
            nn.init.normal_(entry, std=0.3)
    return model.double().eval()


@pytest.mark.slow
@torch.no_grad()
def test_a_convnext_loses_hidden_units_and_says_which_channels_stay():
    model = alive(torchvision.models.convnext_tiny(num_classes=5))
    for place, stage in enumerate((1, 3, 5, 7)):
        up, down = model.features[stage][0].block[3], model.features[stage][0].block[5]
        up.weight[:50] = 0
        down.weight[:, 100 : 120 + place] = 0
        down.weight[7] = 0
    result = lobs.compact(model, torch.randn(1, 3, 32, 32).double())
    for place, stage in enumerate((1, 3, 5, 7)):
        up, down = (f"features.{stage}.0.block.{layer}" for layer in (3, 5))
        assert result.layers[up].removed_units == (*range(50), *range(100, 120 + place))
        assert result.model.get_submodule(down).in_features == model.get_submodule(down).in_features - 70 - place
        ((reason, units),) = result.staying[down].items()
        assert "LayerNorm" in reason
        assert units == (7,)
    removed = sum(70 * (2 * width + 1) + place * (2 * width + 1) for place, width in enumerate((96, 192, 384, 768)))
    assert result.parameters - result.parameters_left == removed
    inputs = torch.randn(2, 3, 64, 64).double()
    torch.testing.assert_close(result.model(inputs), model(inputs))


@torch.no_grad()
def test_a_vision_transformer_loses_heads_and_hidden_units():
    model = alive(torchvision.models.VisionTransformer(32, 8, 2, 4, 24, 48, num_classes=5))
    for layer in model.encoder.layers:
        layer.self_attention.in_proj_weight[2 * 24 + 6 : 2 * 24 + 12] = 0
        layer.self_attention.in_proj_bias.normal_()
        layer.self_attention.out_proj.weight[:, 18:] = 0
        layer.mlp[0].weight[:9] = 0
        layer.mlp[3].weight[:, 20:25] = 0
    result = lobs.compact(model, torch.randn(2, 3, 32, 32).double())
    for layer in result.model.encoder.layers:
        assert layer.self_attention.kept_heads.tolist() == [0, 2]
        assert layer.mlp[0].out_features == layer.mlp[3].in_features == 34
    each = 12 * (3 * 25 + 24) + 14 * (25 + 24)
    assert result.parameters - result.parameters_left == 2 * each
    inputs = torch.randn(3, 3, 32, 32).double()
    torch.testing.assert_close(result.model(inputs), model(inputs))


def test_layers_that_are_not_followed_say_why_their_empty_units_stay():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.spare = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(6, 6)

        def forward(self, x):
            x = self.two(self.one(torch.relu(self.one(x))))
            return self.spare(x) if self.training else x

    model = Twice()
    model.one.weight.data[1] = 0.0
    model.two.weight.data[2] = 0.0
    model.spare.weight.data[3] = 0.0
    assert lobs.compact(model, torch.randn(2, 6)).staying == {
        "one": {"is called more than once, has hooks or shares its weights": (1,)},
        "two": {"is an output of the network": (2,)},
        "spare": {"is not used in evaluation mode": (3,)},
    }


def test_a_bias_is_made_where_a_constant_has_to_go_into_one():
    model = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3, bias=False))
    model[0].weight.data[1] = 0.0
    result = lobs.compact(model, torch.randn(2, 6))
    assert result.model[2].bias.shape == (3,)
    assert result.difference < 1e-6


def test_no_bias_is_made_for_a_constant_that_nothing_reads():
    model = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3, bias=False))
    model[0].weight.data[1] = 0.0
    model[2].weight.data[:, 1] = 0.0
    result = lobs.compact(model, torch.randn(2, 6))
    assert result.removed["0"] == 1
    assert result.model[2].bias is None


def test_modes_gradient_flags_and_memory_layout_stay():
    model = kill(ConvNet()).to(memory_format=torch.channels_last)
    model.train()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    result = lobs.compact(model, torch.randn(2, 3, 16, 16))
    assert [module.training for module in result.model] == [module.training for module in model]
    assert not result.model[4].weight.requires_grad
    assert result.model[0].weight.requires_grad
    assert result.model[4].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_pruned_network_is_compacted_and_goes_through_a_sparse_file(tmp_path):
    model = LeNet5()
    batches = [torch.randn(32, 1, 28, 28)]
    pruned = lobs.prune(model, batches=batches, method="magnitude", density=0.01).model
    result = lobs.compact(pruned, batches[0])
    assert sum(result.removed.values()) > 0
    lobs.save_sparse(result.model, tmp_path / "net.safetensors")
    other = lobs.compact(pruned, batches[0]).model
    nn.init.normal_(other.fc2.weight)
    lobs.load_sparse(tmp_path / "net.safetensors", into=other)
    assert torch.equal(other(batches[0]), result.model(batches[0]))


def test_a_network_that_counts_on_its_own_sizes_is_refused():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = self.one(x)
            return self.two(x) * self.one.out_features

    model = Counting()
    model.two.weight.data[:, 1] = 0.0
    with pytest.raises(ValueError, match="Counting cannot be compacted: an output would change by"):
        lobs.compact(model, torch.randn(2, 6))


@pytest.mark.parametrize("name", ["meta", "code", "graph"])
def test_a_modules_name_may_be_one_of_torch_fx(name):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(name, nn.Linear(4, 3))
            self.last = nn.Linear(3, 2)

        def forward(self, x):
            return self.last(getattr(self, name)(x).relu())

    model = Net().eval()
    with torch.no_grad():
        getattr(model, name).weight[1] = 0
    result = lobs.compact(model, torch.randn(5, 4))
    assert result.removed[name] == 1


class Optional(nn.Module):
    """Two inputs of three, with a flag between them."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.never = nn.Linear(4, 6), nn.Linear(5, 6), nn.Linear(6, 6)
        self.last = nn.Linear(6, 3)

    def forward(self, x, other=None, double=False, y=None):
        h = self.one(x)
        if other is not None:
            h = h + self.never(other)
        if y is not None:
            h = h + self.two(y)
        return self.last(h.relu()) * (2 if double else 1)


@pytest.mark.parametrize("way", ["by name", "by position", "flag"])
def test_several_inputs_by_name_or_position_and_some_that_are_none(way):
    x, y = torch.randn(5, 4), torch.randn(5, 5)
    example = {"by name": {"y": y, "x": x}, "by position": (x, None, False, y), "flag": {"x": x, "double": True}}[way]
    model = Optional().eval()
    with torch.no_grad():
        for layer in (model.one, model.two):
            layer.weight[[1, 3]] = 0
    result = lobs.compact(model, example)
    assert result.removed["one"] == 2
    asked = example if isinstance(example, dict) else dict(zip(["x", "other", "double", "y"], example, strict=True))
    with torch.no_grad():
        assert torch.allclose(result.model(**asked), model(**asked), atol=1e-6)


def test_arguments_that_are_left_at_their_defaults_are_taken_to_be_these():
    class Defaults(nn.Sequential):
        def forward(self, x, mode="relu", *, mask=None, **further):
            h = self[0](x)
            h = h.relu() if mode == "relu" else h
            return self[1](h if mask is None else h * mask)

    model = Defaults(nn.Linear(6, 8), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[0].weight[[2, 5]] = 0
    assert lobs.compact(model, {"x": torch.randn(4, 6)}).removed["0"] == 2


class Scaled(nn.Sequential):
    """Is told by a tuple that may hold None what to do."""

    def forward(self, x, scales=(None, None), flag=True):
        h = self[0](x).relu()
        h = h if scales[0] is None else h * scales[0]
        return self[1](h if scales[1] is None or not flag else h + scales[1])


@pytest.mark.parametrize("further", [(), ((None, None),), ((None, 2.0),), ([None, None], False), ((3, 0.5), True)])
def test_what_a_container_without_tensors_holds_is_the_same_in_every_call(further):
    model, x = Scaled(nn.Linear(6, 8), nn.Linear(8, 3)).eval(), torch.randn(4, 6)
    with torch.no_grad():
        model[0].weight[[2, 5]] = 0
        result = lobs.compact(model, (x, *further))
        assert result.removed["0"] == 2
        assert torch.allclose(result.model(x, *further), model(x, *further), atol=1e-6)


def test_examples_that_no_call_takes_are_refused_in_one_line():
    with pytest.raises(TypeError, match="in a tuple or by name in a dict, got str"):
        lobs.compact(Optional(), "x")
    with pytest.raises(ValueError, match="Optional does not accept the example input: missing a"):
        lobs.compact(Optional(), {"y": torch.randn(5, 5)})

    class Named(nn.Linear):
        def forward(self, x, *, scale):
            return super().forward(x) * scale

    with pytest.raises(TypeError, match=r"Named\.forward takes scale by name alone"):
        lobs.compact(Named(3, 2), {"x": torch.randn(2, 3), "scale": 2.0})


class Joined(nn.Module):
    """Two layers with a step between them: units 0 to 5 of the first are dead, and constant after it."""

    def __init__(self, step):
        super().__init__()
        self.one, self.two, self.step = nn.Linear(6, 10), nn.Linear(10, 3), step
        with torch.no_grad():
            self.one.weight[:6] = 0

    def forward(self, x):
        return self.two(self.step(self.one(x), x))


def masked_through_a_view(h, x):
    h = h.sigmoid()
    h.flatten().mul_((x.abs().amax(-1, keepdim=True) < 2).float().expand(-1, 10).flatten())
    return h


def masked_through_a_slice(h, x):
    h = h.sigmoid()
    part = h[:, 2:]
    part *= (x[:, :1] < 1).float()
    return h


def chosen(parts, which):
    return torch.cat([parts[which], parts[0]], dim=1)


STEPS = {
    "a number of the data": lambda h, x: h.relu() + x.abs().max().item(),
    "a number that a function takes": lambda h, x: torch.clamp(h, max=x.abs().max().item()),
    "a length": lambda h, x: h.sigmoid() / x.size(0) ** 0.5,
    "the batch": lambda h, x: h.sigmoid() - x.shape[0],
    "a product of zeros": lambda h, x: (h.relu() * 0 + h.relu()) * x.shape[0],
    "a border": lambda h, x: functional.pad(h.relu()[..., None], (1, 1), value=x.floor().abs().max().item())[..., 0],
    "one of several": lambda h, x: chosen(h.sigmoid().chunk(2, dim=1), x.max().gt(1).long().item()),
    "a view": masked_through_a_view,
    "a slice": masked_through_a_slice,
}


@pytest.mark.parametrize("name", STEPS)
def test_what_the_example_alone_says_is_no_constant(name):
    model = Joined(STEPS[name]).eval()
    example, others = torch.rand(4, 6), [9 * torch.randn(7, 6), torch.zeros(1, 6)]
    smaller = lobs.compact(model, example).model
    with torch.no_grad():
        for inputs in (example, *others):
            torch.testing.assert_close(smaller(inputs), model(inputs))


def test_zeros_times_a_number_of_the_data_leave():
    model = Joined(lambda h, x: h.relu() * x.shape[0]).eval()
    with torch.no_grad():
        model.one.bias[:6] = -1.0
    result = lobs.compact(model, torch.rand(4, 6))
    assert result.removed["one"] == 6
    inputs = torch.rand(9, 6)
    torch.testing.assert_close(result.model(inputs), model(inputs))


@dataclass
class Answer:
    scores: torch.Tensor


def test_outputs_in_dataclasses_are_compared_and_buffers_stay():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return Answer(self.two(self.one(x)) * self.one.out_features)

    model = Net().eval()
    model.two.weight.data[:, 1] = 0.0
    with pytest.raises(ValueError, match="Net cannot be compacted: an output would change by"):
        lobs.compact(model, torch.randn(2, 6))
    assert model.calls == 0
