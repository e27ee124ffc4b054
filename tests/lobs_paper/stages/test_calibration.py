"""Which images the passes over the calibration images see."""

import torch

from lobs_paper.data.splits import Split
from lobs_paper.stages.calibration import calibration_batches, inputs_for_pruning, learned_and_held_out


def inputs_of(batches):
    return torch.cat([inputs for inputs, _ in batches])


def test_passes_made_again_and_again_see_fewer_images_and_each_as_it_is():
    images = torch.arange(6 * 9, dtype=torch.uint8).reshape(6, 3, 3)
    train = Split(images, torch.zeros(6, dtype=torch.long))
    collect = {"images": 5, "images_per_pass": 4, "augmented_copies": 3, "batch_size": 2}
    assert len(inputs_of(calibration_batches(train, collect))) == 5 * 3
    again = calibration_batches(train, collect, repeated=True)
    assert torch.equal(inputs_of(again), images[:4, None].float() / 255)
    assert len(again) == 2
    for limits, count in (({"images_per_pass": 9}, 5), ({"images": None, "images_per_pass": None}, 6)):
        assert len(inputs_of(calibration_batches(train, {**collect, **limits}, repeated=True))) == count


def test_what_is_held_out_is_learned_from_in_no_view():
    images = torch.arange(30 * 9, dtype=torch.uint8).reshape(30, 3, 3)
    train = Split(images, torch.zeros(30, dtype=torch.long))
    collect = {"images": 24, "images_per_pass": 4, "augmented_copies": 3, "batch_size": 5}
    learned, held_out = learned_and_held_out(train, collect)
    assert torch.equal(inputs_of(held_out), images[20:24, None].float() / 255)
    found = inputs_of(learned)
    assert len(found) == 20 * 3
    assert torch.equal(found[:20], images[:20, None].float() / 255)
    learned, held_out = learned_and_held_out(train, {**collect, "images": None})
    assert (len(inputs_of(learned)), len(inputs_of(held_out))) == (25 * 3, 5)
    learned, held_out = learned_and_held_out(train, collect, 12)
    assert (len(inputs_of(learned)), len(inputs_of(held_out))) == (10 * 3, 2)


def test_a_method_is_given_what_it_runs_the_network_on():
    train = Split(torch.zeros(30, 3, 3, dtype=torch.uint8), torch.zeros(30, dtype=torch.long))
    collect = {"images": None, "images_per_pass": 8, "augmented_copies": 1, "batch_size": 5}
    plain = {
        "allocation": "relative",
        "sequential": False,
        "stages": 1,
        "correct": "none",
        "refit": False,
        "images": None,
    }
    assert inputs_for_pruning(plain, train, collect) == (None, None)
    batches, held_out = inputs_for_pruning({**plain, "sequential": True}, train, collect)
    assert (len(inputs_of(batches)), held_out) == (8, None)
    for compared in ({"allocation": "global"}, {"refit": True}, {"refit": 20}):
        batches, held_out = inputs_for_pruning({**plain, **compared}, train, collect)
        assert (len(inputs_of(batches)), len(inputs_of(held_out))) == (25, 5)
