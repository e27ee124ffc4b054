"""Evaluation mode for the length of a block in which layers are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lobs.base.modes import without_training
from lobs.layers.parts import calls_of_parts


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off and batch norm fixed inside the block, every layer called as one (`lobs.layers.parts`).

    What only runs a network, times or exports it takes `lobs.base.modes.without_training`: calls of parts take longer.
    """
    with without_training(model), calls_of_parts(model):
        yield
