"""A convolution's second moment with its inputs unfolded along all axes but the first.

Let u[i] be what the kernel sees of row i of the padded inputs: features ``channels * places in a row`` at every column
and in every image. Psi's block of the kernel's rows k and k' is a sum over the output's rows p::

    Psi(k, k') = sum over p of u[p + k] u[p + k']^T

which for all blocks with the same difference ``k' - k`` is a sum over nearly the same rows. The rows that all of them
have in common are multiplied once, as one product; the few others row by row. For a kernel of 3 x 3 that is three
products of a third of the features in the place of one: a third of the operations, and of the unfolded inputs.
"""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from lobs.calibration.products import CHUNK_SAMPLES, row_blocks, symmetrise
from lobs.layers.convolution import Windows

# Of output rows; below that the products row by row cost what is saved.
FEWEST_ROWS = 4


def shifts_pay(windows: Windows) -> bool:
    """Whether this is faster than to unfold the inputs along all axes (measured: `benchmarks/speed.py`)."""
    rows, margin = windows.sizes[0], windows.dilation[0] * (windows.kernel[0] - 1)
    one_step = windows.stride[0] == 1 and windows.kernel[0] > 1
    return windows.groups == 1 and one_step and rows >= FEWEST_ROWS + margin


class ShiftedSums:
    """Sums over all output positions of a convolution of one group that moves row by row.

    The kernel's rows are kept apart, in a block per pair of them: whole blocks are added, and put together once.

    Args:
        windows: what the kernel slides over in the first call.
    """

    def __init__(self, windows: Windows) -> None:
        self.channels, self.height = windows.inputs.shape[1], windows.kernel[0]
        self.width = self.channels * prod(windows.kernel[1:])
        zeros = partial(windows.inputs.new_zeros, dtype=torch.float64)
        self.blocks = [zeros(self.height - difference, self.width, self.width) for difference in range(self.height)]
        self.total = zeros(self.height, self.width)

    def add(self, windows: Windows) -> None:
        """Add a call: more rows of output than the kernel's height less one (`shifts_pay`)."""
        step, rows = windows.dilation[0], windows.sizes[0]
        margin = step * (self.height - 1)
        seen = _rows_seen(windows)
        for difference, blocks in enumerate(self.blocks):
            first, second = seen[:, : seen.shape[1] - difference * step], seen[:, difference * step :]
            common = _product(first[:, margin:rows], second[:, margin:rows], lower_only=not difference)
            # Rows before and after the common ones, each for the blocks that reach it.
            others = (*range(margin), *range(rows, rows + margin - difference * step))
            edges = {row: first[:, row] @ second[:, row].T for row in others}
            for k, block in enumerate(blocks):
                reached = [edges[row] for row in (*range(k * step, margin), *range(rows, rows + k * step))]
                block += common
                for one in reached:
                    block += one
        by_row = functional.pad(seen.sum(2).double().cumsum(1), (1, 0))
        self.total += torch.stack([by_row[:, k * step + rows] - by_row[:, k * step] for k in range(self.height)])

    def add_to(self, moment: Tensor, total: Tensor | None) -> None:
        """Add the sums to others; these are used up.

        Args:
            moment: gets the sum of ``y y^T`` over the patches y, float64 ``[d, d]``, ``d = channels * kernel places``.
            total: gets the sum of ``y``, float64 ``[d]``, where it is given.
        """
        shape = self.channels, self.height, self.width // self.channels
        parts = moment.unflatten(0, shape).unflatten(-1, shape)
        while self.blocks:
            blocks = self.blocks.pop()
            difference = len(self.blocks)
            if not difference:
                symmetrise(blocks, lower_only=True)
            for k, block in enumerate(blocks):
                parts[:, k, :, :, k + difference] += block.view(shape[0], shape[2], shape[0], shape[2])
                if difference:
                    parts[:, k + difference, :, :, k] += block.T.reshape(shape[0], shape[2], shape[0], shape[2])
        if total is not None:
            total += self.total.unflatten(1, (shape[0], -1)).transpose(0, 1).flatten()


def _rows_seen(windows: Windows) -> Tensor:
    """u, ``[channels * places in a row, rows of the inputs, images * columns]``."""
    views = windows.inputs
    steps = zip(windows.sizes, windows.kernel, windows.stride, windows.dilation, strict=True)
    for axis, (size, kernel, stride, dilation) in enumerate(list(steps)[1:], start=3):
        views = views.unfold(axis, (size - 1) * stride + 1, dilation).narrow(axis, 0, kernel)[..., ::stride]
    # [images, channels, rows, places ..., columns ...]
    others = len(windows.kernel) - 1
    order = (1, *range(3, 3 + others), 2, 0, *range(3 + others, 3 + 2 * others))
    return views.permute(order).reshape(windows.inputs.shape[1] * prod(windows.kernel[1:]), windows.inputs.shape[2], -1)


def _product(first: Tensor, second: Tensor, lower_only: bool) -> Tensor:
    """Sum of ``first second^T`` over all rows and pixels, float64; of the part above the diagonal only some."""
    total = first.new_zeros(len(first), len(second), dtype=torch.float64)
    pairs = zip(first.flatten(1).split(CHUNK_SAMPLES, 1), second.flatten(1).split(CHUNK_SAMPLES, 1), strict=True)
    for one, other in pairs:
        for rows in row_blocks(len(first)):
            stop = rows.stop if lower_only else None
            total[rows, :stop] += one[rows] @ other[:stop].T
    return total
