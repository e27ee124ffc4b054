"""Sparse files: a network's tensors in safetensors, each in the layout that takes the fewest bytes.

A tensor ``t`` of two or more dimensions becomes ``t#values`` (what is not zero, in the order of the flattened tensor)
and the places of these:

* bitmask: ``t#bits``, uint8, the first place in the lowest bit;
* blocks: the places are cut into blocks of 256; ``t#counts`` (uint16) says how many values lie in each block,
  ``t#offsets`` (uint8) where in it;
* positions: ``t#positions``, in the smallest integer that counts the tensor's places.

Tensors with fewer dimensions (biases, batch norm's) and those that are smaller dense are stored as they are. Zero means
that all bits are zero: a negative zero is a value, so that the round trip is exact. Layouts and shapes stand in the
file's metadata as JSON. Bytes by layout: `lobs.export.sparse_layout.layout_bytes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lobs.base.arguments import check_module
from lobs.base.fingerprint import tensor_digest
from lobs.base.memory import available_bytes
from lobs.base.tensor_files import CHECKSUMS, TensorFile, tensors_of_format, write_tensors
from lobs.export.sparse_layout import FileCosts, layout_bytes, position_type
from lobs.layers.network import memory_place, prunable_layers
from lobs.layers.parts import Part

FORMAT = "lobs-sparse-1"
_PARTS = {
    "dense": (),
    "bitmask": ("values", "bits"),
    "blocks": ("values", "counts", "offsets"),
    "positions": ("values", "positions"),
}
_BLOCK = 2**8  # places


def save_sparse(model: nn.Module, path: str | Path) -> int:
    """Write a network's parameters and buffers to a sparse file; `load_sparse` gives every bit of them back.

    Args:
        model: any module; its zeros are what makes the file small. Tensors that share memory are written each.
        path: the file; its folder is created, an older file replaced in one move.

    Returns:
        Bytes of the tensors in the file: `lobs.export.sparse_layout.sparse_bytes` of every tensor with two or more
        dimensions, the dense size of all others. The file has a header besides.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: the network's state holds something that is no tensor, or a name with ``#``.
    """
    check_module(model)
    stored: dict[str, Tensor] = {}
    index: dict[str, dict[str, Any]] = {}
    for name, tensor in _state(model).items():
        layout, parts = encode(tensor)
        index[name] = {"layout": layout, "shape": list(tensor.shape)}
        stored |= {f"{name}#{part}" if part else name: value for part, value in parts.items()}
    write_tensors(path, stored, stored.__getitem__, {FORMAT: json.dumps(index, sort_keys=True)})
    return sum(tensor.numel() * tensor.itemsize for tensor in stored.values())


def load_sparse(path: str | Path, into: nn.Module) -> nn.Module:
    """Read a sparse file into a network of the same architecture; nothing in the file is executed.

    Args:
        path: what `save_sparse` wrote.
        into: is overwritten in place, on its own device; nothing is changed where the file does not fit.

    Returns:
        ``into``.

    Raises:
        ValueError: the file is missing, damaged or no sparse file; or names, shapes or dtypes differ.
    """
    file, index = _opened(path)
    target = _state(into)
    missing, unknown = sorted(target.keys() - index.keys()), sorted(index.keys() - target.keys())
    if missing or unknown:
        raise ValueError(
            f"{path} holds another network than {type(into).__name__}: it lacks {', '.join(missing) or 'nothing'} and "
            f"has {', '.join(unknown) or 'nothing'} besides"
        )
    pairs = {name: (_described(file, name, index[name]), (t.dtype, list(t.shape))) for name, t in target.items()}
    wrong = [
        f"{name!r} is {tuple(found[1])} {found[0]}, not {tuple(expected[1])} {expected[0]}"
        for name, (found, expected) in pairs.items()
        if found != expected
    ]
    if wrong:
        raise ValueError(f"{path} does not fit {type(into).__name__}: {'; '.join(wrong)}")
    tensors = _decoded(file, index)
    places: dict[tuple, str] = {}
    for name, tensor in target.items():
        first = places.setdefault(memory_place(tensor), name) if tensor.numel() else name
        if first != name and tensor_digest(tensors[first]) != tensor_digest(tensors[name]):
            raise ValueError(
                f"{path} does not fit {type(into).__name__}: {first!r} and {name!r} share their memory there, and the "
                f"file holds different values for them"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            target[name].copy_(tensor)
    return into


def read_sparse(path: str | Path) -> dict[str, Tensor]:
    """Read a sparse file without a network.

    Args:
        path: what `save_sparse` wrote.

    Returns:
        The dense tensors by name, on the CPU.

    Raises:
        ValueError: the file is missing, damaged or no sparse file, or its dense tensors do not fit into memory.
    """
    file, index = _opened(path)
    described = [_described(file, name, entry) for name, entry in index.items()]
    claimed, room = sum(prod(shape) * dtype.itemsize for dtype, shape in described), available_bytes()
    if claimed > room:
        raise ValueError(
            f"{path} holds {claimed / 2**30:.3g} GiB of dense tensors, of memory {room / 2**30:.3g} GiB are available: "
            f"is it damaged?"
        )
    return _decoded(file, index)


def _opened(path: str | Path) -> tuple[TensorFile, dict[str, dict[str, Any]]]:
    """A sparse file, and layout and shape of each of its tensors; nothing as large as these has been made."""
    file, described = tensors_of_format(path, FORMAT, "sparse file")
    try:
        index = {name: dict(entry) for name, entry in json.loads(described).items()}
        parts = {key for name, entry in index.items() for key in _keys(name, entry).values()}
        sizes = [size for entry in index.values() for size in list(entry["shape"])]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise file.damaged(f"{type(error).__name__} {error}") from None
    if not all(type(size) is int and size >= 0 for size in sizes):
        raise file.damaged("shapes that no tensor has")
    if wrong := parts ^ set(file.keys()):
        raise file.damaged(f"{', '.join(sorted(wrong))} belong to no tensor, or are missing")
    return file, index


def _keys(name: str, entry: Mapping[str, Any]) -> dict[str, str]:
    """What the parts of a tensor are called in the file."""
    return {part: f"{name}#{part}" for part in _PARTS[entry["layout"]]} or {"": name}


def _described(file: TensorFile, name: str, entry: Mapping[str, Any]) -> tuple[torch.dtype, list[int]]:
    """Type and shape of a dense tensor."""
    return file.described(next(iter(_keys(name, entry).values())))[0], entry["shape"]


def _decoded(file: TensorFile, index: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    tensors = {}
    for name, entry in index.items():
        parts = {part: file.tensor(key) for part, key in _keys(name, entry).items()}
        try:
            tensors[name] = decode(entry["layout"], parts, entry["shape"])
        except (ValueError, RuntimeError, IndexError, TypeError) as error:
            raise file.damaged(f"{name!r}: {type(error).__name__} {error}") from None
    return tensors


def encode(tensor: Tensor) -> tuple[str, dict[str, Tensor]]:
    """A tensor in its smallest layout.

    Args:
        tensor: any shape and dtype.

    Returns:
        Name of the layout, and its parts by name, on the CPU; a dense tensor's only part has the name ``""``.

    Raises:
        ValueError: it is one of torch's sparse tensors.
    """
    if tensor.layout is not torch.strided:
        raise ValueError("a sparse tensor cannot be stored: make it dense (to_dense())")
    tensor = tensor.detach().cpu().contiguous()
    # A copy: tensors that share memory cannot be written as they are.
    dense = {"": tensor.clone()}
    if tensor.dim() < 2 or not tensor.numel():
        return "dense", dense
    flat = tensor.flatten()
    # safetensors knows the dtypes, torch cannot compute with all of them: bytes serve for every one.
    nonzero = flat.view(torch.uint8).view(-1, tensor.itemsize).any(dim=1)
    places = nonzero.nonzero()[:, 0]
    sizes = layout_bytes(torch.tensor(len(places)), len(flat), tensor.itemsize)
    layout = min(sizes, key=lambda name: float(sizes[name]))
    if layout == "dense":
        return layout, dense
    values = flat.view(torch.uint8).view(-1, tensor.itemsize)[places].flatten().view(tensor.dtype)
    if layout == "bitmask":
        bits = torch.zeros(ceil(len(flat) / 8) * 8, dtype=torch.uint8)
        bits[: len(flat)] = nonzero
        return layout, {"values": values, "bits": (bits.view(-1, 8) << torch.arange(8)).sum(dim=1).to(torch.uint8)}
    if layout == "positions":
        return layout, {"values": values, "positions": places.to(position_type(len(flat)))}
    counts = torch.bincount(places // _BLOCK, minlength=ceil(len(flat) / _BLOCK))
    return layout, {"values": values, "counts": counts.to(torch.uint16), "offsets": (places % _BLOCK).to(torch.uint8)}


def decode(layout: str, parts: Mapping[str, Tensor], shape: list[int]) -> Tensor:
    """The dense tensor of a layout's parts.

    Args:
        layout: its name.
        parts: from `encode`.
        shape: of the dense tensor.

    Returns:
        The tensor, bit by bit the one that was encoded.

    Raises:
        ValueError: the parts contradict each other or the shape.
    """
    weights = prod(shape)
    if layout == "dense":
        if list(parts[""].shape) != shape:
            raise ValueError(f"a dense tensor has shape {list(parts[''].shape)}, not {shape}")
        return parts[""]
    values = parts["values"]
    if layout == "bitmask":
        if len(parts["bits"]) != ceil(weights / 8):
            raise ValueError(f"{len(parts['bits'])} bytes of bits for {weights} weights")
        places = ((parts["bits"][:, None] >> torch.arange(8)) & 1).flatten().nonzero()[:, 0]
    elif layout == "positions":
        places = parts["positions"].long()
    else:
        counts = parts["counts"].long()
        if len(counts) != ceil(weights / _BLOCK) or bool((counts < 0).any()) or int(counts.sum()) != len(values):
            raise ValueError(f"counts of {len(counts)} blocks do not belong to {len(values)} of {weights} weights")
        places = torch.arange(len(counts)).repeat_interleave(counts) * _BLOCK + parts["offsets"].long()
    outside = len(places) and (int(places[0]) < 0 or int(places[-1]) >= weights)
    if outside or len(places) != len(values) or bool((places.diff() <= 0).any()):
        raise ValueError(f"{len(places)} places for {len(values)} of {weights} weights, or out of order")
    flat = torch.zeros(weights, values.itemsize, dtype=torch.uint8)
    flat[places] = values.view(torch.uint8).view(-1, values.itemsize)
    return flat.flatten().view(values.dtype).view(shape)


def file_costs(model: nn.Module, names: Iterable[str]) -> FileCosts:
    """What the sparse file of a network holds besides some layers' weights.

    Args:
        model: the dense network.
        names: of the layers whose weights are still to be pruned.

    Returns:
        The costs; the header is taken at its largest, so that a file is never larger than its budget.

    Raises:
        ValueError: a layer is a part of a module's weight (`lobs.layers.parts`).
    """
    layers = prunable_layers(model, names)
    for name, module in layers.items():
        if isinstance(module, Part):
            raise ValueError(
                f"layer {name!r} is a part of a module's weight, whose bytes in a file cannot be told apart: give "
                f"density= or flops=, or leave it out with exclude=[{name!r}]"
            )
    weights = {memory_place(module.weight): name for name, module in layers.items()}
    fixed, copies = (
        8 + len(json.dumps({"__metadata__": {FORMAT: "", CHECKSUMS: "0" * 8}})),
        dict.fromkeys(weights.values(), 0),
    )
    state = _state(model)
    digits = len(str(sum(tensor.numel() * tensor.itemsize for tensor in state.values())))
    for key, tensor in state.items():
        layer = weights.get(memory_place(tensor))
        if layer is None:
            layout, parts = encode(tensor)
            fixed += sum(part.numel() * part.itemsize for part in parts.values())
            fixed += _header_bytes(key, tensor, layout, digits)
        else:
            copies[layer] += 1
            fixed += max(_header_bytes(key, tensor, layout, digits) for layout in _PARTS)
    widths = {name: layers[name].weight.element_size() for name in copies}
    return FileCosts(fixed + 8, widths, copies)  # the header is filled up to a multiple of 8


def _header_bytes(key: str, tensor: Tensor, layout: str, digits: int) -> int:
    """A tensor's entries in a file's header, with numbers as long as they can be."""
    shape = list(tensor.shape) if layout == "dense" else [tensor.numel()]
    entry = {"dtype": "BF16", "shape": shape, "data_offsets": [10 ** (digits - 1)] * 2}
    names = [f"{key}#{part}" for part in _PARTS[layout]] or [key]
    index = {key: {"layout": layout, "shape": list(tensor.shape)}}
    sums = 9 * len(names)
    return (
        sums + len(json.dumps(dict.fromkeys(names, entry), separators=(",", ":"))) + len(json.dumps(json.dumps(index)))
    )


def _state(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name!r} of {type(model).__name__} is a {type(value).__name__}, only tensors are stored")
        if "#" in name:
            raise ValueError(f"{name!r} of {type(model).__name__}: a name with '#' cannot be stored")
    return dict(state)
