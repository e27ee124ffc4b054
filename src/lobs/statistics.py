"""Streams calibration inputs into per-layer statistics.

For every layer the second moment of its inputs, the paper's Psi (section 3.2, Figure 1)::

    Psi = (1/n) sum_j y_j y_j^T        n samples y_j, the bias's constant 1 as last entry

Products are formed in the inputs' precision over chunks of at most `CHUNK_SAMPLES` samples and summed in float64,
so that float32 inputs lose nothing that matters, and memory does not grow with the number of samples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lobs.layers import Prunable, input_samples, prunable_layers, unit_outputs
from lobs.modes import evaluation_mode

# Rounding in a float32 product grows with the samples summed in it; at this many it stays near 1e-6.
CHUNK_SAMPLES = 4096
TENSORS = ("second_moment", "zero_fraction", "loss_curvature", "inputs_sample")
SCALARS = ("samples", "inputs", "bias", "last")


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
    """

    second_moment: Tensor
    samples: int
    inputs: int
    bias: bool
    zero_fraction: Tensor | None = None
    loss_curvature: Tensor | None = None
    inputs_sample: Tensor | None = None
    last: bool = False

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
            for name in ("zero_fraction", "loss_curvature")
            if (value := getattr(self, name)) is not None
        }
        sample = None if self.inputs_sample is None else self.inputs_sample[index]
        return replace(self, second_moment=self.second_moment[index], inputs_sample=sample, **rows)

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
        sums = _Accumulator(bias)
        sums.add(samples[None])
        sums.inputs = len(samples)
        return sums.result("samples")


class Statistics(Mapping[str, LayerStatistics]):
    """Per-layer statistics by layer name, in the order in which the network calls its layers."""

    def __init__(self, layers: Mapping[str, LayerStatistics]) -> None:
        self._layers = dict(layers)

    def __getitem__(self, name: str) -> LayerStatistics:
        try:
            return self._layers[name]
        except KeyError:
            raise KeyError(f"no statistics of layer {name!r}; there are those of {', '.join(self._layers)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    def __repr__(self) -> str:
        rows = (f"{n}: {s.samples} samples of {s.features}{' + bias' * s.bias}" for n, s in self.items())
        return f"Statistics({'; '.join(rows)})"

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, under a temporary name first."""
        from safetensors.torch import save_file

        tensors, scalars = {}, {}
        for name, layer in self.items():
            for field in TENSORS:
                value = getattr(layer, field)
                if value is not None:
                    tensors[f"{name}/{field}"] = value.cpu().contiguous()
            scalars[name] = {key: getattr(layer, key) for key in SCALARS}
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        save_file(tensors, partial, metadata={"layers": json.dumps(scalars)})
        partial.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file that `save` wrote.

        Returns:
            The statistics, on the CPU.

        Raises:
            ValueError: the file is not one of ours.
        """
        from safetensors import safe_open

        layers = {}
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "layers" not in metadata:
                raise ValueError(f"{path} holds no layer statistics (its metadata: {sorted(metadata)})")
            keys = set(file.keys())
            for name, scalars in json.loads(metadata["layers"]).items():
                tensors = {key: file.get_tensor(f"{name}/{key}") for key in TENSORS if f"{name}/{key}" in keys}
                layers[name] = LayerStatistics(**tensors, **scalars)
        return cls(layers)


class _Accumulator:
    """Running float64 sums of one layer's products and zero counts, and a uniform sample of its inputs."""

    def __init__(self, bias: bool, keep: int = 0) -> None:
        self.bias = bias
        self.keep = keep
        self.kept: Tensor = torch.empty(0)
        self.keys: Tensor = torch.empty(0)
        self.generator = torch.Generator().manual_seed(0)
        self.samples = 0
        self.inputs = 0
        self.outputs = 0
        self.moment: Tensor = torch.empty(0)
        self.zeros: Tensor | None = None

    def add(self, samples: Tensor) -> None:
        """Add samples ``[groups, n, features]``."""
        groups, count, features = samples.shape
        if samples.dtype in (torch.float16, torch.bfloat16):
            samples = samples.float()
        if not self.samples:
            size = features + self.bias
            self.moment = samples.new_zeros(groups, size, size, dtype=torch.float64)
        for chunk in samples.split(CHUNK_SAMPLES, dim=1):
            self.moment[:, :features, :features] += chunk.mT @ chunk
            if self.bias:
                self.moment[:, -1, :features] += chunk.sum(dim=1, dtype=torch.float64)
        if self.keep:
            self._keep(samples)
        self.samples += count

    def _keep(self, samples: Tensor) -> None:
        """Reservoir sampling: every sample draws a key, the largest keys stay."""
        keys = torch.rand(samples.shape[1], generator=self.generator)
        fresh = keys.argsort(descending=True)[: self.keep]
        keys = torch.cat([self.keys, keys[fresh]])
        rows = samples[:, fresh.to(samples.device)]
        rows = torch.cat([self.kept.to(samples), rows], 1) if len(self.keys) else rows
        chosen = keys.argsort(descending=True)[: self.keep]
        self.keys, self.kept = keys[chosen], rows[:, chosen.to(samples.device)]

    def sample(self) -> Tensor | None:
        """The kept inputs, with the bias's ones; None where none were asked for."""
        if not self.keep:
            return None
        ones = self.kept.new_ones(*self.kept.shape[:2], int(self.bias))
        kept = torch.cat([self.kept, ones], 2)
        return kept[0] if len(kept) == 1 else kept

    def add_outputs(self, outputs: Tensor) -> None:
        """Count the outputs ``[samples, out]`` that a ReLU sets to zero."""
        zeros = (outputs <= 0).sum(dim=0)
        self.zeros = zeros if self.zeros is None else self.zeros + zeros
        self.outputs += len(outputs)

    def result(self, name: str) -> LayerStatistics:
        """The means; the sums are used up."""
        moment = self.moment
        if self.bias:
            moment[:, :-1, -1] = moment[:, -1, :-1]
            moment[:, -1, -1] = self.samples
        moment /= self.samples
        if not torch.isfinite(moment).all():
            raise ValueError(f"layer {name!r}: its calibration inputs hold NaN or infinite values")
        _symmetrise(moment)
        return LayerStatistics(
            second_moment=moment[0] if len(moment) == 1 else moment,
            samples=self.samples,
            inputs=self.inputs,
            bias=self.bias,
            zero_fraction=None if self.zeros is None else self.zeros.double() / self.outputs,
            inputs_sample=self.sample(),
        )


def _symmetrise(moment: Tensor, block: int = 2048) -> None:
    """Average a product with its transpose in place, by blocks: a whole copy of a wide layer's takes 5 GiB."""
    for i in range(0, moment.shape[-1], block):
        for j in range(0, i + 1, block):
            lower = moment[:, i : i + block, j : j + block]
            upper = moment[:, j : j + block, i : i + block]
            mean = (lower + upper.mT) / 2
            lower.copy_(mean)
            upper.copy_(mean.mT)


@torch.no_grad()
def collect_statistics(
    model: nn.Module,
    batches: Iterable,
    layers: Iterable[str] | None = None,
    progress: Callable[[Iterable], Iterable] | None = None,
    *,
    loss: str | None = None,
    keep_samples: int = 0,
) -> Statistics:
    """Stream calibration inputs through a network in evaluation mode and keep each layer's statistics.

    Args:
        model: the network; its training flags are put back as they were.
        batches: inputs, or tuples of which the first entry is the input; any iterable, read once.
        layers: names or patterns of the layers wanted; None takes every Linear and Conv2d that is called.
        progress: wraps the iterable (``tqdm``, say).
        loss: also collect the curvature of this loss (``"cross_entropy"``, ``"mse"``), which OBD needs; batches are
            then ``(input, target)``.
        keep_samples: also keep this many input vectors of every layer, drawn uniformly; Net-Trim needs some.

    Returns:
        `Statistics`, layers in the order of their first call.

    Raises:
        ValueError: there is no batch, an input is not finite, a layer asked for is never called, or the network
            answers the same batch differently twice (dropout left on, noise): such statistics mean nothing.
        TypeError: a batch is neither a tensor nor a tuple or list that starts with one.
    """
    batches = iter(batches)
    modules = prunable_layers(model, layers)
    sums: dict[str, _Accumulator] = {}

    def hook_of(name: str) -> Callable:
        def hook(module: Prunable, args: tuple, output: Tensor) -> None:
            if name not in sums:
                sums[name] = _Accumulator(module.bias is not None, keep_samples)
            for samples in input_samples(module, args[0]):
                sums[name].add(samples)
            sums[name].add_outputs(unit_outputs(module, output))
            sums[name].inputs += total - seen[name]
            seen[name] = total

        return hook

    total, seen = 0, dict.fromkeys(modules, 0)
    with evaluation_mode(model):
        first = next(batches, None)
        if first is None:
            raise ValueError("no calibration batch: batches is empty (an iterator that was already used up?)")
        _probe_determinism(model, network_input(first, model))
        curvature = None
        if loss is not None:
            from lobs.curvature import LossCurvature

            curvature = LossCurvature(model, loss, list(modules))
        handles = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
        try:
            for batch in _chain(first, batches) if progress is None else progress(_chain(first, batches)):
                inputs = network_input(batch, model)
                total += len(inputs)
                model(inputs)
                if curvature is not None:
                    curvature.add(inputs, _target(batch, inputs))
        finally:
            for handle in handles:
                handle.remove()
    never = [name for name in modules if name not in sums]
    if layers is not None and never:
        raise ValueError(f"layer {never[0]!r} is never called in the network's forward pass: leave it out")
    results = {name: accumulator.result(name) for name, accumulator in sums.items()}
    if curvature is not None:
        diagonals = curvature.result()
        results = {name: replace(layer, loss_curvature=diagonals[name]) for name, layer in results.items()}
    final = list(results)[-1]
    results[final] = replace(results[final], last=True)
    return Statistics(results)


def network_input(batch: object, model: nn.Module) -> Tensor:
    """The input tensor of a batch, on the network's device.

    Args:
        batch: a tensor, or a tuple or list that starts with one.
        model: its first parameter's device is taken.

    Returns:
        The input.

    Raises:
        TypeError: the batch is neither a tensor nor a tuple or list that starts with one.
    """
    inputs = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"a batch must be a tensor, or a tuple or list that starts with one; got {type(batch).__name__}"
        )
    parameter = next(model.parameters(), None)
    return inputs if parameter is None else inputs.to(parameter.device, non_blocking=True)


def _target(batch: object, inputs: Tensor) -> Tensor:
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not isinstance(batch[1], Tensor):
        raise TypeError(f"a loss needs batches of (input, target); got {type(batch).__name__}")
    return batch[1].to(inputs.device)


def _chain(first: object, rest: Iterator) -> Iterator:
    yield first
    yield from rest


def _probe_determinism(model: nn.Module, inputs: Tensor) -> None:
    sample = inputs[:2]
    once, twice = model(sample), model(sample)
    if isinstance(once, Tensor) and not torch.equal(torch.nan_to_num(once), torch.nan_to_num(twice)):
        raise ValueError(
            f"{type(model).__name__} answers the same inputs differently (largest difference "
            f"{(once - twice).abs().max():.3g}) although it is in evaluation mode: switch its randomness off"
        )
