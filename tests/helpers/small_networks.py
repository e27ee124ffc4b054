"""Networks made of the same classes as the large ones, small enough to go through every stage in a test."""

from torch import nn
from torchvision.models import resnet
from torchvision.models.vgg import VGG, make_layers

from lobs_paper.networks.efficientnet_lite0 import efficientnet_lite0 as full_efficientnet_lite0


def alexnet():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 11, stride=4, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Sequential(nn.Dropout(), nn.Linear(16, 8), nn.ReLU(inplace=True), nn.Linear(8, 1000)),
    )


def vgg16():
    network = VGG(make_layers([4, "M", 6, 6, "M"]), num_classes=1)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(6, 1000)
    return network


def vgg16_cifar():
    network = VGG(make_layers([4, "M", 6, 6, "M"], batch_norm=True), num_classes=1)
    network.avgpool = nn.AdaptiveAvgPool2d(1)
    network.classifier = nn.Linear(6, 10)
    return network


def _residual(block, classes):
    width = 8 if block is resnet.Bottleneck else 64
    network = resnet.ResNet(block, [1, 1, 1, 1], num_classes=classes, width_per_group=width)
    network.layer3 = network.layer4 = nn.Identity()
    network.fc = nn.Linear(128 * block.expansion, classes)
    return network


def efficientnet_lite0():
    return full_efficientnet_lite0(width_coefficient=0.1, depth_coefficient=0.1)


def resnet50():
    return _residual(resnet.Bottleneck, 1000)


def resnet18_cifar():
    return _residual(resnet.BasicBlock, 10)
