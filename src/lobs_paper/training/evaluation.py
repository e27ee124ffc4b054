"""What a network is measured by: its error on labelled images, and its outputs' distance from another's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lobs.base.modes import without_training
from lobs.base.network_inputs import shown
from lobs_paper.data.splits import Batches, Split

# Large enough to keep two cores busy; a convolution's maps of more images are memory fresh from the system every time.
# Of large pictures a batch holds fewer: about this many input values.
BATCH_SIZE = 250
BATCH_VALUES = 3_000_000
# Of images whose outputs are compared with another network's: the rounding of the distance's sum depends on it.
COMPARED_SIZE = 1000
# The top-5 error is told where there are at least this many classes.
TOP5_CLASSES = 100


@dataclass(frozen=True)
class Errors:
    """Errors on labelled images in percent.

    Attributes:
        top1: images whose largest output is not the label's; with a label per pixel, the mean share of such pixels.
        top5: images whose five largest outputs do not hold the label's; None for fewer than 100 classes.
    """

    top1: float
    top5: float | None

    def named(self, name: str) -> dict[str, float]:
        """The errors as metrics: under a name that holds ``error``, and for the top 5 with ``top5_error`` there."""
        top5 = {} if self.top5 is None else {name.replace("error", "top5_error"): self.top5}
        return {name: self.top1, **top5}


def errors(network: nn.Module, split: Split) -> Errors:
    """Measure a network's errors.

    Args:
        network: is left in the mode, training or evaluation, in which it was given.
        split: the images, on the network's device or not.

    Returns:
        The errors.
    """
    wrong = wrong_answers(network, split.batches(batch_size(split)))
    top1, top5 = (None if count is None else 100 * count / len(split) for count in wrong)
    return Errors(cast("float", top1), top5)


def error_percent(network: nn.Module, split: Split) -> float:
    """Share of images whose largest output is not the label's, in percent (`errors`)."""
    return errors(network, split).top1


@torch.no_grad()
def wrong_answers(network: nn.Module, batches: Batches) -> tuple[float, float | None]:
    """How many images have another largest output than their label's, and how many have none such among five.

    Args:
        network: its outputs are logits ``[k, classes, ...]`` of labels ``[k, ...]``.
        batches: of inputs and labels.

    Returns:
        The counts, an image with several labels counted by their share; None for fewer than 100 classes. Where the
        largest output is NaN or infinite, there is no answer, which is a wrong one.

    Raises:
        ValueError: the outputs are something else.
    """
    device = _device(network)
    wrong1, wrong5, classes = 0.0, 0.0, 0
    with without_training(network):
        for inputs, labels in batches:
            outputs, labels = network(inputs.to(device)), labels.to(device)
            if not isinstance(outputs, Tensor) or (*outputs.shape[:1], *outputs.shape[2:]) != labels.shape:
                raise ValueError(
                    f"the error is measured by class logits [images, classes] for labels {tuple(labels.shape)}, and "
                    f"the network gives {shown(outputs)}: name what to take of it with model.output, a key, an index, "
                    f"or package.function"
                )
            if not outputs.is_floating_point():
                raise ValueError(f"the network's outputs are {outputs.dtype}, expected are floating-point numbers")
            classes = outputs.shape[1]
            unanswered = ~outputs.amax(dim=1).isfinite()
            wrong1 += _shares((outputs.argmax(dim=1) != labels) | unanswered)
            if classes >= TOP5_CLASSES:
                wrong5 += _shares((outputs.topk(5, dim=1).indices != labels[:, None]).all(1) | unanswered)
    return wrong1, wrong5 if classes >= TOP5_CLASSES else None


def _shares(wrong: Tensor) -> float:
    """The sum over images of the share of an image's labels."""
    return float(wrong.double().reshape(len(wrong), -1).mean(1).sum())


class DenseOutputs:
    """A dense network's outputs on some images, computed once to compare many pruned networks with.

    Args:
        dense: the network Y.
        split: the n images.
    """

    def __init__(self, dense: nn.Module, split: Split) -> None:
        self._split = split
        self._outputs = list(_outputs(dense, split))

    def error(self, pruned: nn.Module) -> float:
        """The accumulated error of the paper's section 3.4, epsTilde_L = ||Ytilde_L - Y_L||_F / sqrt(n).

        Args:
            pruned: the network Ytilde.

        Returns:
            The root of the mean squared norm, summed in float64.
        """
        total = 0.0
        for expected, found in zip(self._outputs, _outputs(pruned, self._split), strict=True):
            total += float((found.double() - expected.double()).square().sum())
        return (total / len(self._split)) ** 0.5


def output_error(dense: nn.Module, pruned: nn.Module, split: Split) -> float:
    """`DenseOutputs.error` of one pruned network."""
    return DenseOutputs(dense, split).error(pruned)


@torch.no_grad()
def _outputs(network: nn.Module, split: Split) -> Iterator[Tensor]:
    """Batch by batch, in evaluation mode."""
    device = _device(network)
    with without_training(network):
        for inputs, _ in split.batches(batch_size(split, COMPARED_SIZE)):
            yield torch.cat([network(part) for part in inputs.to(device).split(batch_size(split))])


def batch_size(split: Split, most: int = BATCH_SIZE) -> int:
    """How many images to measure at a time, of small ones at most so many."""
    return max(1, min(most, BATCH_VALUES // split.values))


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
