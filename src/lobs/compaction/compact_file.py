"""Files of compacted networks: their tensors in safetensors, and in the metadata what the modules have become.

The metadata hold JSON: the class of every Linear, convolution, norm and compacted attention by the module's name, and
what counts its channels (``in_features``, ``groups``, ``num_heads``, ...). A fresh network of the architecture from
before compaction is brought to these sizes and gets the tensors; nothing in the file is executed.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lobs.base.fingerprint import tensor_digest
from lobs.base.tensor_files import tensors_of_format, write_tensors
from lobs.compaction.attention import CompactAttention, put
from lobs.compaction.compact import CompactResult

FORMAT = "lobs-compact-1"
_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
# What counts a module's channels.
_SIZES: dict[type | tuple[type, ...], tuple[str, ...]] = {
    nn.Linear: ("in_features", "out_features"),
    _CONVOLUTIONS: ("in_channels", "out_channels", "groups"),
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d): ("num_features",),
    nn.GroupNorm: ("num_channels", "num_groups"),
    CompactAttention: ("num_heads",),
}


def save_compact(model: nn.Module | CompactResult, path: str | Path) -> int:
    """Write a compacted network to a file from which `load_compact` makes it again.

    Args:
        model: what `lobs.compact` gave, or its network (also one that was trained further).
        path: the file; its folder is created, an older file replaced in one move.

    Returns:
        Bytes of the tensors in the file.

    Raises:
        ValueError: the network's state holds something that is no tensor.
    """
    network = model.model if isinstance(model, CompactResult) else model
    state = network.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name!r} of {type(network).__name__} is a {type(value).__name__}, only tensors are kept")
    modules = {
        name: {"class": type(module).__name__, **{key: getattr(module, key) for key in sizes}}
        for name, (module, sizes) in _sized(network).items()
    }
    described = json.dumps({"network": type(network).__name__, "modules": modules})
    write_tensors(path, state, state.__getitem__, {FORMAT: described})
    return sum(value.numel() * value.itemsize for value in state.values())


def load_compact(path: str | Path, into: nn.Module) -> nn.Module:
    """Make a compacted network again from its file; nothing in the file is executed.

    Args:
        path: what `save_compact` wrote.
        into: a fresh network of the architecture from before compaction; is brought to the file's sizes and
            overwritten in place, on its own device. Nothing is changed where the file does not fit. What its forward
            does beside (activations, strides) is its own and not in the file.

    Returns:
        ``into``.

    Raises:
        ValueError: the file is missing, damaged, no compact file or one of another version; or it holds another
            network: the tensors' modules, names or dtypes differ, or something is larger than in ``into``.
    """
    file, described = tensors_of_format(path, FORMAT, "compact file")
    try:
        index = json.loads(described)
        name, modules = str(index["network"]), {str(key): dict(entry) for key, entry in index["modules"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise file.damaged(f"{type(error).__name__} {error}") from None
    tensors = file.tensors()
    trial = deepcopy(into)
    wrong = _resize(trial, modules) or _fill(trial, tensors)
    if wrong:
        raise ValueError(f"{path} (a compacted {name}) does not fit {type(into).__name__}: {wrong}")
    _resize(into, modules)
    _fill(into, tensors)
    return into


def _sized(network: nn.Module) -> dict[str, tuple[Any, tuple[str, ...]]]:
    """Modules whose channels can leave, with what counts these."""
    return {
        name: (module, sizes)
        for name, module in network.named_modules()
        for kinds, sizes in _SIZES.items()
        if isinstance(module, kinds) and type(module) is not nn.modules.linear.NonDynamicallyQuantizableLinear
    }


def _resize(network: nn.Module, entries: dict[str, dict[str, Any]]) -> str:
    """Bring a network's modules to the sizes of a file.

    Args:
        network: is changed.
        entries: by module: its class and sizes.

    Returns:
        What does not fit, as a sentence; empty: everything does.
    """
    modules = dict(network.named_modules())
    for name, entry in entries.items():
        if entry.get("class") == CompactAttention.__name__ and type(modules.get(name)) is nn.MultiheadAttention:
            put(network, name, CompactAttention(modules[name]))  # type: ignore[arg-type]
    found = _sized(network)
    classes = {name: type(module).__name__ for name, (module, _) in found.items()}
    for name in {**classes, **entries}:
        here, there = classes.get(name, "nothing"), entries.get(name, {}).get("class", "nothing")
        if here != there:
            return f"{name!r} is {there} in the file and {here} in the network"
        module, sizes = found[name]
        for size in sizes:
            value, before = entries[name].get(size), getattr(module, size)
            if not isinstance(value, int) or not 0 < value <= before:
                return f"{size} of {name!r} is {value!r} in the file and {before} in the network"
            setattr(module, size, value)
    return ""


def _fill(network: nn.Module, tensors: dict[str, Tensor]) -> str:
    """Give a network that has been resized its tensors; what does not fit, as in `_resize`."""
    modules = dict(network.named_modules(remove_duplicate=False))
    state = network.state_dict()
    for key, tensor in tensors.items():
        owner, _, attribute = key.rpartition(".")
        module = modules.get(owner)
        old = state.get(key)
        if old is None:
            # Compaction makes a bias where a constant has to go into one.
            if module is None or attribute != "bias" or not isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
                return f"{key!r} is in the file alone"
            weight: Any = module.weight
            old = weight.new_empty(len(tensor) if tensor.dim() == 1 else 0)
            module.bias = nn.Parameter(old, requires_grad=weight.requires_grad)
        smaller = tensor.dim() == old.dim() and all(a <= b for a, b in zip(tensor.shape, old.shape, strict=True))
        if tensor.dtype != old.dtype or not smaller:
            return f"{key!r} is {tuple(tensor.shape)} {tensor.dtype}, not {tuple(old.shape)} {old.dtype} or smaller"
        if tensor.shape == old.shape:
            with torch.no_grad():
                getattr(module, attribute).copy_(tensor)
            continue
        values = tensor.to(old.device)
        trained = getattr(module, attribute).requires_grad
        is_buffer = attribute in module._buffers  # type: ignore[union-attr]
        setattr(module, attribute, values if is_buffer else nn.Parameter(values, requires_grad=trained))
    return _contradiction(network, tensors)


def _contradiction(network: nn.Module, tensors: dict[str, Tensor]) -> str:
    state = network.state_dict()
    for key, value in state.items():
        if key not in tensors:
            return f"the file lacks {key!r}"
        if tensor_digest(value) != tensor_digest(tensors[key]):
            return f"{key!r} shares its memory with another tensor in the network, and has other values in the file"
    for name, (module, sizes) in _sized(network).items():
        if "out_features" in sizes or "out_channels" in sizes:
            counts: Any = [getattr(module, size) for size in sizes]
            inputs, units, groups = counts if len(counts) == 3 else (*counts, 1)
            transposed = getattr(module, "transposed", False)
            expected = (inputs, units // groups) if transposed else (units, inputs // groups)
            shape = tuple(module.weight.shape)
            if shape[:2] != expected or (module.bias is not None and len(module.bias) != units):
                return f"{name!r} has a weight of shape {shape} and sizes {dict(zip(sizes, counts, strict=True))}"
    return ""
