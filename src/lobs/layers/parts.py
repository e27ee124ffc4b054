"""Modules that compute with several matrices at once (attention, recurrent networks), seen as layers of their own.

`nn.MultiheadAttention` hands its weights to one function, and nothing outside sees what each is given. Here each matrix
of such a module is a *part*: an `nn.Linear` whose weight and bias are views of the module's own parameters, so that
what is written to a part is in the module, whose state, class and attributes stay as they are. Parts are named after
their owner (``encoder.attention.q_proj``). They are no submodules; within `evaluation_mode` the owner's forward calls
them like any other layer. So does torchvision's window attention its submodules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lobs.layers.attention import Attention
from lobs.layers.composite import Composite, Slice
from lobs.layers.recurrent import Recurrent
from lobs.layers.window_attention import WindowAttention


class Part(nn.Linear):
    """One matrix of a module that computes with several."""


COMPOSITES: tuple[Composite, ...] = (Attention(), Recurrent(), WindowAttention())
_PARTS: WeakKeyDictionary[nn.Module, dict[str, Part]] = WeakKeyDictionary()
_FORWARD = "forward"


def composite_of(module: nn.Module) -> Composite | None:
    """How a module falls into parts; None where it does not.

    A class with a forward of its own may compute anything, and weights that are computed from others are not its own:
    such modules have no parts.

    Args:
        module: any.

    Returns:
        What its class has told.
    """
    for composite in COMPOSITES:
        if any(isinstance(module, kind) and type(module).forward is kind.forward for kind in composite.kinds):
            own = module._parameters
            pieces = [piece for pair in composite.slices(module).values() for piece in pair if piece is not None]
            return composite if all(own.get(piece.parameter) is not None for piece in pieces) else None
    return None


def parts_of(module: nn.Module) -> dict[str, Part]:
    """The parts of a module by name; the same objects for as long as the module lives.

    Args:
        module: any.

    Returns:
        The parts, their weights and biases views of the module's parameters as they are now.
    """
    composite = composite_of(module)
    if composite is None:
        return {}
    parts = _PARTS.setdefault(module, {})
    for name, (weight, bias) in composite.slices(module).items():
        if name not in parts:
            parts[name] = nn.utils.skip_init(Part, 1, 1, bias=False)  # the caller's random numbers are his
        part = parts[name]
        _point(part, "weight", module, weight)
        _point(part, "bias", module, bias)
        part.out_features, part.in_features = part.weight.shape
    return parts


def split_parameters(module: nn.Module) -> set[str]:
    """Names of a module's parameters that belong to its parts."""
    composite = composite_of(module)
    pairs = composite.slices(module).values() if composite else ()
    return {piece.parameter for pair in pairs for piece in pair if piece is not None}


def _point(part: Part, key: str, owner: nn.Module, piece: Slice | None) -> None:
    """Let a part's weight or bias be a view of its owner's, which may have been moved or replaced."""
    if piece is None:
        part.register_parameter(key, None)
        return
    whole = owner._parameters[piece.parameter]
    assert whole is not None
    view = whole.detach()[piece.rows]
    now = part._parameters.get(key)
    if now is None or (now.data_ptr(), now.shape, now.dtype) != (view.data_ptr(), view.shape, view.dtype):
        trained = whole.requires_grad and not whole.is_inference()
        part.register_parameter(key, nn.Parameter(view, requires_grad=trained))


@contextmanager
def calls_of_parts(model: nn.Module) -> Iterator[None]:
    """Within the block, modules that compute with several matrices do so by calling their parts, or their layers."""
    owners = [module for module in model.modules() if _FORWARD not in vars(module) and composite_of(module)]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        for module in owners:
            module.forward = MethodType(_by_parts, module)  # type: ignore[method-assign]
        if owners:  # a transformer layer's fast path goes past its modules
            torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        for module in owners:
            vars(module).pop(_FORWARD, None)
        torch.backends.mha.set_fastpath_enabled(fast)


def without_calls_of_parts(model: nn.Module) -> nn.Module:
    """A copy that was made within the block of `calls_of_parts`, as if it had been made outside."""
    for module in model.modules():
        own = vars(module).get(_FORWARD)
        if isinstance(own, MethodType) and own.__func__ is _by_parts:
            del vars(module)[_FORWARD]
    return model


def _by_parts(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    composite = composite_of(self)
    assert composite is not None
    if any(isinstance(value, torch.Tensor) and value.is_nested for value in (*args, *kwargs.values())):
        return type(self).forward(self, *args, **kwargs)  # what its parts would be given has no rows
    return composite.forward(self, parts_of(self), *args, **kwargs)
