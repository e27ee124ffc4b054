"""Batches that are the same on every reading: kept where they fit, else read anew and compared."""

import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import lobs
from helpers.networks import X, mlp
from lobs.calibration.batches import CalibrationBatches, calibration_batches, called_batches, whole_where_dependent
from lobs.calibration.calling import code_text


def test_the_text_of_code_tells_names_indices_and_functions_apart():
    given = [None, 0, 1, "logits", "loss", len, X.sum, partial(max, 1), partial(max, 2), lambda x: x, lambda x: x + 1]
    texts = [code_text(each) for each in given]
    assert len(set(texts)) == len(given)
    assert texts[:5] == ["None", "0", "1", "'logits'", "'loss'"]


def test_batches_are_read_once():
    class Counting:
        def __init__(self):
            self.readings = 0

        def __iter__(self):
            self.readings += 1
            return iter(X.split(16))

    batches = Counting()
    lobs.prune(
        mlp(), batches=batches, method="exact_obs", density=0.3, sequential=True, allocation="global", correct="auto"
    )
    assert batches.readings == 1


def held(names, batches):
    gc.collect()
    assert sum(reference() is not None for reference in batches.alive) <= 2
    return names


def test_one_reading_keeps_no_batch_but_the_first():
    class Fresh:
        """Other inputs on every reading; its batches are watched."""

        def __init__(self):
            self.readings, self.alive = 0, []

        def __iter__(self):
            self.readings += 1
            for _ in range(20):
                batch = torch.randn(8, 16)
                self.alive.append(weakref.ref(batch))
                yield batch

    batches = Fresh()
    lobs.prune(mlp(), batches=batches, method="magnitude", density=0.3, progress=lambda names: held(names, batches))
    assert batches.readings == 1


class Parts:
    """Batches that are made anew on every reading."""

    def __init__(self, sizes, change=None):
        self.sizes, self.change, self.readings = sizes, change, 0

    def __iter__(self):
        self.readings += 1
        for number, size in enumerate(self.sizes):
            yield torch.full((size, 3), float(number)), torch.zeros(size)
        if self.change is not None and self.readings > 1:
            yield self.change


def same(found, expected):
    return all(
        torch.equal(one, other) for pair in zip(found, expected, strict=True) for one, other in zip(*pair, strict=True)
    )


@pytest.mark.parametrize(("memory", "kept"), [(None, True), (100, False), (0, False)])
def test_every_reading_gives_the_same_batches_whether_they_are_kept_or_not(memory, kept):
    source = Parts([4, 4, 2])
    batches = CalibrationBatches(source, memory)
    expected = list(Parts([4, 4, 2]))
    for _ in range(3):
        assert same(batches, expected)
    assert batches.kept == kept
    assert source.readings == (1 if kept else 3)
    assert batches.input_counts() == [4, 4, 2]
    assert same([batches.first()], expected[:1])
    assert batches.fingerprint() == CalibrationBatches(expected).fingerprint()
    assert batches.fingerprint() != CalibrationBatches(expected[:2]).fingerprint()


@pytest.mark.parametrize("memory", [None, 100, 0])
def test_a_reading_that_ended_early_does_not_disturb_the_next_one(memory):
    batches = CalibrationBatches(Parts([4, 4, 2]), memory)
    expected = list(Parts([4, 4, 2]))
    for stop in (1, 2, 0, 3):
        assert same([batch for batch, _ in zip(batches, range(stop), strict=False)], expected[:stop])
    assert same(batches, expected)


@pytest.mark.parametrize("memory", [None, 0])
def test_parts_and_the_first_images_are_batches_of_their_own(memory):
    batches, expected = CalibrationBatches(Parts([4, 4, 2]), memory), list(Parts([4, 4, 2]))
    assert same(batches.part(1, 3), expected[1:])
    assert same(batches.first_images(5), expected[:2])
    assert same(batches.first_images(4), expected[:1])
    assert same(batches.first_images(99), expected)
    list(batches)
    assert same(batches.part(0, 1), expected[:1])
    assert batches.part(2, 3).input_counts() == [2]


def test_lists_are_kept_and_what_is_a_calibration_batch_stays_one():
    batches = calibration_batches([torch.ones(2, 3)], memory=0)
    assert batches.kept
    assert calibration_batches(batches) is batches
    empty = CalibrationBatches([])
    assert (list(empty), empty.first(), empty.input_counts()) == ([], None, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((torch.ones(1, 3), torch.ones(1)), "batch 2 is not the one of the first reading"),
        (None, None),
    ],
)
def test_other_batches_on_a_further_reading_are_refused(change, message):
    batches = CalibrationBatches(Parts([4, 4], change), memory=0)
    list(batches)
    if message is None:
        list(batches)
        return
    with pytest.raises(ValueError, match=rf"other batches when it is read again \({message}\).*switch shuffling"):
        list(batches)


def test_fewer_or_changed_batches_on_a_further_reading_are_refused():
    source = Parts([4, 4])
    batches = CalibrationBatches(source, memory=0)
    list(batches)
    source.sizes = [4]
    with pytest.raises(ValueError, match="1 batches came where the first reading gave 2"):
        list(batches)
    source.sizes = [4, 3]
    with pytest.raises(ValueError, match="batch 1 is not the one"):
        list(batches)


def test_an_iterator_that_does_not_fit_can_be_read_once():
    batches = CalibrationBatches(iter(Parts([4, 4])), memory=0)
    assert len(list(batches)) == 2
    with pytest.raises(ValueError, match="do not fit into memory, and the generator given is used up after one"):
        list(batches)


@pytest.mark.parametrize(
    ("sizes", "held_out"), [([20, 20, 20], 10), ([60], 10), ([28, 28, 4], 10), ([3] * 20, 10), ([48], 8)]
)
def test_every_sixth_input_is_held_out_and_kept_batches_are_cut_for_it(sizes, held_out):
    parts = [(torch.randn(size, 3), torch.arange(size), "said of all") for size in sizes]
    learned, others = CalibrationBatches(parts).divided()
    assert sum(others.input_counts()) == held_out
    for position in (0, 1):
        together = torch.cat([part[position] for part in parts])
        chosen = (torch.arange(sum(sizes)) + 1) % 6 == 0
        assert torch.equal(torch.cat([batch[position] for batch in learned]), together[~chosen])
        assert torch.equal(torch.cat([batch[position] for batch in others]), together[chosen])
    assert all(batch[2] == "said of all" for batch in [*learned, *others])


@pytest.mark.parametrize(
    ("sizes", "held_out"), [([5000, 5000, 40_000], 5000), ([40_000], 5000), ([25_000], 4166), ([31_000], 4428)]
)
def test_no_more_than_so_many_inputs_are_held_out(sizes, held_out):
    learned, others = CalibrationBatches([torch.zeros(size, 1) for size in sizes]).divided()
    assert sum(others.input_counts()) == held_out
    assert sum(learned.input_counts()) == sum(sizes) - held_out


@pytest.mark.parametrize(
    ("sizes", "learned"),
    [
        ([60, 60], 1),
        ([10] * 12, 10),
        ([100, 1, 1], 0),
        ([1, 100, 1], 1),
        ([1, 1, 100], 2),
        ([3] * 15, 0),
        ([3] * 16, 13),
    ],
)
def test_batches_that_are_read_anew_are_held_out_whole(sizes, learned):
    found = CalibrationBatches(Parts(sizes), memory=0).divided()
    if not learned:  # too few, or nothing would be left to learn from
        assert found is None
        return
    assert [part.input_counts() for part in found] == [sizes[:learned], sizes[learned:]]
    for part, expected in zip(found, (slice(0, learned), slice(learned, None)), strict=True):
        for _ in range(2):
            assert same(part, list(Parts(sizes))[expected])


def two(a, b):
    """A network's forward with two inputs."""


def listed(count):
    """Pictures of different sizes, their numbers, and one entry per picture."""
    return [torch.full((3, 2 + place % 2, 4), float(place)) for place in range(count)], [
        {"id": i} for i in range(count)
    ]


def test_lists_of_pictures_and_inputs_by_name_are_cut_like_rows():
    for made in (listed, lambda count: {"pictures": listed(count)[0], "row": torch.arange(count)}):
        learned, others = CalibrationBatches([made(48), made(12)]).divided()
        assert (learned.input_counts(), others.input_counts()) == ([40, 10], [8, 2])
    assert others.first()["row"].tolist() == [5, 11, 17, 23, 29, 35, 41, 47]
    assert [int(picture.mean()) for picture in others.first()["pictures"]] == others.first()["row"].tolist()
    _, others = CalibrationBatches([listed(48)]).divided()
    assert [entry["id"] for entry in others.first()[1]] == [5, 11, 17, 23, 29, 35, 41, 47]


def test_two_inputs_in_a_list_are_not_taken_for_two_pictures():
    model = nn.Module()
    model.forward = two
    batches = CalibrationBatches(called_batches([[[torch.randn(2, 3), torch.randn(2, 4)], "said"]] * 30, model))
    assert batches.input_counts() == [2] * 30
    learned, others = batches.divided()
    assert sum(learned.input_counts()) == 50
    assert [tuple(part.shape) for part in others.first().content[0]] == [(1, 3), (1, 4)]


@pytest.mark.parametrize("call", [None, lambda model, batch: model(*batch)])
def test_what_cannot_be_divided_is_held_out_by_whole_batches(call):
    shared = torch.randn(5, 5)
    inputs = X.split(16) if call else [((part, shared), "target") for part in X.split(16)]
    batches = CalibrationBatches(called_batches(inputs, nn.Linear(16, 2), call))
    learned, others = batches.divided()
    assert [*learned.input_counts(), *others.input_counts()] == batches.input_counts()
    assert others.input_counts()
    assert CalibrationBatches(called_batches(inputs[:1], nn.Linear(16, 2), call)).divided() is None


def test_what_is_given_starts_anew_where_it_did():
    def call(model, batch):
        return model(batch)

    model = nn.Linear(3, 2)
    source = Parts([2, 3])
    loader = called_batches(source, model, call)
    assert [len(list(loader)), len(list(loader)), source.readings] == [2, 2, 2]
    assert isinstance(called_batches(iter([X]), model, call), Iterator)
    assert called_batches([X], model, call)[0].calling.call is call
    assert called_batches(None, model) is None
    batches = CalibrationBatches([X])
    assert called_batches(batches, model) is batches
    once = called_batches([X], model, call)
    assert called_batches(once, model, None, "logits")[0] is once[0]


@dataclass
class Sample:
    values: torch.Tensor
    name: str


def test_the_fingerprint_covers_all_that_a_batch_holds_and_how_it_is_called():
    def of(batch, **keywords):
        return CalibrationBatches(called_batches([batch], nn.Linear(16, 2), **keywords)).fingerprint()

    given = [
        {"x": X, "name": "a"},
        {"x": X, "name": "b"},
        (X, [{"boxes": X[:1]}]),
        (X, [{"boxes": X[:2]}]),
        (X, np.arange(3)),
        (X, np.arange(4)),
        (X, Sample(X[0], "a")),
        (X, Sample(X[1], "a")),
    ]
    found = [of(batch) for batch in given]
    found += [of(X), of(X, output="a"), of(X, output=0), of(X, output=lambda y: y[0]), of(X, output=lambda y: y[1])]
    found += [
        of(X, call=lambda model, batch: model(batch)),
        of(X, call=partial(two, b=1)),
        of(X, call=partial(two, b=2)),
    ]
    assert len(set(found)) == len(found)
    assert found == [of(batch) for batch in given] + found[len(given) :]
    again = of(X, output=lambda y: y[0])
    assert again == found[11]


@pytest.mark.parametrize(("memory", "kept"), [(160, True), (159, False), (96, False)])
def test_batches_are_kept_up_to_the_last_byte(memory, kept):
    batches = CalibrationBatches(Parts([4, 4, 2]), memory)  # (4 * 3 + 4) * 4 bytes, twice, and half of it
    assert same(batches, list(Parts([4, 4, 2])))
    assert batches.kept == kept


def test_fewer_than_48_inputs_are_not_divided_and_no_more_than_5000_are_held_out_whole():
    assert CalibrationBatches([torch.zeros(47, 1)]).divided() is None
    assert [part.input_counts() for part in CalibrationBatches([torch.zeros(48, 1)]).divided()] == [[40], [8]]
    learned, others = CalibrationBatches(Parts([5000] * 12), memory=0).divided()
    assert (len(learned.input_counts()), others.input_counts()) == (11, [5000])


@pytest.mark.parametrize("kept", [True, False])
def test_inputs_that_belong_together_are_left_together(kept):
    recurrent, rows = nn.RNN(3, 2).eval(), nn.Linear(3, 2)
    source = list(torch.randn(60, 3).split(10))

    def batches():
        return CalibrationBatches(source if kept else Loader(source), None if kept else 0)

    plain = batches()
    assert whole_where_dependent(plain, rows) is plain
    assert not plain.whole
    empty = CalibrationBatches([])
    assert whole_where_dependent(empty, recurrent) is empty
    assert not empty.whole
    found = whole_where_dependent(batches(), recurrent)
    assert found.whole and found.kept == kept
    assert whole_where_dependent(found, recurrent) is found
    for _ in range(2):
        assert all(torch.equal(one.content, other) for one, other in zip(found, source, strict=True))
    learned, others = found.divided()
    assert (learned.input_counts(), others.input_counts()) == ([10] * 5, [10])
    assert learned.whole


class Loader:
    """Batches of an iterable that starts anew each time."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("memory", [None, 0])
def test_parts_of_parts_and_first_images_hold_what_they_say(memory):
    batches = CalibrationBatches(Parts([4, 4, 2, 5]), memory)
    expected = list(Parts([4, 4, 2, 5]))
    assert same(batches.part(1, 4).part(1, 2), expected[2:3])
    assert same(batches.first_images(8), expected[:2])
    assert same(batches.first_images(9), expected[:3])
    assert list(batches.part(2, 2)) == []
