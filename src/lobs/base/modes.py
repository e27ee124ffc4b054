"""What a call must leave as it was: torch's modes, and the buffers of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


def outside_modes(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function so that a caller's inference mode or autocast does not reach its sums and weights."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        # Without a cache: a network's own autocast would go on with weights as they were before they were written to.
        half = (torch.autocast(device, enabled=False, cache_enabled=False) for device in ("cpu", "cuda"))
        with torch.inference_mode(False), next(half), next(half):
            return function(*args, **kwargs)

    return wrapped


@contextmanager
def without_training(model: nn.Module) -> Iterator[None]:
    """Dropout off and batch norm fixed inside the block; every module's flag comes back as it was.

    The flags alone: a ``train`` of somebody's own may do more, to weights, say.
    """
    flags = {module: module.training for module in model.modules()}
    for module in flags:
        module.training = False
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


@contextmanager
def same_buffers(model: nn.Module, but: type[nn.Module] | tuple[type[nn.Module], ...] = ()) -> Iterator[None]:
    """What forward passes write into a network's buffers (counters, caches) is put back at the block's end.

    Args:
        model: the network.
        but: classes of modules whose buffers may change.
    """
    kept = {
        (module, name): buffer.clone()
        for module in model.modules()
        if not isinstance(module, but)
        for name, buffer in module._buffers.items()
        if buffer is not None
    }
    try:
        yield
    finally:
        with torch.no_grad():
            for (module, name), value in kept.items():
                buffer = module._buffers.get(name)
                if buffer is None or buffer.shape != value.shape:
                    continue
                # Sparse ones cannot be compared.
                if buffer.layout is not torch.strided or not torch.equal(buffer, value):
                    buffer.copy_(value)


@torch.no_grad()
def copy_buffers(source: nn.Module, target: nn.Module, but: type[nn.Module] | tuple[type[nn.Module], ...] = ()) -> None:
    """Give a network the buffers of another one of the same kind.

    Args:
        source: where they come from.
        target: where they go.
        but: classes of modules whose buffers stay.
    """
    modules = dict(source.named_modules())
    for name, module in target.named_modules():
        for key, buffer in module._buffers.items():
            wanted = modules[name]._buffers[key]
            if wanted is not None and not isinstance(module, but):
                if buffer is not None and buffer.shape == wanted.shape:
                    buffer.copy_(wanted)
                else:
                    module._buffers[key] = wanted.clone()
