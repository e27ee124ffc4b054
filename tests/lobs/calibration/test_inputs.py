"""What a batch gives a network: every kind that is accepted, and a sentence for every kind that is not."""

from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lobs.calibration.batches import called_batches
from lobs.calibration.calling import called
from lobs.calibration.inputs import (
    answer,
    check_batches,
    input_count,
    inputs_depend,
    network_input,
    network_target,
    probe_determinism,
)

INPUTS, TARGETS = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize("batch", [INPUTS, (INPUTS, TARGETS), [INPUTS], (INPUTS, "anything", None)])
def test_a_batch_is_a_tensor_or_starts_with_one(batch):
    assert torch.equal(network_input(batch, nn.ReLU()).alone, INPUTS)
    assert input_count(batch) == 4


class Two(nn.Module):
    def forward(self, a, b, scale=1.0):
        return (a + b.sum(1, keepdim=True)) * scale


class Pictures(nn.Module):
    """Takes a list of pictures of different sizes."""

    def forward(self, pictures, targets=None):
        return torch.stack([picture.mean() for picture in pictures])


@pytest.mark.parametrize(
    "batch",
    [
        ((INPUTS, INPUTS), TARGETS),
        [[INPUTS, INPUTS], TARGETS],
        {"a": INPUTS, "b": INPUTS},
        UserDict(b=INPUTS, a=INPUTS),
        ({"a": INPUTS, "b": INPUTS, "scale": 1.0}, TARGETS),
    ],
    ids=["tuple", "list", "dict", "UserDict", "dict and target"],
)
def test_several_inputs_stand_in_a_tuple_or_list_or_have_names(batch):
    (batch,) = called_batches([batch], Two())
    inputs = network_input(batch, Two())
    assert torch.equal(answer(Two(), inputs, "a batch"), Two()(INPUTS, INPUTS))
    assert len(inputs) == input_count(batch) == 4
    assert torch.equal(inputs.first(2).run(Two()), Two()(INPUTS[:2], INPUTS[:2]))


def test_a_list_that_fits_as_one_argument_is_handed_over_as_it_is():
    pictures = [torch.rand(3, 4, 5), torch.rand(3, 6, 4), torch.rand(3, 5, 5)]
    inputs = network_input((pictures, [{}, {}, {}]), Pictures())
    assert torch.equal(inputs.run(Pictures()), Pictures()(pictures))
    assert len(inputs) == 3
    assert inputs.divisible
    assert torch.equal(inputs.first(2).run(Pictures()), Pictures()(pictures[:2]))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((), "a batch must be a tensor, a mapping .* got empty tuple: give call=lambda model, batch"),
        (["x", INPUTS], "starts with its inputs .* got list of str, .*: give call="),
        (
            {"inputs": INPUTS, "labels": TARGETS},
            "'inputs', 'labels' is no argument of Two.forward, which takes a, b, sc",
        ),
        (({},), "nothing in a batch of .* says how many inputs it holds: give call="),
        (torch.nn.utils.rnn.pack_sequence([INPUTS]), "got PackedSequence: give call="),
        (torch.tensor(3.0), "got a tensor without any axis"),
    ],
)
def test_other_batches_are_refused(batch, message):
    with pytest.raises(TypeError, match=message):
        network_input(batch, Two())


class Named(nn.Module):
    def forward(self, **named):
        return named["x"]


def test_a_forward_of_any_keywords_takes_all_entries():
    assert torch.equal(network_input({"x": INPUTS, "y": TARGETS}, Named()).run(Named()), INPUTS)


@pytest.mark.parametrize("batch", [(INPUTS, TARGETS), INPUTS, {"a": INPUTS}])
def test_inputs_that_are_missing_are_asked_for(batch):
    with pytest.raises(
        ValueError, match=r"missing 1 .*'b'; several inputs are given as \(\(a, b\), target\), or by name"
    ):
        answer(Two(), network_input(batch, Two()), "a batch")


@dataclass
class Answer:
    logits: torch.Tensor
    loss: float = 0.0


@pytest.mark.parametrize(
    ("outputs", "output", "message"),
    [
        (
            {"out": INPUTS, "aux": None},
            "out",
            "'x' is no part of the network's outputs, which are a dict of 'out', 'aux'",
        ),
        (Answer(INPUTS), "logits", "'x' is no part .* a Answer with logits, loss"),
        ((1, INPUTS), 1, "'x' is no part .* a tuple of 2: int, Tensor"),
        ([INPUTS], lambda outputs: outputs[0], "'x' is no part .* a list of 1: Tensor"),
        (INPUTS, lambda outputs: outputs, r"'x' is no part .* one tensor \(4, 3\)"),
    ],
)
def test_what_is_looked_at_is_a_key_an_attribute_an_index_or_a_function(outputs, output, message):
    def run(output):
        (batch,) = called_batches([INPUTS], nn.ReLU(), lambda model, batch: [model(batch), outputs][1], output)
        return network_input(batch, nn.ReLU()).run(nn.ReLU())

    assert run(output) is INPUTS
    with pytest.raises(ValueError, match=message):
        run("x")
    with pytest.raises(ValueError, match="output=7 is no part"):
        run(7)


def test_a_call_is_given_the_batch_which_stays_whole():
    model = nn.Linear(3, 2)
    given = {"anything": [INPUTS, "a"], "more": TARGETS}
    (batch,) = called_batches([given], model, lambda model, batch: model(batch["anything"][0]))
    inputs = network_input(batch, model)
    assert torch.equal(inputs.run(model), model(INPUTS))
    assert not inputs.divisible
    assert len(inputs.first(1)) == len(inputs)


def test_a_call_that_runs_another_network_is_refused():
    other = nn.Linear(3, 2)
    (batch,) = called_batches([INPUTS], other, lambda model, batch: other(batch))
    network_input(batch, other).run(other)
    with pytest.raises(ValueError, match="call= ran no module of the network that it was given"):
        network_input(batch, other).run(nn.Linear(3, 2))


@pytest.mark.parametrize("keywords", [{"call": "forward"}, {"output": 1.5}, {"output": True}])
def test_a_call_or_output_of_another_kind_is_refused(keywords):
    with pytest.raises(TypeError, match=f"{next(iter(keywords))} must be a"):
        called_batches([INPUTS], nn.ReLU(), **keywords)


def test_what_does_not_belong_to_one_input_each_is_not_divided():
    edges = torch.tensor([[0, 1, 2], [1, 2, 3]])
    assert not network_input(((INPUTS, edges), TARGETS), Two()).divisible
    assert network_input(((INPUTS, TARGETS, None, 3), edges), Two()).divisible


def test_the_network_gets_a_copy_that_it_may_change():
    for model in (nn.Linear(3, 2), nn.ReLU()):
        given = network_input((INPUTS, TARGETS), model).alone
        assert torch.equal(given, INPUTS)
        assert given.data_ptr() != INPUTS.data_ptr()
    with torch.inference_mode():
        batch = INPUTS + 0
    assert not network_input(batch, nn.ReLU()).alone.is_inference()
    assert network_input(INPUTS, nn.Linear(3, 2, device="meta")).alone.is_meta


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
        probe_determinism(model, network_input(INPUTS, model))
        return
    with pytest.raises(ValueError, match=f"Changing answers the same inputs {message} although"):
        probe_determinism(model, network_input(INPUTS, model))


def test_an_empty_batch_cannot_be_tried_out():
    with pytest.raises(
        ValueError, match=r"the first batch \(0, 3\) torch.float32 holds no inputs: leave empty batches out"
    ):
        probe_determinism(nn.ReLU(), network_input(INPUTS[:0], nn.ReLU()))


@pytest.mark.parametrize(
    ("network", "count", "expected"),
    [
        (nn.Linear(4, 2), 6, False),
        (nn.RNN(4, 2), 6, True),
        (nn.BatchNorm1d(4, track_running_stats=False), 6, True),
        (nn.RNN(4, 2), 2, False),
    ],
)
def test_inputs_that_depend_on_each_other_are_found(network, count, expected):
    assert inputs_depend(network.eval(), network_input(torch.randn(count, 4), network)) is expected


@pytest.mark.parametrize(
    ("target", "refused"),
    [
        (torch.zeros(4, 3, dtype=torch.int64), True),
        (torch.zeros(4), True),
        (torch.zeros(4, 3), False),
        (torch.zeros(3, dtype=torch.int64), False),
        ("cat", False),
    ],
)
def test_a_pair_of_an_input_and_a_target_is_told_from_two_batches(target, refused):
    if refused:
        with pytest.raises(TypeError, match="got one pair of an input"):
            check_batches((INPUTS, target))
    else:
        check_batches((INPUTS, target))
    check_batches([INPUTS, target])
    check_batches((INPUTS, target, target))


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.eye(3).to_sparse(), "sparse tensor"),
        (torch.zeros(2, 3, device="meta"), "tensor on the meta device, which has no values"),
        (torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(1, 3)]), "nested tensor"),
        (torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8), r"quantized tensor \(torch.qint8\)"),
    ],
)
def test_tensors_that_can_be_neither_copied_nor_cut_are_refused(tensor, kind):
    for batch in (tensor, (INPUTS, {"graph": tensor})):
        with pytest.raises(TypeError, match=f"a batch holds a {kind}"):
            input_count(batch)


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ("text", 1),
        ({"scale": torch.tensor(2.0)}, 1),
        ({"scale": torch.tensor(2.0), "x": INPUTS}, 4),
        ([INPUTS[:2], INPUTS], 2),
        (("a", {"scale": torch.tensor(2.0), "x": INPUTS[:3]}), 3),
    ],
)
def test_what_a_call_is_given_holds_as_many_inputs_as_its_first_rows(batch, count):
    (batch,) = called_batches([batch], nn.ReLU(), lambda model, batch: batch)
    assert input_count(batch) == count


@pytest.mark.parametrize(
    ("batch", "target"),
    [
        (INPUTS, None),
        ((INPUTS,), None),
        ([INPUTS, "cat", 3], "cat"),
        ((INPUTS, "cat"), "cat"),
        ({"x": INPUTS, "labels": "dog"}, "dog"),
        ({"x": INPUTS}, None),
    ],
)
def test_a_target_stands_second_or_has_a_name(batch, target):
    assert called(batch).target() == target


def test_numbers_of_another_type_than_the_networks_are_pointed_out():
    with pytest.raises(ValueError, match=r"torch\.float32: .*; its parameters are torch\.float64$"):
        answer(nn.Linear(3, 2).double(), INPUTS, "a batch")
    for model, inputs in ((nn.Linear(5, 2), INPUTS), (nn.Linear(5, 2), network_input(INPUTS, nn.ReLU()))):
        with pytest.raises(ValueError, match="shapes cannot be multiplied") as error:
            answer(model, inputs, "a batch")
        assert "its parameters are" not in str(error.value)
    both = nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"; its parameters are torch\.float32 and torch\.float64$"):
        answer(both, network_input(INPUTS.half(), nn.ReLU()), "a batch")


class Rows(nn.Module):
    """Answers of a kind that is given, to every batch."""

    def __init__(self, answers):
        super().__init__()
        self.answers = answers

    def forward(self, x):
        return self.answers(x)


def together(share):
    """Every answer moves with the batch's mean by such a share of itself."""
    return lambda x: torch.ones_like(x) * (1 + share * (len(x) > 2))


def failing(x):
    if len(x) < 3:
        raise RuntimeError("too few")
    return x


DEPEND = {
    "a little": (together(0.9e-3), False),
    "more than a thousandth": (together(1.1e-3), True),
    "a little in half precision": (lambda x: together(0.03)(x).half(), False),
    "much in half precision": (lambda x: together(0.07)(x).half(), True),
    "two rows of each": (lambda x: x.repeat_interleave(2, 0), False),
    "two rows in another order": (lambda x: torch.cat([x, x]), True),
    "another number of rows": (lambda x: x[1:], True),
    "some more rows": (lambda x: torch.cat([x, x[:1]]), True),
    "a loss": (lambda x: x.sum(), False),
    "a constant": (lambda x: torch.ones(5, 2), False),
    "a loss beside rows": (lambda x: (x.sum(), x.cumsum(0)), True),
    "other numbers of answers": (lambda x: [x.cumsum(0)] * len(x), False),
    "two alone cannot be run": (failing, True),
    "more rows among the others": (lambda x: torch.cat([x, x[:1]]) if len(x) > 2 else x, True),
    "more rows alone": (lambda x: x if len(x) > 2 else torch.cat([x, x[:1]]), True),
    "fewer rows alone": (lambda x: torch.ones(len(x) if len(x) > 2 else 1, 3), True),
}


@pytest.mark.parametrize("case", DEPEND)
def test_answers_to_two_inputs_are_compared_with_those_among_the_others(case):
    answers, expected = DEPEND[case]
    inputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    assert inputs_depend(Rows(answers), network_input(inputs, nn.ReLU())) is expected


@pytest.mark.parametrize(("count", "expected"), [(2, False), (3, True), (4, True)])
def test_from_three_inputs_on_dependence_can_be_told(count, expected):
    model = Rows(lambda x: x + 10 * x.sum(0))
    assert inputs_depend(model, network_input(torch.ones(count, 3), model)) is expected
    (batch,) = called_batches([torch.ones(count, 3)], model, lambda model, batch: model(batch))
    assert inputs_depend(model, network_input(batch, model)) is False, "a call's batch cannot be divided"


def test_two_inputs_are_tried_out_and_all_where_two_cannot_be_run():
    seen = []
    few = probe_determinism(Rows(lambda x: seen.append(len(x)) or x), network_input(INPUTS, nn.ReLU()))
    assert (seen, len(few)) == ([2, 2], 2)
    assert torch.equal(few.alone, INPUTS[:2])
    few = probe_determinism(Rows(failing), network_input(INPUTS, nn.ReLU()))
    assert torch.equal(few.alone, INPUTS)
    with pytest.raises(ValueError, match="too few"):
        probe_determinism(Rows(failing), network_input(INPUTS[:2], nn.ReLU()))
