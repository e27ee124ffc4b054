"""What a batch gives a network: every kind that is accepted, and a sentence for every kind that is not."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lobs.calibration.inputs import (
    answer,
    check_batches,
    network_input,
    network_target,
    probe_determinism,
    raw_input,
)

INPUTS, TARGETS = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize("batch", [INPUTS, (INPUTS, TARGETS), [INPUTS], (INPUTS, "anything", None)])
def test_a_batch_is_a_tensor_or_starts_with_one(batch):
    assert raw_input(batch) is INPUTS


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": INPUTS}, "starts with one; got dict"),
        ((), "starts with one; got tuple"),
        (["x", INPUTS], "starts with one; got list"),
        (torch.tensor(3.0), "got a tensor without any axis"),
    ],
)
def test_other_batches_are_refused(batch, message):
    with pytest.raises(TypeError, match=message):
        raw_input(batch)


def test_the_network_gets_a_copy_that_it_may_change():
    for model in (nn.Linear(3, 2), nn.ReLU()):
        given = network_input((INPUTS, TARGETS), model)
        assert torch.equal(given, INPUTS)
        assert given.data_ptr() != INPUTS.data_ptr()
    with torch.inference_mode():
        batch = INPUTS + 0
    assert not network_input(batch, nn.ReLU()).is_inference()
    assert network_input(INPUTS, nn.Linear(3, 2, device="meta")).is_meta


def test_a_target_stands_second():
    assert torch.equal(network_target((INPUTS, TARGETS), INPUTS), TARGETS)
    for batch in (INPUTS, (INPUTS,), (INPUTS, "cat")):
        with pytest.raises(TypeError, match=r"a loss needs batches of \(input, target\); got"):
            network_target(batch, INPUTS)


class Stream(IterableDataset):
    def __iter__(self):
        yield INPUTS


@pytest.mark.parametrize(
    "batches",
    [
        [INPUTS],
        (INPUTS, INPUTS),  # two batches of one kind are no pair of input and target
        (INPUTS, TARGETS[:2]),
        iter([INPUTS]),
        Stream(),
        DataLoader(TensorDataset(INPUTS, TARGETS)),
        (),
    ],
    ids=["list", "tuple", "unequal tuple", "iterator", "stream", "loader", "nothing"],
)
def test_iterables_of_batches_pass(batches):
    check_batches(batches)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (INPUTS, r"got one tensor of shape \(4, 3\): give \[tensor\] or tensor.split"),
        ((INPUTS, TARGETS), r"one pair of an input \(4, 3\) and a target \(4,\): give \[\(input, target\)\]"),
        (TensorDataset(INPUTS), "got the data set TensorDataset of single examples: give torch.utils.data.DataLoader"),
        ({"x": INPUTS}, "got dict"),
        ("batches", "got str"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_iterable_of_batches_is_refused(batches, message):
    with pytest.raises(TypeError, match=f"batches must be an iterable of batches.*{message}"):
        check_batches(batches)


def test_a_network_that_fails_says_on_what():
    assert torch.equal(answer(nn.ReLU(), INPUTS, "a batch"), INPUTS.relu())
    message = r"Linear cannot be run on a batch of inputs \(4, 3\) torch.float32: .*shapes cannot be multiplied"
    with pytest.raises(ValueError, match=message):
        answer(nn.Linear(5, 2), INPUTS, "a batch")

    def no_memory(*_):
        raise torch.OutOfMemoryError("too much")

    layer = nn.Linear(3, 2)
    layer.forward = no_memory
    with pytest.raises(torch.OutOfMemoryError, match="too much"):
        answer(layer, INPUTS, "a batch")


class Changing(nn.Module):
    """Gives another result each time it is called."""

    def __init__(self, results):
        super().__init__()
        self.results = iter(results)

    def forward(self, x):
        return next(self.results)


@pytest.mark.parametrize(
    ("once", "twice", "message"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), r"differently \(largest difference 0.5\)"),
        (torch.zeros(2), torch.zeros(3), r"differently \(other shapes\)"),
        ((torch.zeros(2), torch.zeros(2)), (torch.zeros(2),), r"differently \(other shapes\)"),
        ({"a": torch.zeros(2), "b": 1}, {"a": torch.zeros(2), "b": 2}, None),
        (torch.tensor([torch.nan, torch.inf]), torch.tensor([torch.nan, torch.inf]), None),
    ],
)
def test_two_answers_to_the_same_inputs_are_compared(once, twice, message):
    model = Changing([once, twice])
    if message is None:
        probe_determinism(model, INPUTS)
        return
    with pytest.raises(ValueError, match=f"Changing answers the same inputs {message} although"):
        probe_determinism(model, INPUTS)


def test_an_empty_batch_cannot_be_tried_out():
    with pytest.raises(ValueError, match=r"the first batch \(0, 3\) holds no inputs: leave empty batches out"):
        probe_determinism(nn.ReLU(), INPUTS[:0])
