"""torchvision's window attention (Swin transformers): it hands its Linear layers' weights to a function.

Within `lobs.layers.parts.calls_of_parts` each product with such a layer's own weight and bias is a call of the layer.
In its second version the bias of queries, keys and values is another one, so that their layer stays a function's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

from torch import nn
from torch.nn import functional

from lobs.layers.composite import Composite, Slice

# By name: whoever has such a module has imported torchvision, which this library does without.
CLASSES = {
    "torchvision.models.swin_transformer": ("ShiftedWindowAttention", "ShiftedWindowAttentionV2"),
    "torchvision.models.video.swin_transformer": ("ShiftedWindowAttention3d",),
}


class WindowAttention(Composite):
    """No parts of its own: its matrices are those of its submodules ``qkv`` and ``proj``."""

    @property
    def kinds(self) -> tuple[type[nn.Module], ...]:  # type: ignore[override]
        """Those of torchvision's classes that have been imported."""
        found = (getattr(sys.modules.get(home), name, None) for home, names in CLASSES.items() for name in names)
        return tuple(kind for kind in found if kind is not None)

    def slices(self, module: nn.Module) -> dict[str, tuple[Slice, Slice | None]]:
        """None."""
        return {}

    def forward(self, module: nn.Module, parts: Mapping[str, nn.Linear], *args: Any, **kwargs: Any) -> Any:
        """Its own, whose products are calls of its layers."""
        return type(module).forward(cast("nn.Module", _Seen(module)), *args, **kwargs)


class _Seen:
    """A module as its forward sees it: its Linear layers' weights know whose they are.

    No torch function mode: sequential passes are suspended within a layer's call, and modes are one stack for them all.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return SimpleNamespace(weight=_Weight(found), bias=found.bias) if isinstance(found, nn.Linear) else found


class _Weight:
    """Stands for a layer's weight in the place of a tensor (torch's ``__torch_function__`` protocol)."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """The layer's call for its product; anything else with the weight itself."""
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
        weight = given.get("weight")
        if func is functional.linear and isinstance(weight, cls) and given.get("bias") is weight.layer.bias:
            return weight.layer(given["input"])
        args = tuple(each.layer.weight if isinstance(each, cls) else each for each in args)
        named = {key: each.layer.weight if isinstance(each, cls) else each for key, each in (kwargs or {}).items()}
        return func(*args, **named)
