"""A convolution's second moment without unfolding its inputs.

Psi's block of the kernel places k and k' is the sum over the output positions p of ``x[p + k] x[p + k']^T``, with x the
padded inputs and ``[channels]`` at every pixel. Let the kernel move by single pixels. Up to the borders that depends on
``k' - k`` alone::

    F(d) = sum over all pixels q of x[q] x[q + d]^T,    Psi(k, k') = F(k' - k) - sum over q that no output has as p + k

One product per difference d of two places, those of opposite sign being each other's transposes: for a kernel of 3 x 3
13 instead of 81. The pixels that do not count lie in the first and last rows and columns; their sums are cumulative
sums of products of single rows, columns and corner pixels, a batched product of each kind per difference.

With the pixels of all images in one long row, ``q + d`` is ``q`` moved by a fixed number of places. What so meets
across the end of a row or an image lies in those rows and columns as well, and is taken away with them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from lobs.layers.convolution import Windows

# Pixels in one product: rounding in float32 grows with them (`lobs.calibration.accumulator.CHUNK_SAMPLES`).
CHUNK_PIXELS = 4096


def shifts_pay(windows: Windows) -> bool:
    """Whether fewer products of single channels are faster than one of unfolded patches: measured, see benchmarks/."""
    places, sizes = prod(windows.kernel), windows.sizes
    return (
        len(windows.kernel) == 2
        and windows.groups == 1
        and places > 1
        and set(windows.stride) == {1}
        and windows.inputs.shape[1] >= 32
        and min(sizes) >= 4 * max(windows.kernel)
    )


def shifted_products(windows: Windows) -> tuple[Tensor, Tensor]:
    """Sums over all output positions of a convolution with stride 1 over two axes and one group.

    Args:
        windows: what the kernel slides over.

    Returns:
        moment: sum of ``y y^T`` over the patches y, float64 ``[d, d]`` with ``d = channels * kernel places``.
        total: sum of ``y``, float64 ``[d]``.
    """
    height, width = windows.kernel
    places = list(product(range(height), range(width)))
    channels = windows.inputs.shape[1]
    moment = windows.inputs.new_zeros(len(places), len(places), channels, channels, dtype=torch.float64)
    sums = _Differences(windows)
    blocks: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (i, one), (j, other) in product(enumerate(places), repeat=2):
        if i <= j:
            blocks.setdefault((other[0] - one[0], other[1] - one[1]), []).append((i, j))
    for difference, pairs in blocks.items():
        counted = sums.of(difference)
        for i, j in pairs:
            moment[i, j] = counted(places[i])
            if i < j:
                moment[j, i] = moment[i, j].T
    features = channels * len(places)
    return moment.permute(2, 0, 3, 1).reshape(features, features), sums.totals().flatten()


class _Differences:
    """Sums of ``x[q] x[q + d]^T`` over the pixels that a place of the kernel reaches.

    Args:
        windows: with a stride of 1.
    """

    def __init__(self, windows: Windows) -> None:
        self.kernel, self.dilation, self.sizes = windows.kernel, windows.dilation, windows.sizes
        images, self.channels, *self.shape = windows.inputs.shape
        self.images = images
        self.margin = [step * (size - 1) for step, size in zip(self.dilation, self.kernel, strict=True)]
        self.pixels = windows.inputs.transpose(0, 1).flatten(1)  # [channels, images * height * width]
        # Room at both ends, so that every pixel has one at every difference: zeros meet nothing.
        self.room = self.margin[0] * self.shape[1] + self.margin[1]
        self.padded = functional.pad(self.pixels, (self.room, self.room))

    def of(self, difference: tuple[int, int]) -> Callable[[tuple[int, int]], Tensor]:
        """A function from a place of the kernel to the sum that belongs to it, float64 ``[channels, channels]``."""
        offset = difference[0] * self.dilation[0] * self.shape[1] + difference[1] * self.dilation[1]
        moved = self.padded[:, self.room + offset : self.room + offset + self.pixels.shape[1]]
        whole = torch.zeros(self.channels, self.channels, dtype=torch.float64, device=moved.device)
        for own, other in zip(self.pixels.split(CHUNK_PIXELS, 1), moved.split(CHUNK_PIXELS, 1), strict=True):
            whole += own @ other.T
        own, other = (part.unflatten(1, (self.images, *self.shape)) for part in (self.pixels, moved))
        edges = [self._edge(axis) for axis in (0, 1)]
        rows = _cumulated(own[:, :, edges[0]], other[:, :, edges[0]], (2,))
        columns = _cumulated(own[..., edges[1]], other[..., edges[1]], (3,))
        corners = _cumulated(own[:, :, edges[0]][..., edges[1]], other[:, :, edges[0]][..., edges[1]], (2, 3))

        def counted(place: tuple[int, int]) -> Tensor:
            top, left = (step * index for step, index in zip(self.dilation, place, strict=True))
            outside_rows = _outside(rows, 0, top, self.margin[0])
            outside_columns = _outside(columns, 0, left, self.margin[1])
            both = _outside(_outside(corners, 0, top, self.margin[0]), 0, left, self.margin[1])
            return whole - outside_rows - outside_columns + both

        return counted

    def totals(self) -> Tensor:
        """Sums of x over the pixels that each place reaches, float64 ``[channels, places]``."""
        images = self.pixels.unflatten(1, (self.images, *self.shape)).sum(1, dtype=torch.float64)
        tops, lefts = (
            [step * index for index in range(size)] for step, size in zip(self.dilation, self.kernel, strict=True)
        )
        height, width = self.sizes
        return torch.stack(
            [images[:, top : top + height, left : left + width].sum((1, 2)) for top in tops for left in lefts], 1
        )

    def _edge(self, axis: int) -> Tensor:
        """The first and last rows or columns, which some place of the kernel does not reach."""
        count, size = self.margin[axis], self.shape[axis]
        return torch.cat([torch.arange(count), torch.arange(size - count, size)])


def _cumulated(own: Tensor, other: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Products of the slices along some axes, summed up from the first on: a zero, then one more slice each.

    Args:
        own: ``[channels, images, rows, columns]``.
        other: likewise.
        axes: along which every slice has a product of its own.

    Returns:
        float64 ``[slices + 1 (, slices + 1), channels, channels]``.
    """
    parts = [part.movedim(axes, tuple(range(len(axes)))).flatten(len(axes) + 1) for part in (own, other)]
    products = (parts[0] @ parts[1].mT).double()
    for axis in range(len(axes)):
        products = functional.pad(products.movedim(axis, -1), (1, 0)).cumsum(-1).movedim(-1, axis)
    return products


def _outside(cumulated: Tensor, axis: int, first: int, margin: int) -> Tensor:
    """The sum over the slices before the ``first`` one that counts, and after the last one."""
    before = cumulated.select(axis, first)
    return before + cumulated.select(axis, 2 * margin) - cumulated.select(axis, margin + first)
