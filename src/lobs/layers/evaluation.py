"""Evaluation mode for the length of a block: used by the library and by the experiments above it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lobs.layers.parts import calls_of_parts


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off and batch norm fixed inside the block, every layer called as one (`lobs.layers.parts`).

    Every module's flag comes back as it was.
    """
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with calls_of_parts(model):
            yield
    finally:
        for module, flag in flags.items():
            module.training = flag
