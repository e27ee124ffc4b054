"""Export to ONNX, for runtimes outside of Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lobs.base.arguments import check_module
from lobs.base.atomic import replacing
from lobs.base.modes import without_training
from lobs.base.network_inputs import by_position


def export_onnx(model: nn.Module, example_input: Tensor | Sequence | Mapping[str, Any], path: str | Path) -> Path:
    """Write a network in evaluation mode as one ONNX file whose batch size is free.

    Args:
        model: pruned, compacted or neither; not changed. Zeros are stored as they are: a network that is compacted
            first (`lobs.compact`) makes a smaller and faster file.
        example_input: one batch ``[n, ...]``, or the arguments of one call, tensors ``[n, ...]`` in a tuple or by
            name in a dict; tells the shapes beside the batch size. A single input's name is ``input``, several have
            their parameters' names; the (first) output's is ``output``.
        path: the file; its folder is created.

    Returns:
        The path.

    Raises:
        ValueError: onnx or onnxscript is not installed, or torch cannot export the network.
        TypeError: the example is of another kind, or forward takes some of it by name alone.
    """
    missing = [package for package in ("onnx", "onnxscript") if find_spec(package) is None]
    if missing:
        raise ValueError(f"ONNX export needs {' and '.join(missing)}: install lobs[export]")
    path = Path(path)
    check_module(model)
    arguments = by_position(model, example_input)
    batch = tuple(_several(value) for value in arguments.values())
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    size = torch.export.Dim("batch")
    with replacing(path) as partial:
        try:
            with without_training(model), torch.no_grad():
                torch.onnx.export(
                    model,
                    batch,
                    partial,
                    input_names=names if len(names) > 1 else ["input"],
                    output_names=["output"],
                    dynamic_shapes=tuple({0: size} if _rows(value) else None for value in batch),
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                )
        except Exception as error:
            raise ValueError(f"{type(model).__name__} cannot be exported to ONNX: {error}") from error
    return path


def _rows(value: Any) -> int:
    """How many inputs an argument holds; 0 of one that has none."""
    return len(value) if isinstance(value, Tensor) and value.dim() else 0


def _several(value: Any) -> Any:
    """A batch of two in the place of one, which would be exported as a network for batches of one."""
    return value.expand(2, *value.shape[1:]) if _rows(value) == 1 else value
