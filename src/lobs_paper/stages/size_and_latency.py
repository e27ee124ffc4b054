"""What a pruned network takes: bytes on disk, units left after compaction, milliseconds before and after it."""

from __future__ import annotations

import time
from copy import deepcopy
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from lobs.base.modes import without_training
from lobs.compaction.compact import CompactResult, compact
from lobs.export.sparse import save_sparse

WARM_UPS = 3
MOST_REPEATS = 50
FEWEST_REPEATS = 3
# Repeats end after so many seconds per network and batch size.
SECONDS = 0.2


def storage(network: nn.Module, inputs: Tensor) -> tuple[dict[str, Any], nn.Module | None]:
    """Measure a network's files and compact it.

    Args:
        network: pruned; not changed.
        inputs: a batch on its device, on which it is compared with the compacted network.

    Returns:
        The metrics: bytes of the dense, the sparse and the compacted network's dense safetensors file, parameters,
        removed units by layer and the largest difference of the outputs; those of compaction are None where the network
        cannot be compacted, and ``not_compacted`` says why. And the compacted network, or None.
    """
    clean = deepcopy(network)
    with torch.no_grad():
        for tensor in clean.parameters():
            tensor.add_(0.0)  # masks multiply, and what was negative is -0.0 then: a value that a sparse file keeps
    result: CompactResult | None = None
    reason = None
    try:
        result = compact(clean, inputs)
    except ValueError as error:
        reason = str(error)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        save_sparse(clean, path)
        sparse = path.stat().st_size
        metrics = {
            "dense_bytes": _dense_bytes(clean),
            "sparse_bytes": sparse,
            "compact_bytes": _dense_bytes(result.model) if result else None,
            "parameters": sum(tensor.numel() for tensor in clean.parameters()),
            "compact_parameters": result.parameters_left if result else None,
            "removed_units": result.removed if result else None,
            "compact_difference": result.difference if result else None,
            "not_compacted": reason,
        }
    return metrics, result.model if result else None


def latency(network: nn.Module, smaller: nn.Module, inputs: Tensor) -> list[dict[str, Any]]:
    """Time both networks on one input and on all, in turn, so that a busy machine slows both down alike.

    Args:
        network: before compaction.
        smaller: after it.
        inputs: a batch on the networks' device.

    Returns:
        Per batch size the medians in milliseconds, ``before_ms`` and ``after_ms``.
    """
    rows = []
    with without_training(network), without_training(smaller), torch.no_grad():
        for batch in sorted({1, len(inputs)}):
            part = inputs[:batch]
            spent: dict[str, list[float]] = {"before_ms": [], "after_ms": []}
            pairs = list(zip(spent, (network, smaller), strict=True))
            for _ in range(WARM_UPS):
                for _, model in pairs:
                    _milliseconds(model, part)
            end = time.perf_counter() + SECONDS
            while len(spent["after_ms"]) < FEWEST_REPEATS or (
                len(spent["after_ms"]) < MOST_REPEATS and time.perf_counter() < end
            ):
                for name, model in pairs:
                    spent[name].append(_milliseconds(model, part))
            rows.append({"batch": batch, **{name: round(median(times), 4) for name, times in spent.items()}})
    return rows


def _milliseconds(model: nn.Module, inputs: Tensor) -> float:
    start = time.perf_counter()
    model(inputs)
    if inputs.is_cuda:
        torch.cuda.synchronize(inputs.device)
    return 1000 * (time.perf_counter() - start)


def _dense_bytes(network: nn.Module) -> int:
    """Of a safetensors file as anybody writes it, without checksums."""
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    return len(save(tensors, metadata={}))
