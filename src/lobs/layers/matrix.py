"""How a module is seen as a matrix.

One layout feeds every method: a layer is ``Z = W y``, with ``W`` of shape ``[out, features (+ 1)]`` and one
*sample* ``y`` per row of the input. The bias, where there is one, is the last column, with an input that is
always 1. A convolution is the same product applied to its unfolded patches: every output position is a sample and
``features = in_channels / groups * kernel height * kernel width``, in the order of ``weight.flatten(1)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from math import prod
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

PRUNABLE = (nn.Linear, nn.Conv2d)
Prunable: TypeAlias = nn.Linear | nn.Conv2d
# An unfolded chunk of a convolution's input stays below this; larger chunks are no faster.
CHUNK_BYTES = 64 * 2**20
# From so many output positions on an image's patches make a product of their own, and are left as they lie. Then a
# chunk's images do not belong together, and few of them come back in memory that is warm.
LONG = 1024
WARM_BYTES = 8 * 2**20


def prunable_layers(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, Prunable]:
    """The Linear and Conv2d modules of a network, by name, in the order of definition.

    Of modules that share one weight (`tied_layers`) only the first counts.

    Args:
        model: any module.
        layers: names or shell patterns (``"features.*"``) that select some of them; None selects all.

    Returns:
        The chosen modules by name.

    Raises:
        TypeError: ``layers`` is a single string, or names a module that is neither Linear nor Conv2d.
        ValueError: a name or pattern fits no module, or the network has no such layer at all, or is compiled.
    """
    groups = tied_layers(model)
    found = {name: next(iter(members.values())) for name, members in groups.items()}
    if layers is None:
        if not found:
            raise ValueError(f"{type(model).__name__} has no Linear or Conv2d layer to prune")
        return found
    if isinstance(layers, str):
        raise TypeError(f"layers must be a list of names, got the single string {layers!r}")
    modules = dict(model.named_modules())
    chosen: set[str] = set()
    for pattern in layers:
        matches = {name for name, members in groups.items() if any(fnmatchcase(own, pattern) for own in members)}
        if not matches and pattern in modules:
            raise TypeError(
                f"layer {pattern!r} is a {type(modules[pattern]).__name__}; only Linear and Conv2d can be pruned"
            )
        if not matches:
            raise ValueError(f"no layer fits {pattern!r}; the network has {', '.join(found) or 'none'}")
        chosen |= matches
    return {name: module for name, module in found.items() if name in chosen}


def tied_layers(model: nn.Module) -> dict[str, dict[str, Prunable]]:
    """The Linear and Conv2d modules of a network, those together that compute with one and the same weight.

    Args:
        model: any module that is not compiled.

    Returns:
        By the name of the first in the order of definition: all of them by name.

    Raises:
        ValueError: the network is compiled, or a layer has no values yet.
    """
    groups: dict[str, dict[str, Prunable]] = {}
    owners: dict[tuple, str] = {}
    for name, module in model.named_modules():
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            where = f"its module {name!r}" if name else "the network"
            raise ValueError(
                f"{where} is compiled (torch.compile), which hides what its layers are given: give the network as it "
                f"was before (torch.compile's result holds it as _orig_mod) and compile what comes back"
            )
        if isinstance(module, PRUNABLE):
            first, weight = name, module._parameters.get("weight")
            if weight is not None and (isinstance(weight, nn.parameter.UninitializedParameter) or weight.is_meta):
                raise ValueError(
                    f"layer {name!r} has no values yet (it is lazy or on the meta device): load or initialise the "
                    f"network first, and run it once"
                )
            # A weight that is computed anew is nobody else's.
            if weight is not None and weight.numel():
                first = owners.setdefault((memory_place(weight), getattr(module, "groups", 1)), name)
            groups.setdefault(first, {})[name] = module
    return groups


def memory_place(weight: Tensor) -> tuple:
    """Where a tensor lies in memory: the same for parameters that are tied, by object or by their data alone."""
    return weight.data_ptr(), tuple(weight.shape), weight.stride(), weight.dtype


def bias_columns(model: nn.Module) -> dict[str, bool]:
    """Whether each layer's bias belongs to its matrix: where it is one, and nobody else's.

    Modules that share a weight have to share the bias, too.

    Args:
        model: the network.

    Returns:
        By layer, as `tied_layers` names them.
    """
    columns = {}
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    for name, members in tied_layers(model).items():
        biases = {id(module.bias): module.bias for module in members.values()}
        bias = next(iter(biases.values()))
        columns[name] = len(biases) == 1 and bias is not None and owners.get(id(bias), 1) <= len(members)
    return columns


def weight_matrix(module: Prunable, bias: bool | None = None) -> Tensor:
    """A copy of the layer's weight as ``[out, features (+ 1 with a bias)]``, the bias in the last column.

    Args:
        module: the layer.
        bias: whether the bias is taken along (`LayerStatistics.bias`); None: where there is one.

    Returns:
        The matrix.
    """
    weight = module.weight.detach().flatten(1)
    if module.bias is None or bias is False:
        return weight.clone()
    return torch.cat([weight, module.bias.detach()[:, None]], dim=1)


@torch.no_grad()
def set_weight_matrix(module: Prunable, matrix: Tensor, bias: bool | None = None) -> None:
    """Write a matrix in the layout of `weight_matrix` back into the module, in place.

    Args:
        module: the layer.
        matrix: ``[out, features (+ 1)]``.
        bias: whether the last column is the bias; False leaves the bias as it is. None: where there is one.

    Raises:
        ValueError: the matrix has another shape than the module's own.
    """
    features = prod(module.weight.shape[1:])
    with_bias = module.bias is not None and bias is not False
    expected = (module.weight.shape[0], features + with_bias)
    if tuple(matrix.shape) != expected:
        raise ValueError(f"a matrix of shape {tuple(matrix.shape)} does not fit {module}: expected {expected}")
    module.weight.copy_(matrix[:, :features].reshape(module.weight.shape))
    if with_bias:
        cast("Tensor", module.bias).copy_(matrix[:, -1])


def call_input(args: tuple, kwargs: Mapping[str, object]) -> Tensor | None:
    """What a layer's call was given, by position or by keyword; None where that is no tensor."""
    given = args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))
    return given if isinstance(given, Tensor) else None


def input_samples(module: Prunable, inputs: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Tensor]:
    """The inputs of a layer as samples, in chunks of ``[groups, samples, features]`` (no bias column).

    A convolution's patches are unfolded a few images at a time, so that no more than about ``chunk_bytes`` of them
    (at least one image) exist at once. Chunks are views of them where that spares a copy.

    Yields:
        The next chunk.
    """
    if isinstance(module, nn.Linear):
        yield inputs.reshape(1, -1, inputs.shape[-1])
        return
    if inputs.dim() == 3:
        inputs = inputs[None]
    positions = prod(_output_size(module, inputs))
    per_image = prod(module.weight.shape[1:]) * module.groups * positions
    alone = positions >= LONG or module.groups > 1  # groups' products are many and small: a copy costs more than they
    most = min(chunk_bytes, WARM_BYTES) if alone else chunk_bytes
    images = max(1, most // max(1, per_image * inputs.element_size()))
    for chunk in inputs.split(images):
        patches = _patches(module, chunk).unflatten(1, (module.groups, -1))
        if alone:
            yield from (image.mT for image in patches)
        else:
            # [images, groups, features, positions] -> [groups, images * positions, features]
            yield patches.permute(1, 0, 3, 2).flatten(1, 2)


def _patches(module: nn.Conv2d, inputs: Tensor) -> Tensor:
    """What a convolution's kernel sees at every position, ``[images, groups * features, positions]``."""
    padding = module._reversed_padding_repeated_twice
    if any(padding):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = functional.pad(inputs, padding, mode=mode)
    if prod(module.kernel_size) == 1:  # nothing to unfold
        return inputs[:, :, :: module.stride[0], :: module.stride[1]].flatten(2)
    # Windows as long as the output, one per place in the kernel: copied along the rows, about twice as fast as unfold.
    views = inputs
    sizes = zip(
        _output_size(module, inputs, padded=True), module.kernel_size, module.stride, module.dilation, strict=True
    )
    for axis, (size, kernel, stride, dilation) in enumerate(sizes, start=2):
        views = views.unfold(axis, (size - 1) * stride + 1, dilation).narrow(axis, 0, kernel)[..., ::stride]
    return views.reshape(len(inputs), -1, views.shape[-2] * views.shape[-1])


def _output_size(module: nn.Conv2d, inputs: Tensor, padded: bool = False) -> tuple[int, int]:
    left, right, top, bottom = [0] * 4 if padded else module._reversed_padding_repeated_twice
    size = []
    for axis, extra in ((0, top + bottom), (1, left + right)):
        span = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        size.append((inputs.shape[axis - 2] + extra - span) // module.stride[axis] + 1)
    return size[0], size[1]


def zero_counts(module: Prunable, outputs: Tensor) -> tuple[Tensor, int]:
    """How many of each unit's outputs a ReLU sets to zero, int64 ``[out]``, and of how many."""
    axis = outputs.dim() - (1 if isinstance(module, nn.Linear) else 3)
    others = [dim for dim in range(outputs.dim()) if dim != axis]
    zeros = (outputs <= 0).sum(dim=others) if others else (outputs <= 0).long()
    return zeros, outputs.numel() // outputs.shape[axis]


def unit_outputs(module: Prunable, outputs: Tensor) -> Tensor:
    """A layer's outputs as ``[samples, out]``: positions of a convolution count as samples."""
    if isinstance(module, nn.Linear):
        return outputs.reshape(-1, outputs.shape[-1])
    return outputs.movedim(-3, -1).reshape(-1, outputs.shape[-3])
