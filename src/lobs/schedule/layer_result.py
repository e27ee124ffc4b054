"""What pruning did to one layer, and the file that keeps it for a call that is made again after an interruption."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lobs.base.fingerprint import digest
from lobs.base.tensor_files import OF, layer_file, read_part, write_tensors
from lobs.calibration.statistics import layer_error
from lobs.layers.matrix import set_weight_matrix, weight_matrix
from lobs.layers.view import Prunable
from lobs.solvers import PruningPath

# Of a step, what is a number or a word.
NUMBERS = ("features", "removable", "error", "relative_error", "sensitivity_threshold", "damping", "seconds", "note")


@dataclass(frozen=True)
class LayerResult:
    """One layer's part in the pruning of a network.

    Attributes:
        name: of the layer.
        trained: its weight before, ``[out, d]``.
        weight: its weight now, likewise.
        mask: likewise, True where a weight is kept.
        features: columns of the weight that are no bias.
        removable: weights that could have been removed.
        error: see `lobs.LayerRecord`, as are the others.
        relative_error: likewise.
        sensitivity_threshold: likewise.
        damping: likewise.
        seconds: likewise.
        note: what was approximated, where anything was.
    """

    name: str
    trained: Tensor
    weight: Tensor
    mask: Tensor
    features: int
    removable: int
    error: float
    relative_error: float
    sensitivity_threshold: float | None
    damping: float
    seconds: float
    note: str | None = None

    @classmethod
    def taken(
        cls, name: str, trained: Tensor, path: PruningPath, count: int, solved: tuple[Tensor, Tensor], seconds: float
    ) -> LayerResult:
        """The result at one point of a layer's path.

        Args:
            name: of the layer.
            trained: its weight before.
            path: that was taken; in sequence it starts at W*.
            count: weights removed.
            solved: the new weight and its mask.
            seconds: spent.

        Returns:
            The result, its error measured.
        """
        layer = path.statistics
        if layer.target_power is None:
            error, output = path.measured_error(solved[0]), layer_error(path.weight, layer.second_moment)
        else:
            error, output = layer.target_error(solved[0]), layer.target_power
        return cls(
            name=name,
            trained=trained,
            weight=solved[0],
            mask=solved[1],
            features=layer.features,
            removable=path.removable,
            error=error,
            relative_error=error / output if output else 0.0,
            sensitivity_threshold=path.sensitivity_threshold(count),
            damping=path.damping,
            seconds=seconds,
            note=path.note,
        )

    def save(self, folder: Path) -> None:
        """Write it to the file that `load` reads, whole or not at all."""
        tensors = {"weight": self.weight, "mask": self.mask}
        numbers = json.dumps({name: getattr(self, name) for name in NUMBERS})
        of = digest([self.name, self.trained])
        write_tensors(layer_file(folder, self.name), tensors, tensors.__getitem__, {"numbers": numbers, OF: of})

    @classmethod
    def load(cls, folder: Path, name: str, trained: Tensor) -> LayerResult | None:
        """A result that was saved, to the last digit.

        Args:
            folder: it was saved to.
            name: of the layer.
            trained: its weight before, on the device that the step is to be on.

        Returns:
            The result; None where none is there.
        """
        if (part := read_part(layer_file(folder, name), digest([name, trained]))) is None:
            return None
        numbers: Mapping[str, Any] = json.loads(part.metadata["numbers"])
        weight, mask = (part.tensor(key).to(trained.device) for key in ("weight", "mask"))
        return cls(name, trained, weight, mask, **numbers)


def written(module: Prunable, solved: tuple[Tensor, Tensor], bias: bool) -> tuple[Tensor, Tensor]:
    """Write a layer's new weight into it.

    Args:
        module: the layer.
        solved: the weight and its mask.
        bias: whether the last column is the bias.

    Returns:
        The weight as the layer now holds it, which 16 bits round, and the mask.

    Raises:
        ValueError: its type cannot hold the weight.
    """
    (weight, mask), dtype = solved, module.weight.dtype
    narrow = dtype.itemsize < 4
    if narrow and float(weight.abs().max()) > torch.finfo(dtype).max:
        raise ValueError(
            f"{module} would get weights that {dtype} cannot hold: prune the network in float32 (.float())"
        )
    set_weight_matrix(module, weight, bias)
    return (weight_matrix(module, bias).to(weight.dtype) if narrow else weight), mask
