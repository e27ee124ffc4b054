"""A split of small random images."""

import torch

from lobs_paper.data.splits import Split


def split(count=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 4, 5), generator=generator, dtype=torch.uint8)
    return Split(images, torch.arange(count) % 3)
