"""How a network is gone through, and for which option the batches are read again."""

import numpy as np
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


@pytest.mark.parametrize("refit", [0, -1, 1.5, "all", torch.tensor(0)])
def test_a_refit_of_no_minibatches_is_refused(refit):
    with pytest.raises(ValueError, match="refit must be True, False or how many minibatches, 1 or more; got "):
        Way(refit=refit)


def test_everything_else_says_how_often_a_refit_goes_on():
    assert [Way(refit=refit).refit for refit in (None, True, False, 1)] == [None, True, False, 1]
    assert type(Way(refit=np.int64(1)).refit) is int
    assert type(Way(stages=np.int64(2)).stages) is int
    shares = Way(stages=[torch.tensor(0.5), np.float64(0.25), 0.125]).stages
    assert shares == (0.5, 0.25, 0.125)
    assert [type(share) for share in shares] == [float] * 3
    assert Way(stages=np.array([0.5, 0.25])).stages == (0.5, 0.25)
    assert (Way(stages="3").stages, Way(stages=True).stages) == ("3", True), "refused where budgets are made of them"
