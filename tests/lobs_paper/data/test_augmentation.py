"""Crops and flips from random numbers that are given."""

import pytest
import torch

from lobs_paper.data.augmentation import CHANCES, random_box, shifted_and_flipped


def test_crops_stay_inside_and_have_the_share_of_the_area_that_was_asked_for():
    for seed in range(200):
        chances = torch.rand(CHANCES, generator=torch.Generator().manual_seed(seed)).tolist()
        left, top, right, bottom = random_box(300, 200, (0.2, 0.3), chances)
        assert 0 <= left < right <= 300
        assert 0 <= top < bottom <= 200
        assert 0.19 <= (right - left) * (bottom - top) / 60000 <= 0.31


@pytest.mark.parametrize("channels", [None, 3])
def test_small_images_are_moved_by_up_to_four_pixels_and_flipped(channels):
    generator = torch.Generator().manual_seed(0)
    shape = (60, 6, 7) if channels is None else (60, channels, 6, 7)
    images = torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)
    chances = torch.rand(60, CHANCES, generator=generator)
    chances[0, :2], chances[1, :2] = 0.0, 0.9999
    varied = shifted_and_flipped(images, chances)
    assert varied.shape == images.shape
    flips = 0
    for image, result, numbers in zip(images, varied, chances, strict=True):
        top, left = int(numbers[0] * 9), int(numbers[1] * 9)
        expected = torch.nn.functional.pad(image, (4, 4, 4, 4))[..., top : top + 6, left : left + 7]
        flips += bool(numbers[2] < 0.5)
        assert torch.equal(result, expected.flip(-1) if numbers[2] < 0.5 else expected)
    assert 15 < flips < 45
