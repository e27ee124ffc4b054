"""`nn.Linear` as a matrix: every vector along the last axis is a sample."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from lobs.layers.view import View

CHECKED_ROWS = 256


class LinearView(View):
    """One group, ``features = in_features``."""

    def samples(self, module: nn.Linear, inputs: Tensor, chunk_bytes: int) -> Iterator[Tensor]:
        """All vectors in one chunk: a view."""
        yield inputs.reshape(1, -1, inputs.shape[-1])

    def unit_axis(self, outputs: Tensor) -> int:
        """The last axis."""
        return -1

    def part(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The first rows."""
        rows = inputs.reshape(-1, inputs.shape[-1])[:CHECKED_ROWS]
        return rows, outputs.reshape(-1, outputs.shape[-1])[:CHECKED_ROWS]
