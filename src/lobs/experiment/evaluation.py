"""What a network is measured by: its error on labelled images, and its outputs' distance from another's."""

from __future__ import annotations

import torch
from torch import nn

from lobs.experiment.data import Batches, Split
from lobs.modes import evaluation_mode

# Large enough to keep two cores busy; a convolution's maps of more images no longer fit into the cache.
BATCH_SIZE = 1000


def error_percent(network: nn.Module, split: Split) -> float:
    """Share of images whose largest output is not the label's, in percent.

    Args:
        network: is left in the mode, training or evaluation, in which it was given.
        split: the images, on the network's device or not.

    Returns:
        The error.
    """
    return 100 * wrong_answers(network, split.batches(BATCH_SIZE)) / len(split)


@torch.no_grad()
def wrong_answers(network: nn.Module, batches: Batches) -> int:
    """How many images have another largest output than their label's."""
    device = _device(network)
    wrong = 0
    with evaluation_mode(network):
        for inputs, labels in batches:
            wrong += int((network(inputs.to(device)).argmax(dim=1) != labels.to(device)).sum())
    return wrong


@torch.no_grad()
def output_error(dense: nn.Module, pruned: nn.Module, split: Split) -> float:
    """The accumulated error of the paper's section 3.4, epsTilde_L = ||Ytilde_L - Y_L||_F / sqrt(n).

    Args:
        dense: the network Y.
        pruned: the network Ytilde.
        split: the n images.

    Returns:
        The root of the mean squared norm, summed in float64.
    """
    device = _device(dense)
    total = 0.0
    with evaluation_mode(dense), evaluation_mode(pruned):
        for inputs, _ in split.batches(BATCH_SIZE):
            inputs = inputs.to(device)
            total += float((pruned(inputs).double() - dense(inputs).double()).square().sum())
    return (total / len(split)) ** 0.5


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
