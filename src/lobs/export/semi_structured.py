"""2:4 sparse weights for a GPU's sparse tensor cores, by torch's own `torch.sparse.to_sparse_semi_structured`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lobs.layers.checks import independent_copy
from lobs.layers.network import prunable_layers, tied_layers
from lobs.layers.view import Prunable


@dataclass(frozen=True)
class SemiStructured:
    """What `semi_structured` made.

    Attributes:
        model: the copy, for inference.
        converted: names of the layers that multiply by sparse weights now.
        dense: the other layers by name, with the reason.
    """

    model: nn.Module
    converted: list[str]
    dense: dict[str, str]


def semi_structured(model: nn.Module) -> SemiStructured:
    """A copy whose Linear layers multiply by 2:4 sparse weights, where they fit (`misfit`).

    Args:
        model: pruned with ``pattern="2:4"``, on a GPU, usually in float16 or bfloat16; not changed.

    Returns:
        The copy, and which layers it was done for.

    Raises:
        ValueError: the network is not on a GPU.
    """
    copied = independent_copy(model)
    layers, tied = prunable_layers(copied), tied_layers(copied)
    if not all(module.weight.is_cuda for module in layers.values()):
        raise ValueError("sparse tensor cores are a GPU's: give the network on one, model.half().cuda()")
    inside, dense = set(copied.modules()), {}
    for name, module in layers.items():
        reason = misfit(module) if module in inside else "its weight is a part of another module's"
        if reason is not None:
            dense[name] = reason
            continue
        weight = torch.sparse.to_sparse_semi_structured(module.weight.detach().contiguous())
        parameter = nn.Parameter(weight, requires_grad=False)
        for member in tied[name].values():
            member.weight = parameter
    return SemiStructured(copied, [name for name in layers if name not in dense], dense)


def misfit(module: Prunable) -> str | None:
    """Why torch cannot multiply by a layer's weight as a 2:4 sparse one; needs no GPU.

    Args:
        module: the layer, in the type that it is to compute in.

    Returns:
        The reason; None: it can.
    """
    if not isinstance(module, nn.Linear):
        return f"torch multiplies by 2:4 sparse weights in Linear layers only, this is a {type(module).__name__}"
    weight = module.weight.detach()
    sparse = torch.sparse
    cutlass = sparse.SparseSemiStructuredTensor._FORCE_CUTLASS
    backend = sparse.SparseSemiStructuredTensorCUTLASS if cutlass else sparse.SparseSemiStructuredTensorCUSPARSELT
    constraints = backend._DTYPE_SHAPE_CONSTRAINTS.get(weight.dtype)
    if constraints is None:
        return (
            f"torch's {backend.BACKEND} multiplies by no 2:4 sparse weights of {weight.dtype}: float16 or bfloat16 do"
        )
    rows, columns = constraints.sparse_min_rows, constraints.sparse_min_cols
    if not weight.numel() or weight.shape[0] % rows or weight.shape[1] % columns:
        return (
            f"its weight {tuple(weight.shape)} is not made of blocks of {rows} outputs and {columns} inputs, which "
            f"{weight.dtype} needs"
        )
    full = int(((weight != 0).unflatten(1, (-1, 4)).sum(2) > 2).sum())
    if full:
        return f'{full} of its groups of 4 inputs keep more than 2: prune it with pattern="2:4"'
    return None
