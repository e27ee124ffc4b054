"""Streams calibration inputs into per-layer statistics.

For every layer the second moment of its inputs, the paper's Psi (section 3.2, Figure 1)::

    Psi = (1/n) sum_j y_j y_j^T        n samples y_j, the bias's constant 1 as last entry

Sequential pruning adds the products of the pruned network's inputs x with the dense network's pre-activations z::

    T = E[z x^T]        E||W x - z||^2 = E||z||^2 - 2 tr(W T^T) + tr(W Psi W^T)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lobs.base.distributed import gathered, rank_and_size, require_group, together
from lobs.base.evaluation_mode import outside_modes, same_buffers
from lobs.base.fingerprint import CALL, claim_folder, digest
from lobs.base.tensor_files import write_tensors
from lobs.calibration.accumulator import InputSums, combined
from lobs.calibration.batches import CalibrationBatches, calibration_batches
from lobs.calibration.collection_pass import CalibrationPass
from lobs.calibration.inputs import check_batches
from lobs.calibration.spilling import Shelf
from lobs.layers.coverage import Calls
from lobs.layers.matrix import prunable_layers

if TYPE_CHECKING:
    pass

TENSORS = ("second_moment", "zero_fraction", "loss_curvature", "inputs_sample", "target_moment", "target_sample")
SCALARS = ("samples", "inputs", "bias", "last", "target_power")
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

    @property
    def features(self) -> int:
        """Inputs of the layer, without the bias."""
        return self.second_moment.shape[-1] - self.bias

    @property
    def groups(self) -> int:
        """Blocks of a grouped convolution, 1 for everything else."""
        return self.second_moment.shape[0] if self.second_moment.dim() == 3 else 1

    def group(self, index: int) -> LayerStatistics:
        """The statistics of one group, as those of a layer of its own."""
        if self.groups == 1:
            return self
        rows = {
            name: value.chunk(self.groups)[index]
            for name in ("zero_fraction", "loss_curvature", "target_moment")
            if (value := getattr(self, name)) is not None
        }
        sample = None if self.inputs_sample is None else self.inputs_sample[index]
        targets = None if self.target_sample is None else self.target_sample.chunk(self.groups, dim=1)[index]
        # E||z||^2 is known for all groups together only.
        return replace(
            self,
            second_moment=self.second_moment[index],
            inputs_sample=sample,
            target_sample=targets,
            target_power=None,
            **rows,
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
        return max(0.0, power + float((weight.double() * (produced - 2 * moment)).sum()))

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
        return max(0.0, power - float((along / values)[seen.expand_as(along)].sum()))

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
        return _result(sums, "samples")


@dataclass(frozen=True)
class StoredLayer:
    """One layer's statistics in a file of `Statistics.save`."""

    path: Path
    name: str
    device: torch.device | str = "cpu"

    def load(self) -> LayerStatistics:
        """Read them."""
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            scalars = json.loads(file.metadata()["layers"])[self.name]
            keys = set(file.keys())
            tensors = {key: file.get_tensor(f"{self.name}/{key}") for key in TENSORS if f"{self.name}/{key}" in keys}
        return LayerStatistics(**tensors, **scalars).to(self.device)


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

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, under a temporary name first; of stored layers one is in memory at a time."""
        keys, scalars = [], {}
        for name, layer in self.items():
            keys += [f"{name}/{field}" for field in TENSORS if getattr(layer, field) is not None]
            scalars[name] = {key: getattr(layer, key) for key in SCALARS}

        def tensor(key: str) -> Tensor:
            name, field = key.rsplit("/", 1)
            return getattr(self[name], field)

        write_tensors(Path(path), keys, tensor, {"layers": json.dumps(scalars), "calls": json.dumps(vars(self.calls))})

    @classmethod
    def load(cls, path: str | Path, lazy: bool = False) -> Statistics:
        """Read a file that `save` wrote.

        Args:
            path: the file.
            lazy: read a layer when it is asked for, and anew every time: the file has to stay.

        Returns:
            The statistics, on the CPU.

        Raises:
            ValueError: the file is missing, damaged or not one of ours.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is missing, damaged or no file of statistics ({error})") from None
        if "layers" not in metadata:
            raise ValueError(f"{path} holds no layer statistics (its metadata: {sorted(metadata)})")
        stored = {name: StoredLayer(Path(path), name) for name in json.loads(metadata["layers"])}
        calls = Calls(**json.loads(metadata["calls"])) if "calls" in metadata else None  # older files have none
        return cls(stored if lazy else {name: layer.load() for name, layer in stored.items()}, calls)


def _result(sums: InputSums, name: str) -> LayerStatistics:
    """The means; the sums are used up."""
    moment = sums.second_moment(name)
    return LayerStatistics(
        second_moment=moment[0] if len(moment) == 1 else moment,
        samples=sums.samples,
        inputs=sums.inputs,
        bias=sums.bias,
        zero_fraction=None if sums.zeros is None else sums.zeros.double() / sums.outputs,
        inputs_sample=sums.sample(),
    )


@outside_modes
@torch.no_grad()
def collect_statistics(
    model: nn.Module,
    batches: Iterable,
    layers: Iterable[str] | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
    *,
    loss: str | None = None,
    keep_samples: int = 0,
    distributed: bool = False,
    memory: float | None = None,
    folder: str | Path | None = None,
    exclude: Iterable[str] = (),
) -> Statistics:
    """Stream calibration inputs through a network in evaluation mode and keep each layer's statistics.

    With ``distributed`` the running sums of all processes of the default process group are added up, so that every
    process returns the statistics of all batches: those of one process that saw all of them, to float64 rounding. The
    sample that ``keep_samples`` asks for is then a uniform one of all inputs, but another one than a single process's.

    Args:
        model: the network; its training flags are put back as they were.
        batches: inputs, or tuples of which the first entry is the input; any iterable, read once. With
            ``distributed`` every process gives its own share of them, at least one.
        layers: names or patterns of the layers wanted; None takes every Linear and Conv2d that is called.
        progress: wraps the iterable (``tqdm``, say).
        loss: also collect the curvature of this loss (``"cross_entropy"``, ``"mse"``), which OBD needs; batches are
            then ``(input, target)``.
        keep_samples: also keep this many input vectors of every layer, drawn uniformly; Net-Trim needs some.
        distributed: sum over the processes of `torch.distributed`, which must all call this with the same network.
            Where one of them fails, all raise.
        memory: ceiling in bytes on the second moments held at once; None: what is available, less a margin. Where all
            layers' do not fit (8 bytes times features squared each), they are collected in groups that do, front to
            back, with one pass over the batches per group, and finished layers lie on the disk until they are asked
            for. A single layer's is never cut. Results do not depend on the ceiling.
        folder: finished groups are written here whether they fit or not, and layers that are found here are not
            collected again: a folder belongs to one network and one set of batches, another one's is refused. None: a
            temporary folder, where one is needed.
        exclude: names or patterns of layers that are not wanted.

    Returns:
        `Statistics`, layers in the order of their first call. Modules that share a weight are one layer, with the
        samples of all of them.

    Raises:
        ValueError: there is no batch, an input is not finite, a layer asked for is never called or does not give its
            weight times its inputs, the network answers the same batch differently twice (dropout left on, noise) or
            is compiled, batches are others on a further reading, or the folder belongs to another call. Or
            ``distributed`` is asked for without a process group, or a second pass over an iterator that is used up.
        TypeError: ``batches`` is no iterable of batches, or a batch is neither a tensor nor a tuple or list that
            starts with one.
    """
    check_batches(batches)
    modules = prunable_layers(model, layers)
    if exclude := list(exclude):
        left_out = prunable_layers(model, exclude)
        modules = {name: module for name, module in modules.items() if name not in left_out}
        if not modules:
            raise ValueError(f"exclude={exclude!r} leaves no layer; the network has {', '.join(left_out)}")
    if distributed:
        require_group()
    folder = None if folder is None else Path(folder, *([f"process{rank_and_size()[0]}"] if distributed else []))
    shelf = Shelf(modules, memory, folder, distributed)
    again = shelf.several and not isinstance(batches, Iterator)
    readings = calibration_batches(batches, memory=0) if again else batches

    def claim() -> None:
        if folder is not None and isinstance(readings, CalibrationBatches):
            asked = {"layers": list(modules), "loss": loss, "keep_samples": keep_samples}
            state = digest(part for pair in model.state_dict().items() for part in pair)
            claim_folder(folder, {"network": state, **asked, "batches": readings.fingerprint()})

    if folder is not None and (folder / CALL).exists():
        together(claim) if distributed else claim()
    while missing := shelf.next_group(batches):
        # Keys drawn alike in all processes would sample the same rows of every share.
        seed = rank_and_size()[0] if distributed else 0
        pass_ = CalibrationPass(model, missing, keep_samples, seed, loss)
        with same_buffers(model):
            together(partial(pass_.run, readings, progress)) if distributed else pass_.run(readings, progress)
        called, calls, curvature = pass_.sums, pass_.calls, pass_.curvature
        if distributed:
            called, calls = combined(called), gathered(calls)[0]
            if curvature is not None:
                curvature.combine()
        never = [name for name in missing if name not in called]
        if layers is not None and never:
            raise ValueError(f"layer {never[0]!r} is {calls.reason(never[0])}: leave it out of layers=")
        results = {name: _result(called.pop(name), name) for name in list(called)}
        if curvature is not None:
            diagonals = curvature.result()
            results = {name: replace(layer, loss_curvature=diagonals[name]) for name, layer in results.items()}
        final = calls.called[-1] if calls.called else None
        if final in results:
            results[final] = replace(results[final], last=True)
        together(claim) if distributed else claim()
        shelf.put(results, calls)
    return shelf.statistics()
