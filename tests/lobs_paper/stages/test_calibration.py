"""Which images the passes over the calibration images see."""

import torch

from lobs_paper.data.splits import Split
from lobs_paper.stages.calibration import calibration_batches


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
