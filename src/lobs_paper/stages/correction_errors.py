"""What every correction after pruning would have done, beside the one that was made."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn

from lobs.pruning import PruneResult
from lobs.repair.correction import candidates, correct
from lobs_paper.data.splits import Split
from lobs_paper.progress import progress
from lobs_paper.training.evaluation import errors


def corrections(dense: nn.Module, result: PruneResult, batches: Iterable, measured: Split) -> dict[str, float]:
    """The test error of the pruned network after each correction: batch norms estimated anew or not, biases or not.

    For the report alone: which one is made was decided by the calibration images.

    Args:
        dense: the network that was pruned.
        result: with a correction made.
        batches: the calibration inputs that it was made from.
        measured: the test images.

    Returns:
        By correction the test error in percent.
    """
    found = {}
    for how in progress("corrections")(candidates(result.model)):
        network = copy.deepcopy(result.model)
        if how != result.correction:
            network.load_state_dict(result.uncorrected, strict=False)
            correct(dense, network, batches, how)
        found[how] = errors(network, measured).top1
    return found
