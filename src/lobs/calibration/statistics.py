"""What calibration data says about each layer: its second moment, what goes with it, and their files.

For every layer the second moment of its inputs, the paper's Psi (section 3.2, Figure 1)::

    Psi = (1/n) sum_j y_j y_j^T        n samples y_j, the bias's constant 1 as last entry

Sequential pruning adds the products of the pruned network's inputs x with the dense network's pre-activations z::

    T = E[z x^T]        E||W x - z||^2 = E||z||^2 - 2 tr(W T^T) + tr(W Psi W^T)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lobs.base.tensor_files import TensorFile, write_tensors
from lobs.calibration.accumulator import InputSums
from lobs.layers.coverage import Calls
from lobs.layers.matrix import groups_of, matrix_shape, view_of
from lobs.layers.view import Prunable

TENSORS = ("second_moment", "zero_fraction", "loss_curvature", "inputs_sample", "target_moment", "target_sample")
SCALARS = ("samples", "inputs", "bias", "last", "target_power", "kind")
# Directions of the inputs with less than this share of the largest second moment: float32 products do not show them.
RESOLUTION = 1e-9


@dataclass(frozen=True)
class LayerStatistics:
    """What the calibration data says about one layer.

    Attributes:
        second_moment: Psi, float64 ``[d, d]`` with ``d = features (+ 1 with a bias, last)``, a mean over samples;
            ``[groups, d, d]`` for a grouped convolution.
        samples: n, how many input vectors were averaged (a convolution's positions count each).
        inputs: how many network inputs (images) they came from.
        bias: whether the last entry is the bias's constant 1.
        zero_fraction: float64 ``[out]``, the share of each unit's outputs that are <= 0, hence zero after a
            ReLU: ApoZ (Hu et al. 2016).
        loss_curvature: float64 ``[out, d]``, the diagonal of the Hessian of the mean training loss in the layer's
            weights; only where it was asked for (`collect_statistics` with ``loss``). OBD needs it.
        inputs_sample: ``[k, d]``, a uniform sample of the layer's input vectors, the bias's ones included; only where
            it was asked for (``keep_samples``). Net-Trim needs it.
        last: whether no other layer is called after this one: its outputs are the network's, no ReLU follows.
        target_moment: T = E[z x^T], float64 ``[out, d]`` (groups: rows in their order), where the inputs x are a
            pruned network's and z what the layer gave in the dense one; only in sequential pruning.
        target_power: E||z||^2, likewise.
        target_sample: ``[k, out]``, z for the input vectors of ``inputs_sample``, likewise.
        kind: what the layer is and the axes of its weight (`kind_of`); None where they come from bare samples.
    """

    second_moment: Tensor
    samples: int
    inputs: int
    bias: bool
    zero_fraction: Tensor | None = None
    loss_curvature: Tensor | None = None
    inputs_sample: Tensor | None = None
    last: bool = False
    target_moment: Tensor | None = None
    target_power: float | None = None
    target_sample: Tensor | None = None
    kind: str | None = None

    @property
    def features(self) -> int:
        """Inputs of the layer, without the bias."""
        return self.second_moment.shape[-1] - self.bias

    @property
    def groups(self) -> int:
        """Blocks of a grouped convolution, 1 for everything else."""
        return self.second_moment.shape[0] if self.second_moment.dim() == 3 else 1

    @property
    def kept_samples(self) -> int:
        """How many input vectors are kept."""
        return 0 if self.inputs_sample is None else self.inputs_sample.shape[-2]

    def group(self, index: int) -> LayerStatistics:
        """The statistics of one group, as those of a layer of its own."""
        if self.groups == 1:
            return self

        def own(value: Tensor, dim: int = 0) -> Tensor:  # one slice: chunks of all groups would take groups squared
            size = value.shape[dim] // self.groups
            return value.narrow(dim, index * size, size)

        rows: dict[str, Any] = {
            name: own(value)
            for name in ("zero_fraction", "loss_curvature", "target_moment")
            if (value := getattr(self, name)) is not None
        }
        sample = None if self.inputs_sample is None else self.inputs_sample[index]
        targets = None if self.target_sample is None else own(self.target_sample, 1)
        # E||z||^2 is known for all groups together only.
        return replace(
            self,
            second_moment=self.second_moment[index],
            inputs_sample=sample,
            target_sample=targets,
            target_power=None,
            **rows,
        )

    def with_scaled_units(self, scale: Tensor) -> LayerStatistics:
        """The statistics of the same inputs for a layer whose outputs are ``scale_i`` times as large.

        Args:
            scale: ``[out]``, above 0.

        Returns:
            Targets are scaled with the outputs, the loss's curvature in the weights against them; E||z||^2 is not known
            unit by unit and left out.
        """
        rows = scale[:, None]
        moment, sample, curvature = self.target_moment, self.target_sample, self.loss_curvature
        return replace(
            self,
            target_moment=None if moment is None else moment * rows,
            target_power=None,
            target_sample=None if sample is None else (sample * scale).to(sample),
            loss_curvature=None if curvature is None else curvature / rows.square(),
        )

    def target_error(self, weight: Tensor) -> float:
        """E = E||W x - z||^2 that a weight leaves to the dense network's pre-activations.

        Args:
            weight: W, ``[out, d]``.

        Returns:
            The mean over samples of the squared norm over units.

        Raises:
            ValueError: these statistics hold no targets.
        """
        moment, power = self._targets()
        rows = weight.double().unflatten(0, (self.groups, -1))
        produced = (rows @ self.second_moment).flatten(0, 1)
        return max(power + float((weight.double() * (produced - 2 * moment)).sum()), 0.0)

    def target_floor(self) -> float:
        """What no weight can avoid: the least E||W x - z||^2 over all W, E||z||^2 - tr(T Psi^+ T^T) >= 0.

        Psi's pseudo-inverse leaves directions out that float32 inputs do not resolve.

        Returns:
            The floor, in the unit of `target_error`.
        """
        moment, power = self._targets()
        values, vectors = torch.linalg.eigh(self.second_moment)
        seen = values > RESOLUTION * values.amax(-1, keepdim=True)
        along = (moment.unflatten(0, (self.groups, -1)) @ vectors).square().sum(-2)
        return max(power - float((along / values)[seen.expand_as(along)].sum()), 0.0)

    def _targets(self) -> tuple[Tensor, float]:
        if self.target_moment is None or self.target_power is None:
            raise ValueError("these statistics hold no targets: sequential pruning collects them")
        return self.target_moment, self.target_power

    def to(self, device: torch.device | str) -> LayerStatistics:
        """The same statistics on another device."""
        moved = {name: value.to(device) for name in TENSORS if (value := getattr(self, name)) is not None}
        return replace(self, **moved)

    @classmethod
    def from_samples(cls, samples: Tensor, bias: bool = False) -> LayerStatistics:
        """Statistics of a matrix of input vectors ``[n, features]``, a column of ones appended for a bias.

        Returns:
            The statistics of a layer with those inputs.

        Raises:
            ValueError: ``samples`` is not a matrix with at least one finite row.
        """
        if samples.dim() != 2 or not len(samples):
            raise ValueError(f"samples must be [n, features] with n >= 1, got {tuple(samples.shape)}")
        sums = InputSums(bias)
        sums.add(samples[None])
        sums.inputs = len(samples)
        return summed_up(sums, "samples")


@dataclass(frozen=True)
class StoredLayer:
    """One layer's statistics in a file of `Statistics.save`.

    Attributes:
        file: open, or its path where it is not to be kept open.
        name: of the layer.
        device: to load to.
        digest: of the file, where it is not kept open: another one at its path is refused.
    """

    file: TensorFile | Path
    name: str
    device: torch.device | str = "cpu"
    digest: str | None = None

    def load(self) -> LayerStatistics:
        """Read them."""
        file = _opened(self.file) if isinstance(self.file, Path) else self.file
        if self.digest not in (None, file.digest):
            raise ValueError(f"{file.path} is another file than it was: collect the statistics again")
        try:
            scalars = json.loads(file.metadata["layers"])[self.name]
            stored = {key: f"{self.name}/{key}" for key in TENSORS}
            there = set(file.keys())
            tensors: dict[str, Any] = {key: file.tensor(name) for key, name in stored.items() if name in there}
            layer = LayerStatistics(**tensors, **scalars)
            _check(layer)
        except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
            raise file.damaged(f"layer {self.name!r}: {type(error).__name__} {error}") from None
        return layer.to(self.device)


def _opened(path: Path) -> TensorFile:
    return TensorFile(path, "file of statistics", "collect them again")


def _check(layer: LayerStatistics) -> None:
    """Refuse what no layer has; TypeError, as of arguments that are missing."""
    numbers, d = (layer.samples, layer.inputs), layer.second_moment.shape[-1:]
    rows = (layer.zero_fraction, layer.loss_curvature, layer.target_moment)
    units = {len(value) if value.dim() else 0 for value in rows if value is not None}
    wide = [value for value in (layer.inputs_sample, layer.loss_curvature, layer.target_moment) if value is not None]
    right = (
        all(type(number) is int and number > 0 for number in numbers)
        and all(type(flag) is bool for flag in (layer.bias, layer.last))
        and layer.second_moment.dim() in (2, 3)
        and layer.second_moment.shape[-2:-1] == d
        and all(value.shape[-1:] == d for value in wide)
        and len(units) < 2
    )
    if not right:
        raise TypeError("tensors and numbers that do not belong together")


class Statistics(Mapping[str, LayerStatistics]):
    """Per-layer statistics by layer name, in the order in which the network calls its layers.

    Args:
        layers: by name; those that are `StoredLayer` are read anew whenever they are asked for.
        calls: of all layers of the network; None: these layers, in this order.
        keep: what has to live as long as they do: a temporary folder.
    """

    def __init__(
        self, layers: Mapping[str, LayerStatistics | StoredLayer], calls: Calls | None = None, keep: object = None
    ) -> None:
        self._layers = dict(layers)
        self.calls = Calls(list(layers)) if calls is None else calls
        self._keep = keep

    def __getitem__(self, name: str) -> LayerStatistics:
        try:
            layer = self._layers[name]
        except KeyError:
            raise KeyError(f"no statistics of layer {name!r}; there are those of {', '.join(self._layers)}") from None
        return layer.load() if isinstance(layer, StoredLayer) else layer

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        rows = (f"{n}: {s.samples} samples of {s.features}{' + bias' * s.bias}" for n, s in self.items())
        return f"Statistics({'; '.join(rows)})"

    def __contains__(self, name: object) -> bool:
        return name in self._layers

    def save(self, path: str | Path, marks: Mapping[str, str] | None = None) -> None:
        """Write a safetensors file, under a temporary name first; of stored layers one is in memory at a time.

        Args:
            path: the file.
            marks: further texts to go with it.
        """
        keys, scalars = [], {}
        for name, layer in self.items():
            keys += [f"{name}/{field}" for field in TENSORS if getattr(layer, field) is not None]
            scalars[name] = {key: getattr(layer, key) for key in SCALARS}

        def tensor(key: str) -> Tensor:
            name, field = key.rsplit("/", 1)
            return getattr(self[name], field)

        texts = {"layers": json.dumps(scalars), "calls": json.dumps(vars(self.calls)), **(marks or {})}
        write_tensors(Path(path), keys, tensor, texts)

    @classmethod
    def load(cls, path: str | Path, lazy: bool = False) -> Statistics:
        """Read a file that `save` wrote.

        Args:
            path: the file.
            lazy: read a layer when it is asked for, and anew every time, from the file as it is now: it is kept open.

        Returns:
            The statistics, on the CPU.

        Raises:
            ValueError: the file is missing, damaged or not one of ours.
        """
        file = _opened(Path(path))
        if "layers" not in file.metadata:
            raise ValueError(f"{path} holds no layer statistics (its metadata: {sorted(file.metadata)})")
        try:
            stored = {name: StoredLayer(file, name) for name in dict(json.loads(file.metadata["layers"]))}
            found = file.metadata.get("calls")  # older files have none
            calls = None if found is None else Calls(**json.loads(found))
        except (ValueError, TypeError, RecursionError) as error:
            raise file.damaged(f"its layers: {type(error).__name__} {error}") from None
        return cls(stored if lazy else {name: layer.load() for name, layer in stored.items()}, calls)


def kind_of(module: Prunable) -> str:
    """How a layer is seen as a matrix: layers of two kinds can have the same number of inputs."""
    return f"{type(view_of(module)).__name__} of {module.weight.dim()} axes"


def summed_up(sums: InputSums, name: str, module: Prunable | None = None) -> LayerStatistics:
    """A layer's means from its running sums, which are used up."""
    moment = sums.second_moment(name)
    return LayerStatistics(
        second_moment=moment[0] if len(moment) == 1 else moment,
        samples=sums.samples,
        inputs=sums.inputs,
        bias=sums.bias,
        zero_fraction=None if sums.zeros is None else sums.zeros.double() / sums.outputs,
        inputs_sample=sums.sample(),
        kind=None if module is None else kind_of(module),
    )


def layer_error(change: Tensor, second_moment: Tensor) -> float:
    """E = tr(dW Psi dW^T), the mean over samples of ||dW y||^2.

    Args:
        change: dW, ``[out, d]``.
        second_moment: Psi, ``[d, d]``, or ``[groups, d, d]`` where the rows of every group have their own.

    Returns:
        E, summed over the units.
    """
    return max(float(unit_errors(change, second_moment).sum()), 0.0)  # in this order NaN stays NaN


def unit_errors(change: Tensor, second_moment: Tensor) -> Tensor:
    """E_i = dw_i^T Psi dw_i of every unit, float64 ``[out]``; arguments as of `layer_error`."""
    for dtype in (torch.float64,) if change.shape[1] <= 8192 else (torch.float32, torch.float64):
        rows, moment = change.to(dtype), second_moment.to(dtype)
        if moment.dim() == 3:
            rows = rows.unflatten(0, (len(moment), -1))
        found = ((rows @ moment) * rows).sum(-1, dtype=torch.float64).flatten()
        if found.isfinite().all():
            break
    return found


def check_fit(name: str, module: Prunable, statistics: LayerStatistics) -> None:
    """Refuse statistics of another layer.

    Args:
        name: of the layer.
        module: it.
        statistics: that are to be its.

    Raises:
        ValueError: the inputs, groups, outputs or kinds differ.
    """
    if statistics.kind not in (None, kind_of(module)):
        raise ValueError(
            f"layer {name!r}: {kind_of(module)} does not fit statistics of {statistics.kind}: collect them from this "
            f"network"
        )
    shape, groups = tuple(module.weight.shape), groups_of(module)
    out, features = matrix_shape(module)
    units = None if statistics.zero_fraction is None else len(statistics.zero_fraction)
    if (statistics.features, statistics.groups) != (features, groups) or units not in (None, out):
        raise ValueError(
            f"layer {name!r}: a weight {shape} in {groups} groups does not fit statistics of {statistics.features} "
            f"inputs in {statistics.groups} groups{'' if units is None else f' and {units} outputs'}: collect them "
            f"from this network"
        )
