"""Random crops and flips, from random numbers that the caller draws: the same numbers give the same images."""

from __future__ import annotations

from math import exp, log, sqrt

import torch
from torch import Tensor
from torch.nn import functional

# Random numbers per image: place of the crop (two), flip, and for pictures the crop's area and its sides' ratio.
CHANCES = 5
PADDING = 4
RATIO = 4 / 3  # of a crop's sides, at most


def shifted_and_flipped(images: Tensor, chances: Tensor) -> Tensor:
    """Small images moved by up to four pixels each way, the edge filled with black, and flipped left to right.

    The usual augmentation of CIFAR-10 (He et al. 2016, section 4.2).

    Args:
        images: uint8 ``[k, (channels,) height, width]``.
        chances: between 0 and 1, ``[k, CHANCES]``.

    Returns:
        As many images of the same shape.
    """
    shape = images.shape
    images = images if images.dim() == 4 else images[:, None]
    count, channels, height, width = images.shape
    top, left = (chances[:, :2] * (2 * PADDING + 1)).long().clamp_max(2 * PADDING).unbind(1)
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]
    columns = left[:, None] + torch.arange(width)
    flipped = (chances[:, 2] < 0.5)[:, None]
    columns = torch.where(flipped, columns.flip(1), columns)[:, None, None, :]
    padded = functional.pad(images, (PADDING,) * 4)
    which = torch.arange(count)[:, None, None, None]
    return padded[which, torch.arange(channels)[:, None, None], rows, columns].reshape(shape)


def random_box(width: int, height: int, scale: tuple[float, float], chances: list[float]) -> tuple[int, int, int, int]:
    """A crop with a random share of a picture's area and a random ratio of sides (Szegedy et al. 2015).

    Args:
        width: of the picture.
        height: of the picture.
        scale: least and most share of the area.
        chances: between 0 and 1: place (two), flip (not used), area, ratio.

    Returns:
        Left, top, right, bottom: within the picture, at least one pixel each way.
    """
    area = width * height * (scale[0] + (scale[1] - scale[0]) * chances[3])
    ratio = exp((2 * chances[4] - 1) * log(RATIO))
    wide = min(width, max(1, round(sqrt(area * ratio))))
    high = min(height, max(1, round(sqrt(area / ratio))))
    left, top = round(chances[0] * (width - wide)), round(chances[1] * (height - high))
    return left, top, left + wide, top + high
