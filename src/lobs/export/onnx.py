"""Export to ONNX, for runtimes outside of Python."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from lobs.base.atomic import replacing
from lobs.base.modes import without_training


def export_onnx(model: nn.Module, example_input: Tensor, path: str | Path) -> Path:
    """Write a network in evaluation mode as one ONNX file whose batch size is free.

    Args:
        model: pruned, compacted or neither; not changed. Zeros are stored as they are: a network that is compacted
            first (`lobs.compact`) makes a smaller and faster file.
        example_input: one batch ``[n, ...]``; tells the shapes beside the batch size. The input's name is ``input``,
            the output's ``output``.
        path: the file; its folder is created.

    Returns:
        The path.

    Raises:
        ValueError: onnx or onnxscript is not installed, or torch cannot export the network.
    """
    missing = [package for package in ("onnx", "onnxscript") if find_spec(package) is None]
    if missing:
        raise ValueError(f"ONNX export needs {' and '.join(missing)}: install lobs[export]")
    path = Path(path)
    # A batch of one would be exported as a network for batches of one.
    batch = example_input if len(example_input) > 1 else example_input.expand(2, *example_input.shape[1:])
    with replacing(path) as partial:
        try:
            with without_training(model), torch.no_grad():
                torch.onnx.export(
                    model,
                    (batch,),
                    partial,
                    input_names=["input"],
                    output_names=["output"],
                    dynamic_shapes=({0: torch.export.Dim("batch")},),
                    dynamo=True,
                    external_data=False,
                    verbose=False,
                )
        except Exception as error:
            raise ValueError(f"{type(model).__name__} cannot be exported to ONNX: {error}") from error
    return path
