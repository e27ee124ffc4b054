"""A convolution's second moment with hardly anything unfolded, where its kernel moves step by step.

Let u[i] be what the kernel sees of row i of the padded inputs: features ``channels * places in a row`` at every column
and in every image. Psi's block of the kernel's rows k and k' is a sum over the output's rows p::

    Psi(k, k') = sum over p of u[p + k] u[p + k']^T

which for all blocks with the same difference ``k' - k`` is a sum over nearly the same rows. The rows that all of them
have in common are multiplied once, as one product; the few others row by row, but for those of zeros. For a kernel of
3 x 3 that is three products of a third of the features in the place of one: a third of the operations, and of the
unfolded inputs.

Between zeros on both sides, as convolutions have them that keep the size, columns go the same way, and nothing is
unfolded: a row's lines lie one behind the other, and one product for every difference takes all pairs of pixels that
far apart; a column or two, which some blocks do not meet, are multiplied alone. Pairs across the end of a line are
zero. That is 13 products of ``channels x channels`` for a kernel of 3 x 3, half of the operations again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from lobs.calibration.products import CHUNK_SAMPLES, row_blocks, symmetrise
from lobs.layers.convolution import Windows

# Of output rows; below that the products row by row cost what is saved.
FEWEST_ROWS = 4
# Below that products of a difference each are too small: threads wait for each other.
FEWEST_FEATURES = 32
# Products of fewer features are too small for threads to share one.
MANY_FEATURES = 256
# So few features are summed one by one, which rounds more: their chunks are shorter.
FEW_FEATURES, SHORT_CHUNK = 12, 256


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
        zeros = _zero_columns(windows)
        seen = _Rows(windows) if zeros is None else _Lines(windows, zeros)
        for difference, blocks in enumerate(self.blocks):
            reach = step * (len(blocks) - 1)
            common = seen.product(reach, rows, difference * step)
            # Rows before and after the common ones, each for the blocks that reach it.
            edges = {}
            for row in (*range(reach), *range(rows, rows + reach)):
                if seen.filled(row) and seen.filled(row + difference * step):
                    edges[row] = seen.product(row, row + 1, difference * step)
            for k, block in enumerate(blocks):
                block += common
                for row in (*range(k * step, reach), *range(rows, rows + k * step)):
                    if row in edges:
                        block += edges[row]
        by_row = functional.pad(seen.sums().double().cumsum(1), (1, 0))
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


class _Rows:
    """u, ``[channels * places in a row, rows of the inputs * images * columns]``.

    Args:
        windows: of a call.
        as_it_is: axes at the end that are not unfolded.
        room: zeros behind the last pixel.
    """

    def __init__(self, windows: Windows, as_it_is: int = 0, room: int = 0) -> None:
        self.rows = windows.inputs.shape[2]
        self.flat = _unfolded(windows, range(1, len(windows.kernel) - as_it_is), room)
        self.pixels = (self.flat.shape[1] - room) // self.rows
        self._filled: dict[int, bool] = {}

    def product(self, start: int, stop: int, shift: int) -> Tensor:
        """The sum of ``u[i] u[i + shift]^T`` over rows i, float64; without a shift perhaps only its lower triangle."""
        partner = self._part(start + shift, stop + shift)
        return _products([(self._part(start, stop), partner)], lower_only=not shift)[0]

    def filled(self, row: int) -> bool:
        """Whether a row is not all zero."""
        if row not in self._filled:
            self._filled[row] = bool(self._part(row, row + 1).any())
        return self._filled[row]

    def sums(self) -> Tensor:
        """The sum of every row, ``[features, rows]``."""
        return self._by_rows().sum(2)

    def _part(self, start: int, stop: int, further: int = 0, of: Tensor | None = None) -> Tensor:
        flat = self.flat if of is None else of
        return flat[:, start * self.pixels + further : stop * self.pixels + further]

    def _by_rows(self, flat: Tensor | None = None) -> Tensor:
        return self._part(0, self.rows, of=flat).unflatten(1, (self.rows, -1))


class _Lines(_Rows):
    """The same with the last axis as it is: a row's lines lie one behind the other.

    Args:
        windows: of a call, with zeros enough at the ends of its lines.
        zeros: which columns near the ends are zero.
    """

    def __init__(self, windows: Windows, zeros: set[int]) -> None:
        self.places, self.step, self.columns = windows.kernel[-1], windows.dilation[-1], windows.sizes[-1]
        self.line, self.zeros = windows.inputs.shape[-1], zeros
        # The room is for the last pixel's furthest partner.
        super().__init__(windows, as_it_is=1, room=self.step * (self.places - 1))
        missed = {step: self._missed(step) for step in range(1 - self.places, self.places)}
        edges = sorted({column for columns in missed.values() for column in columns})
        # Where a place misses some, these are left out and added where they count: to take them off leaves rounding.
        self._inner = self.flat.clone() if edges else self.flat
        for column in edges:
            self._by_rows(self._inner)[:, :, column :: self.line] = 0
        self._added = {
            step: [column for column in edges if columns and self._counts(column, step)]
            for step, columns in missed.items()
        }
        self._columns: dict[int, Tensor] = {}

    def product(self, start: int, stop: int, shift: int) -> Tensor:
        """The same, from a product for every difference of columns."""
        features, steps = len(self.flat), range(1 - self.places if shift else 0, self.places)
        pairs = []
        for step in steps:
            first = self._part(start, stop, of=self._inner if self._added[step] else self.flat)
            pairs.append((first, self._part(start + shift, stop + shift, step * self.step)))
        total = self.flat.new_empty(features, self.places, features, self.places, dtype=torch.float64)
        for step, products in zip(steps, _products(pairs), strict=True):
            found = {column: self._of_columns(column, step, (start, stop), shift) for column in self._added[step]}
            for k in range(max(0, -step), self.places - max(0, step)):
                met = range(k * self.step, k * self.step + self.columns)
                block = sum((part for column, part in found.items() if column in met), products)
                total[:, k, :, k + step] = block
                if step and not shift:
                    total[:, k + step, :, k] = block.T
        return total.flatten(2).flatten(0, 1)

    def _missed(self, step: int) -> list[int]:
        """Columns that not all places of the kernel meet which have a partner so many places on, but for zeros."""
        last, first = self.places - 1 - max(0, step), max(0, -step)
        columns = (*range(last * self.step), *range(first * self.step + self.columns, self.line))
        return [column for column in dict.fromkeys(columns) if self._counts(column, step)]

    def _counts(self, column: int, step: int) -> bool:
        """Whether a column and its partner are both in the line and not zero."""
        partner = column + step * self.step
        return 0 <= partner < self.line and self.zeros.isdisjoint({column, partner})

    def _of_columns(self, column: int, step: int, rows: tuple[int, int], shift: int) -> Tensor:
        """The product of one column and its partner, so many places and rows away."""
        partner = self._column(column + step * self.step, *(row + shift for row in rows))
        return _products([(self._column(column, *rows), partner)])[0]

    def sums(self) -> Tensor:
        """For every place of the kernel those of the columns that it meets."""
        lines = self._by_rows().unflatten(2, (-1, self.line)).sum(2)
        met = (lines[..., k * self.step : k * self.step + self.columns] for k in range(self.places))
        return torch.stack([part.sum(2) for part in met], 1).flatten(0, 1)

    def _column(self, column: int, start: int, stop: int) -> Tensor:
        """A column in some rows of all images, ``[features, rows * images]``."""
        if column not in self._columns:
            self._columns[column] = self._by_rows()[:, :, column :: self.line].contiguous()
        return self._columns[column][:, start:stop].flatten(1)


def _zero_columns(windows: Windows) -> set[int] | None:
    """Which columns near the ends of the lines are zero; None where they are too few, or something else is faster."""
    kernel, line = windows.kernel[-1], windows.inputs.shape[-1]
    features = windows.inputs.shape[1] * prod(windows.kernel[1:-1])
    if len(windows.kernel) == 1 or kernel == 1 or windows.stride[-1] > 1 or features < FEWEST_FEATURES:
        return None
    reach = windows.dilation[-1] * (kernel - 1)
    near = {*range(min(reach, line)), *range(max(0, line - reach), line)}
    zeros = {column for column in near if not windows.inputs.select(-1, column).any()}
    before = next(column for column in range(line + 1) if column not in zeros)
    behind = next(column for column in range(line + 1) if line - 1 - column not in zeros)
    # Then of two pixels across the end of a line one is zero.
    return zeros if before + behind >= reach else None


def _unfolded(windows: Windows, axes: range, room: int) -> Tensor:
    """Features by pixels: rows outermost, then images, places along the axes that are unfolded, and the other axes.

    Args:
        windows: of a call.
        axes: along which they are unfolded.
        room: zeros behind the last pixel.

    Returns:
        ``[channels * places of the kernel, pixels + room]``.
    """
    views = windows.inputs
    for axis in axes:
        span = (windows.sizes[axis] - 1) * windows.stride[axis] + 1
        views = views.unfold(2 + axis, span, windows.dilation[axis]).narrow(2 + axis, 0, windows.kernel[axis])
        views = views[..., :: windows.stride[axis]]
    ends = range(2 + len(windows.kernel), views.dim())
    rest = range(3 + len(axes), 2 + len(windows.kernel))
    views = views.permute(1, *(2 + axis for axis in axes), 2, 0, *ends, *rest)
    features, shape = views.shape[: 1 + len(axes)], views.shape[1 + len(axes) :]
    flat = views.new_empty(prod(features), prod(shape) + room)
    flat[:, prod(shape) :] = 0
    flat[:, : prod(shape)].unflatten(1, shape).unflatten(0, features).copy_(views)
    return flat


def _products(pairs: Sequence[tuple[Tensor, Tensor]], lower_only: bool = False) -> list[Tensor]:
    """``first second^T`` of pairs, summed in float64 over chunks of columns; above the diagonal perhaps only some."""
    features, pixels = pairs[0][0].shape
    if features < MANY_FEATURES:
        return [_at_once(one, other) for one, other in pairs]
    totals = [one.new_zeros(features, features, dtype=torch.float64) for one, _ in pairs]
    for start in range(0, pixels, CHUNK_SAMPLES):
        chunk = slice(start, start + CHUNK_SAMPLES)  # stays in the cache for all pairs
        for total, (one, other) in zip(totals, pairs, strict=True):
            for rows in row_blocks(features):
                stop = rows.stop if lower_only else None
                total[rows, :stop] += one[rows, chunk] @ other[:stop, chunk].T
    return totals


def _at_once(one: Tensor, other: Tensor) -> Tensor:
    """A product of few features, all chunks of it in one call: threads share the chunks, not a small product."""
    pixels = one.shape[1]
    chunks = max(2, -(-pixels // (SHORT_CHUNK if len(one) < FEW_FEATURES else CHUNK_SAMPLES)))
    whole = pixels // chunks * chunks
    first, second = (part[:, :whole].unflatten(1, (chunks, pixels // chunks)).transpose(0, 1) for part in (one, other))
    total = (first @ second.mT).sum(0, dtype=torch.float64)
    return total if whole == pixels else total + one[:, whole:] @ other[:, whole:].T
