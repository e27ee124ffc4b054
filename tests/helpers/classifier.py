"""A learnable data set and a small network that the training tests share."""

import torch
from torch import nn

from lobs_paper.data.splits import Split


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def data(count=90, seed=0):
    """Three separable classes: one bright row each."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (count, 3, 4), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 3
    images[torch.arange(count), labels] += 100
    return Split(images, labels)
