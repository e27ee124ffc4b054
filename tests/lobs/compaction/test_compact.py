"""Compaction: the function stays, what is dead leaves, and what has to stay stays."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional

import lobs
from lobs_paper.networks.lenet5 import LeNet5
from lobs_paper.networks.lenet300 import LeNet300


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def kill(model, rows=0.3, columns=0.3):
    """Structured zeros by hand: whole rows and input columns of every layer; batch norms that are not trivial."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data[torch.rand(len(module.weight)) < rows] = 0.0
            if getattr(module, "groups", 1) == 1 and module.weight.shape[1] > 3:
                module.weight.data[:, torch.rand(module.weight.shape[1]) < columns] = 0.0
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_()
            module.bias.data.normal_()
    return model.eval()


class ConvNet(nn.Sequential):
    """As for CIFAR: convolutions with batch norm, pools, dropout and a classifier."""

    def __init__(self, padding=0, act=nn.ReLU):
        super().__init__(
            *(nn.Conv2d(3, 16, 3, padding=padding), nn.BatchNorm2d(16), act(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 24, 3, padding=padding, bias=False), nn.BatchNorm2d(24), act(), nn.AvgPool2d(2)),
            *(nn.Flatten(), nn.Dropout(), nn.LazyLinear(32), nn.BatchNorm1d(32), act(), nn.Linear(32, 10)),
        )
        self(torch.zeros(2, 3, 16, 16))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = functional.relu(self.stem(x))
        y = self.two(torch.relu(self.one(x)))
        y += x
        return self.head(functional.relu(y).mean([2, 3]))


class Depthwise(nn.Sequential):
    def __init__(self, groups=8):
        super().__init__(
            *(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6()),
            *(nn.Conv2d(8, 16, 3, padding=1, groups=groups), nn.BatchNorm2d(16), nn.Hardswish()),
            *(nn.Conv2d(16, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
        )


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


def test_units_that_nothing_reads_and_units_that_read_nothing_leave_to_the_fixed_point():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    # Unit 1 of the middle is not read; it alone reads unit 2 of the first. Unit 0 of the first is constant, and unit 3
    # of the middle reads nothing but that.
    model[4].weight.data[:, 1] = 0.0
    model[2].weight.data[[0, 2], 2] = 0.0
    model[0].weight.data[0] = 0.0
    model[0].bias.data[0] = 2.0
    model[2].weight.data[3, 1:] = 0.0
    result = lobs.compact(model, torch.randn(3, 6))
    assert result.layers["0"].removed_units == (0, 2)
    assert result.layers["2"].removed_units == (1, 3)
    assert result.layers["2"].removed_inputs == (0, 2)
    assert result.layers["4"].removed_units == ()
    hidden = torch.relu(model[2].weight[3, 0] * 2.0 + model[2].bias[3])
    expected = model[4].bias + model[4].weight[:, 3] * hidden
    assert torch.allclose(result.model[4].bias, expected)
    assert result.removed == {"0": 2, "2": 2, "4": 0}


def test_input_columns_stay_even_when_nothing_reads_them():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    model[0].weight.data[:, :4] = 0.0
    result = lobs.compact(model, torch.randn(2, 6))
    assert result.model[0].in_features == 6
    assert result.layers["0"].removed_inputs == ()


@pytest.mark.parametrize(
    ("padding", "mode", "bias", "left"),
    [
        (0, "zeros", 1.0, 7),
        (1, "zeros", 1.0, 8),
        (1, "zeros", -1.0, 7),
        (1, "reflect", 1.0, 7),
        ("same", "zeros", 1.0, 8),
    ],
)
def test_a_constant_goes_through_zero_padding_only_when_it_is_zero(padding, mode, bias, left):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=padding, padding_mode=mode))
    model[0].weight.data[2] = 0.0
    model[0].bias.data[2] = bias
    result = lobs.compact(model.double(), torch.randn(2, 3, 9, 9).double())
    assert result.model[0].out_channels == left
    assert result.difference < 1e-12


def test_zero_padding_as_a_step_of_its_own_keeps_constants_too():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ZeroPad2d(1), nn.Conv2d(8, 4, 3))
    model[0].weight.data[:2] = 0.0
    model[0].bias.data[:2] = torch.tensor([0.0, 1.0])
    assert lobs.compact(model, torch.randn(2, 3, 9, 9)).layers["0"].removed_units == (0,)


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


def test_a_channel_of_a_sum_leaves_only_when_it_is_dead_in_every_branch():
    model = Residual()
    for layer in (model.stem, model.two):
        layer.weight.data[[1, 2]] = 0.0
    model.stem.weight.data[3] = 0.0  # constant in the shortcut alone
    model.head.weight.data[:, 5] = 0.0  # not read, but the branch reads it before the sum
    result = lobs.compact(model.double(), torch.randn(2, 3, 8, 8).double())
    assert result.layers["stem"].removed_units == (1, 2) == result.layers["two"].removed_units
    assert result.layers["head"].removed_inputs == (1, 2)


def test_depthwise_channels_leave_with_their_inputs_and_groups_as_a_whole():
    model = Depthwise()
    model[6].weight.data[:, [4, 5, 9]] = 0.0  # both outputs of channel 2, one of channel 4
    result = lobs.compact(model.eval(), torch.randn(2, 3, 9, 9))
    assert result.layers["0"].removed_units == (2,)
    assert result.layers["3"].removed_units == (4, 5)
    assert (result.model[3].groups, result.model[3].in_channels, result.model[3].out_channels) == (7, 7, 14)
    model = Depthwise(groups=2)
    model[6].weight.data[:, 8:] = 0.0
    model[6].weight.data[:, 3] = 0.0
    result = lobs.compact(model.eval(), torch.randn(2, 3, 9, 9))
    assert result.layers["0"].removed_units == (4, 5, 6, 7)
    assert result.model[3].groups == 1


def test_a_batch_norm_with_a_scale_of_zero_makes_a_constant():
    model = kill(ConvNet(), rows=0.0, columns=0.0)
    model[1].weight.data[4] = 0.0
    result = lobs.compact(model, torch.randn(2, 3, 16, 16))
    assert result.layers["0"].removed_units == (4,)
    assert result.model[1].num_features == 15


def test_a_network_that_is_dead_altogether_keeps_a_unit_per_layer_and_its_constant_output():
    model = ConvNet().eval()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data.zero_()
    result = lobs.compact(model, torch.randn(2, 3, 16, 16))
    assert (result.model[0].out_channels, result.model[4].out_channels, result.model[10].out_features) == (1, 1, 1)
    inputs = torch.randn(3, 3, 16, 16)
    assert torch.allclose(model(inputs), result.model(inputs))


class Unknown(nn.Module):
    """A softmax over channels, which mixes them, in the middle."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.three(torch.relu(self.two(torch.softmax(self.one(x), dim=1))))


def test_channels_that_reach_an_unknown_step_stay_and_others_leave():
    model = Unknown()
    model.one.weight.data[1] = 0.0
    model.two.weight.data[:, 2] = 0.0
    model.two.weight.data[3] = 0.0
    result = lobs.compact(model, torch.randn(2, 6))
    assert result.removed == {"one": 0, "two": 1, "three": 0}


def test_layers_that_are_called_twice_or_have_hooks_stay_as_they_are():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.two(self.one(torch.relu(self.one(x))))

    model = Twice()
    model.one.weight.data[1] = 0.0
    assert lobs.compact(model, torch.randn(2, 6)).parameters_left == 63
    hooked = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    hooked[0].weight.data[1] = 0.0
    assert lobs.compact(hooked, torch.randn(2, 6)).removed["0"] == 1
    hooked[0].register_forward_hook(lambda module, inputs, output: output + 1)
    assert "0" not in lobs.compact(hooked, torch.randn(2, 6)).layers


def test_a_tensor_that_is_overwritten_while_others_read_it_is_left_alone():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 5), nn.Linear(5, 3)

        def forward(self, x):
            x = self.one(x)
            y = functional.relu(x, inplace=True)
            return self.two(x) + self.two.bias.sum() * y.sum()

    model = InPlace()
    model.one.weight.data[1] = 0.0
    model.one.bias.data[1] = -1.0
    assert lobs.compact(model, torch.randn(2, 6)).difference == 0.0


def test_a_function_that_overwrites_its_argument_is_noticed():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            x = self.one(x)
            y = torch.relu_(x)
            return self.two(x) + self.three(y)

    model = Overwrites()
    model.one.weight.data[1] = 0.0
    model.one.bias.data[1] = -1.0
    assert lobs.compact(model, torch.randn(2, 6)).difference < 1e-6


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


def test_what_fx_cannot_trace_is_an_error_that_says_why():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match=r"Branching cannot be compacted: torch.fx cannot trace it \(TraceError: symb"):
        lobs.compact(Branching(3, 3), torch.randn(2, 3))


def test_an_example_that_does_not_fit_is_an_error_that_shows_its_shape():
    with pytest.raises(ValueError, match=r"LeNet300 does not accept the example input of shape \(2, 3\)"):
        lobs.compact(LeNet300(), torch.randn(2, 3))


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
