"""Physical removal of what pruning has left empty: rows, columns and channels leave, constants go into biases.

A unit is dead where nothing reads it (all weights that read it, in all of its readers, are zero), or where it reads
nothing: then its output is the constant act(bias), and

    b'_o = b_o + sum over the dead inputs c of (sum over the kernel of W_oc) * constant_c

takes its place in the readers' biases. Both together to a fixed point (`lobs.compaction.channels`): what only dead
units read is dead, what only constants feed is constant. The function in evaluation mode stays the same up to
rounding. In training mode batch norm would estimate anew and dropout would act on fewer units.

What stays: the network's inputs and outputs; a constant that a zero-padded convolution reads (it sees zeros at the
border), unless it is zero; a channel of a sum unless it is dead in every branch; single channels of a grouped
convolution, a group norm or a head of attention (these leave as a whole); every channel that reaches a layer norm, in
whose mean and variance constants count, too; one unit in every layer; all channels that a step reads which is not
known. Dead units that stay are listed with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lobs.base.arguments import check_module
from lobs.base.modes import same_buffers, without_training
from lobs.base.network_inputs import by_position
from lobs.base.trees import leaves
from lobs.compaction.attention import CompactAttention, join
from lobs.compaction.channels import Channels, Follower, LinearOperation, constants
from lobs.compaction.trace import Traced, follow
from lobs.layers.matrix import weight_matrix
from lobs.layers.network import tied_layers


@dataclass(frozen=True)
class LayerSize:
    """A Linear or convolution before and after compaction.

    Attributes:
        units: outputs before.
        inputs: channels or features read before.
        removed_units: which outputs have left, in the numbering of before.
        removed_inputs: which inputs have left.
    """

    units: int
    inputs: int
    removed_units: tuple[int, ...]
    removed_inputs: tuple[int, ...]


@dataclass(frozen=True)
class CompactResult:
    """A compacted network and what has left it.

    Attributes:
        model: the smaller network, of the same class and in the same mode.
        layers: sizes by layer, in the order of the calls. An attention module's parts have names of their own:
            ``q_proj``, ``k_proj``, ``v_proj``, ``out_proj``; where heads have left, it is a `CompactAttention`.
        staying: units that are dead and stay, by layer and reason, in the numbering of before.
        parameters: number of parameters before.
        parameters_left: and after.
        difference: largest difference between the outputs of the two networks on the example.
    """

    model: nn.Module
    layers: dict[str, LayerSize]
    staying: dict[str, dict[str, tuple[int, ...]]]
    parameters: int
    parameters_left: int
    difference: float

    @property
    def removed(self) -> dict[str, int]:
        """Number of units that have left, by layer."""
        return {name: len(layer.removed_units) for name, layer in self.layers.items()}


def compact(model: nn.Module, example_input: Tensor | Sequence | Mapping[str, Any]) -> CompactResult:
    """Remove dead units and channels and fold constants into biases; the network's function stays.

    Args:
        model: any network that torch.fx can trace; not changed.
        example_input: one batch, or the arguments of one call, in a tuple or by name in a dict: tells the shapes, and
            both networks are run on it. The batch size is free, the size of images is not where the network flattens
            maps; arguments that are no tensors (None, flags) are taken to be these in every call.

    Returns:
        The compacted copy and a record.

    Raises:
        ValueError: torch.fx cannot trace the network, it does not accept the example, or the compacted network does
            not give the same outputs on it.
        TypeError: the example is none of these, or forward takes some of it by name alone.
    """
    check_module(model)
    arguments = by_position(model, example_input)
    example = tuple(arguments.values())
    smaller = deepcopy(model)
    with without_training(smaller):
        with same_buffers(smaller):
            traced = follow(smaller, arguments)
        need = traced.channels.needed()
        layers = _shrink(traced.channels, need)
        join(smaller, traced.originals)
        difference = _difference(model, smaller, example)
    for name, module in smaller.named_modules():
        if isinstance(module, CompactAttention) and name in traced.originals:
            module.train(traced.originals[name].training)
    staying = traced.channels.staying(need) | _skipped(model, traced)
    before, after = (sum(entry.numel() for entry in network.parameters()) for network in (model, smaller))
    return CompactResult(smaller, layers, staying, before, after, difference)


def _skipped(model: nn.Module, traced: Traced) -> dict[str, dict[str, tuple[int, ...]]]:
    """Units without a weight in layers that have not been followed."""
    followed = {product.name for product in traced.channels.products}
    found = {}
    for name, tied in tied_layers(model).items():
        module = next(iter(tied.values()))
        empty = (weight_matrix(module, bias=False) == 0).all(dim=1).nonzero()[:, 0].tolist()
        if name not in followed and empty:
            reason = traced.skipped.get(name, "is used by a step that is not known")
            found[name] = {reason: tuple(empty)}
    return found


def _shrink(channels: Channels, need: Tensor) -> dict[str, LayerSize]:
    layers = {}
    for product in channels.products:
        units, inputs = need[product.outputs], need[product.inputs.ids]
        if not (units.all() and inputs.all()):
            _shrink_product(product, units, inputs)
        gone = [tuple((~kept).nonzero()[:, 0].tolist()) for kept in (units, inputs)]
        layers[product.name] = LayerSize(len(units), len(inputs), *gone)
    for follower in channels.followers:
        kept = need[follower.ids]
        if not kept.all():
            _shrink_follower(follower, kept)
    return layers


def _shrink_product(product: LinearOperation, units: Tensor, inputs: Tensor) -> None:
    module = product.module
    groups = getattr(module, "groups", 1)
    if groups == 1:
        gone = torch.where(product.foldable & ~inputs, product.inputs.value, 0.0)
        folded = constants(module, gone)[units]
        if gone.any() and (module.bias is not None or folded.any()):
            requires_grad = (module.weight if module.bias is None else module.bias).requires_grad
            _set(module, "bias", folded.to(module.weight), requires_grad)
        elif module.bias is not None:
            _keep(module, "bias", {0: units})
        transposed = getattr(module, "transposed", False)
        _keep(module, "weight", {int(transposed): units, 1 - transposed: inputs})
    else:
        # Whole groups have left, with their inputs and units.
        _keep(module, "weight", {0: units})
        if module.bias is not None:
            _keep(module, "bias", {0: units})
        vars(module)["groups"] = int(inputs.view(groups, -1)[:, 0].sum())
    outputs_name, inputs_name = (
        ("out_features", "in_features") if isinstance(module, nn.Linear) else ("out_channels", "in_channels")
    )
    setattr(module, outputs_name, int(units.sum()))
    setattr(module, inputs_name, int(inputs.sum()))


def _shrink_follower(follower: Follower, kept: Tensor) -> None:
    for name, dim in follower.tensors.items():
        _keep(follower.module, name, {dim: kept})
    for name, width in follower.sizes.items():
        setattr(follower.module, name, int(kept.sum()) // width)


def _keep(module: nn.Module, name: str, kept: dict[int, Tensor]) -> None:
    """Cut a parameter or buffer down along some dimensions; memory layout and gradient flag stay."""
    tensor = getattr(module, name)
    left = tensor.detach()
    for dim, entries in kept.items():
        left = left.index_select(dim, entries.nonzero()[:, 0].to(tensor.device))
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    left = left.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    _set(module, name, left, tensor.requires_grad)


def _set(module: nn.Module, name: str, tensor: Tensor, requires_grad: bool) -> None:
    is_buffer = name in module._buffers
    setattr(module, name, tensor if is_buffer else nn.Parameter(tensor, requires_grad=requires_grad))


@torch.no_grad()
def _difference(model: nn.Module, smaller: nn.Module, example: tuple[Tensor, ...]) -> float:
    """The largest difference of the outputs, checked against the rounding that the dtype explains."""
    with without_training(model), same_buffers(model):
        expected = [entry for entry in leaves(model(*example)) if isinstance(entry, Tensor)]
    name = type(model).__name__
    try:
        with same_buffers(smaller):
            found = [entry for entry in leaves(smaller(*example)) if isinstance(entry, Tensor)]
    except Exception as error:
        raise ValueError(f"{name} cannot be compacted: without its dead units it fails with: {error}") from error
    largest = 0.0
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"{name} cannot be compacted: its output's shape {tuple(one.shape)} would change")
        if not one.numel():
            continue
        difference = float((one.double() - other.double()).abs().max())
        allowed = (
            torch.finfo(one.dtype).eps ** 0.5 * (1 + float(one.double().abs().max())) if one.is_floating_point() else 0
        )
        if not difference <= allowed and bool(one.isfinite().all()):
            raise ValueError(f"{name} cannot be compacted: an output would change by {difference:.3g}")
        largest = max(largest, difference)
    return largest
