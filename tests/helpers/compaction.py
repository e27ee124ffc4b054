"""Networks with units that are dead."""

import torch
from torch import nn
from torch.nn import functional


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
