"""Networks for tests of the refit, and how far they are from the dense one."""

import torch
from torch import nn
from torch.nn import functional

import lobs
from helpers.networks import X

BATCHES = list(X.split(32))
HELD = X[5::6]  # every sixth of 256 inputs


class Normed(nn.Module):
    """Convolutions with batch norms, a dropout, and a layer that is not pruned."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.spare = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x.reshape(-1, 1, 4, 4)))).mean((2, 3))
        return self.head(self.drop(torch.relu(self.spare(x))))


def normed():
    torch.manual_seed(3)
    model = Normed()
    with torch.no_grad():
        model.norm.running_mean.normal_(0, 0.1)
        model.norm.running_var.uniform_(0.5, 2)
    return model


def pruned(model, method="magnitude", density=0.3, **options):
    return lobs.prune(model, None, method, density=density, batches=BATCHES, **options)


def divergence(dense, network, inputs):
    """KL(softmax(dense) || softmax(network)), the mean over inputs."""
    with torch.no_grad():
        one, other = (model.eval()(inputs).double().log_softmax(1) for model in (dense, network))
    return float(functional.kl_div(other, one, reduction="batchmean", log_target=True))
