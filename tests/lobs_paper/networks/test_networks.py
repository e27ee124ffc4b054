"""The networks of conf/model: their shapes, and that hooks, statistics and pruning get along with their modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lobs
from lobs_paper.networks.build import build
from lobs_paper.networks.lenet5 import LeNet5
from lobs_paper.networks.lenet300 import LeNet300

NETWORKS = {
    "lobs_paper.networks.cifarnet.CifarNet": (32, 145_376, None),
    "lobs_paper.networks.resnet20.ResNet20": (32, 268_336, None),
    "lobs_paper.networks.resnet18_cifar.resnet18_cifar": (32, 11_164_352, ["conv1", "layer4.0.*", "fc"]),
    "lobs_paper.networks.vgg16_cifar.vgg16_cifar": (32, 14_715_584, ["features.0", "features.3", "classifier"]),
    "torchvision.models.alexnet": (64, 61_090_496, ["features.*", "classifier.6"]),
    "torchvision.models.vgg16": (32, 138_344_128, ["features.0", "features.7", "classifier.6"]),
    "torchvision.models.resnet50": (32, 25_502_912, ["conv1", "layer1.0.*", "layer2.0.downsample.0", "fc"]),
    "lobs_paper.networks.efficientnet_lite0.efficientnet_lite0": (
        64,
        4_610_000,
        ["_blocks.1._*_conv", "_conv_head", "_fc"],
    ),
}


@pytest.mark.parametrize("target", NETWORKS)
def test_a_network_is_collected_and_pruned_whatever_its_modules_are(target):
    size, weights, layers = NETWORKS[target]
    torch.manual_seed(0)
    network = build({"_target_": target, "weights": "ignored here"}).eval()
    matrices = [module for module in network.modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    assert sum(module.weight.numel() for module in matrices) == pytest.approx(weights, rel=1e-3)
    batches = [torch.randn(2, 3, size, size)]
    if "efficientnet" in target:
        layers = [name for name, module in network.named_modules() if name.endswith(("_expand_conv", "_fc"))][:3]
    statistics = lobs.collect_statistics(network, batches, layers=layers)
    result = lobs.prune(network, statistics, method="magnitude", density=0.3)
    assert result.density == pytest.approx(0.3, abs=1e-3)
    for name, mask in result.masks.items():
        assert not result.model.get_submodule(name).weight[~mask].any()
    with torch.no_grad():
        assert not torch.equal(result.model(batches[0]), network(batches[0]))


def test_efficientnet_of_plain_modules_is_the_packages_network():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    theirs = package.EfficientNet.from_name("efficientnet-lite0", num_classes=7).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    ours = build({"_target_": "lobs_paper.networks.efficientnet_lite0.efficientnet_lite0", "classes": 7}).eval()
    ours.load_state_dict(theirs.state_dict())
    assert {type(module) for module in ours.modules() if isinstance(module, nn.Conv2d)} == {nn.Conv2d}
    inputs = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-5, atol=1e-5)
    again = build({"_target_": "lobs_paper.networks.efficientnet_lite0.efficientnet_lite0", "classes": 7})
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again._conv_stem[1].weight, theirs._conv_stem.weight)


def test_mlpnet_has_no_biases_and_reads_flattened_images():
    network = build({"_target_": "lobs_paper.networks.mlpnet.MLPNet", "inputs": 784, "hidden": [40, 20], "classes": 10})
    assert [tuple(each.weight.shape) for each in network if isinstance(each, nn.Linear)] == [
        (40, 784),
        (20, 40),
        (10, 20),
    ]
    assert all(each.bias is None for each in network if isinstance(each, nn.Linear))
    images = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        hidden = images.flatten(1)
        for layer in (network.fc1, network.fc2):
            hidden = torch.relu(hidden @ layer.weight.T)
        torch.testing.assert_close(network(images), hidden @ network.fc3.weight.T)


def test_resnet20_is_that_of_the_publication():
    """Of He et al. 2016, section 4.2: 0.27 million parameters, shortcuts without weights, three sizes of maps."""
    torch.manual_seed(0)
    network, sizes = build({"_target_": "lobs_paper.networks.resnet20.ResNet20"}).eval(), {}
    assert sum(parameter.numel() for parameter in network.parameters()) == 269_722
    for name, module in network.named_children():
        module.register_forward_hook(lambda _, __, output, name=name: sizes.update({name: tuple(output.shape[1:])}))
    x = torch.randn(2, 3, 32, 32)
    network(x)
    assert [sizes[name] for name in ("layer1", "layer2", "layer3")] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    block = network.layer2[0]
    with torch.no_grad():
        block.bn2.weight.zero_()
        block.bn2.bias.zero_()
        given = torch.randn(2, 16, 8, 8)
        answer = block(given)
    torch.testing.assert_close(answer[:, 8:24], torch.relu(given[:, :, ::2, ::2]))
    assert not answer[:, :8].any() and not answer[:, 24:].any()


def test_cifarnet_pools_as_caffe_does():
    network = build({"_target_": "lobs_paper.networks.cifarnet.CifarNet"})
    sizes = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _, __, output, name=name: sizes.update({name: tuple(output.shape[1:])}))
    network(torch.zeros(1, 3, 32, 32))
    assert [sizes[name] for name in ("pool1", "pool2", "pool3")] == [(32, 16, 16), (32, 8, 8), (64, 4, 4)]
    assert sizes["fc2"] == (10,)


def test_the_papers_networks_have_their_published_sizes():
    assert [tuple(module.weight.shape) for module in LeNet300() if isinstance(module, nn.Linear)] == [
        (300, 784),
        (100, 300),
        (10, 100),
    ]
    lenet5 = LeNet5()
    assert sum(parameter.numel() for parameter in lenet5.parameters()) == 431080
    assert lenet5(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_vit_sees_patches_and_where_they_lie():
    torch.manual_seed(0)
    network = build(
        {"_target_": "lobs_paper.networks.vit.ViT", "width": 16, "depth": 2, "heads": 2, "hidden": 24}
    ).eval()
    images = torch.randn(3, 1, 28, 28)
    tokens = []
    network.blocks[0].register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0]))
    scores = network(images)
    assert scores.shape == (3, 10) and tokens[0].shape == (3, 16, 16)
    patch = images[:, 0, 7:14, 21:].flatten(1)  # the second row's last
    expected = patch @ network.patches.weight.flatten(1).T + network.patches.bias + network.positions[7]
    torch.testing.assert_close(tokens[0][:, 7], expected)
    with torch.no_grad():
        swapped = images.clone()
        swapped[..., :7, :], swapped[..., 7:14, :] = images[..., 7:14, :], images[..., :7, :]
        assert not torch.allclose(network(swapped), scores, atol=1e-4)
        network.positions.zero_()
        torch.testing.assert_close(network(swapped), network(images))
