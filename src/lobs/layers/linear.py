"""`nn.Linear` as a matrix: every vector along the last axis is a sample."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from lobs.layers.view import View

CHECKED_ROWS = 256


class LinearView(View):
    """One group, ``features = in_features``."""

    def samples(self, module: Any, inputs: Tensor, chunk_bytes: int) -> Iterator[Tensor]:
        """All vectors in one chunk: a view."""
        yield inputs.reshape(1, -1, inputs.shape[-1])

    def unit_axis(self, outputs: Tensor) -> int:
        """The last axis."""
        return -1

    def part(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The first rows."""
        rows = inputs.reshape(-1, inputs.shape[-1])[:CHECKED_ROWS]
        return rows, outputs.reshape(-1, outputs.shape[-1])[:CHECKED_ROWS]


class TransposedLinearView(LinearView):
    """The `Conv1D` of Hugging Face's transformers (GPT-2): a Linear whose weight is ``[in, out]``."""

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Known by its name and its ``nf`` units, so that transformers need not be there."""
        named = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__) and hasattr(module, "nf")
        weight = module._parameters.get("weight")
        return named and weight is not None and weight.dim() == 2 and hasattr(module, "bias")

    def matrix(self, module: Any, values: Tensor) -> Tensor:
        """Transposed."""
        return values.T

    def shaped(self, module: Any, matrix: Tensor) -> Tensor:
        """Transposed back."""
        return matrix.T
