"""How a network is gone through, and for which option the batches are read again."""

import pytest
import torch

from lobs.schedule.way import Way


@pytest.mark.parametrize(
    ("way", "stages", "expected"),
    [
        (Way(), 1, None),
        (Way(sequential=True, stages=3, correct="bias", refit=True), 3, "sequential=True"),
        (Way(stages=3, correct="bias"), 3, "stages=3"),
        (Way(stages=[0.5]), 2, "stages=(0.5,)"),
        (Way(stages=3), 1, None),
        (Way(correct="bias", refit=True), 1, "correct='bias'"),
        (Way(refit=True), 1, "refit=True"),
        (Way(refit=None), 1, "refit=None"),
    ],
    ids=str,
)
def test_the_option_that_reads_batches_again_is_named(way, stages, expected):
    assert way.reads_again(stages) == expected


def test_numbers_of_numpy_and_torch_are_numbers():
    assert Way(stages=torch.tensor(3), refit=torch.tensor(5)) == Way(stages=3, refit=5)
