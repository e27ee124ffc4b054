"""Removed weights stay zero while the network goes on training, in the caller's own loop, under any optimizer.

Three things move a removed weight: its gradient, what momentum gathered for it before, and weight decay of copies that
an optimizer keeps. So its gradient is zeroed as it arrives, and the weight after every step of an optimizer. Nothing is
added to the network: it is copied, saved, compiled and exported as before.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from lobs.base.arguments import check_module
from lobs.base.warning import warn
from lobs.layers.checks import check_plain
from lobs.layers.network import prunable_layers
from lobs.layers.view import Prunable

if TYPE_CHECKING:
    from lobs.result import PruneResult


def keep_masks(model: nn.Module, masks: Mapping[str, Tensor] | PruneResult | None = None) -> KeptMasks:
    """Keep removed weights at zero while a network is trained on.

    To be called before or after the optimizer is made; it acts on every ``torch.optim`` optimizer's steps until it is
    removed or the network is gone. Weights may be moved, cast and loaded meanwhile; a network that was loaded has its
    zeros again after the next step, or after ``.apply()``, which is also for optimizers of other kinds. A deep copy is
    another network: it needs a call of its own (an average over zeros is zero).

    Args:
        model: the network, not wrapped by DDP (``ddp.module``).
        masks: bool by layer name, True where a weight is kept, or the result that holds them; None: what is zero in the
            weights of the layers now was removed.

    Returns:
        The handle: ``.remove()`` ends it, as does leaving its ``with`` block.

    Raises:
        ValueError: a mask of a layer that there is not, of another shape or not of bools; a weight that is computed
            from others.
        TypeError: ``masks`` is no mapping.
    """
    check_module(model)
    layers = prunable_layers(model)
    if masks is None:
        zeros = {name: module.weight.detach() == 0 for name, module in layers.items()}
        kept = {name: ~own for name, own in zeros.items() if own.any()}
        if not kept:
            warn("no weight is zero, so that nothing is kept: give the pruned network (result.model), or its masks")
    else:
        kept = _checked(getattr(masks, "masks", masks), layers)
    chosen = {name: layers[name] for name in kept}
    check_plain(chosen)
    return KeptMasks(_places(model, chosen, kept))


class KeptMasks:
    """The handle of `keep_masks`; a context manager.

    Args:
        places: the parameters with removed weights.
    """

    def __init__(self, places: list[_Place]) -> None:
        self._places = places
        # Torch holds this hook, the hook no module: a network that nobody needs any more is free, and its masks are
        # after the next step (of a hook that takes itself away within a step torch would complain).
        self._handle: RemovableHandle | None = register_optimizer_step_post_hook(self._after_step)
        self.apply()

    def apply(self) -> None:
        """Set the removed weights to zero now."""
        for place in self._places:
            place.apply()

    def remove(self) -> None:
        """From now on the removed weights are trained like all others."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        for place in self._places:
            place.release()

    def _after_step(self, *_: object) -> None:
        self._places = [place for place in self._places if place.module() is not None]
        self.apply()

    def __enter__(self) -> KeptMasks:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class _Place:
    """One parameter and where it lost weights; the module is asked for it anew each time, as it may get another.

    Args:
        module: that holds it.
        key: its name there.
        removed: bool in its shape.
    """

    def __init__(self, module: nn.Module, key: str, removed: Tensor) -> None:
        self.module = weakref.ref(module)
        self.key = key
        self.removed = removed
        self._hooked: weakref.ref | None = None
        self._handle: RemovableHandle | None = None

    @torch.no_grad()
    def apply(self) -> None:
        module = self.module()
        parameter = None if module is None else module._parameters.get(self.key)
        if parameter is None:
            return
        self.removed = self.removed.to(parameter.device)
        if hasattr(parameter, "device_mesh") and not hasattr(self.removed, "device_mesh"):  # sharded since
            self.removed = _sharded(self.removed, parameter)
        parameter.data.masked_fill_(self.removed, 0)  # of `data`: a backward pass that is under way may go on
        if parameter.requires_grad and (self._hooked is None or self._hooked() is not parameter):
            self.release()
            self._hooked = weakref.ref(parameter)
            self._handle = parameter.register_hook(partial(_without, self))

    def release(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = self._hooked = None


def _sharded(removed: Tensor, parameter: Any) -> Tensor:
    """This process's part of it, as ``fully_shard`` has cut the parameter."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(removed, parameter.device_mesh, parameter.placements)


def _without(place: _Place, gradient: Tensor) -> Tensor:
    """A gradient without the removed weights' part: LBFGS and clipping look at it before any step."""
    return gradient.masked_fill(place.removed.to(gradient.device), 0)


def _checked(masks: object, layers: Mapping[str, Prunable]) -> dict[str, Tensor]:
    if not isinstance(masks, Mapping):
        raise TypeError(f"masks must be bool tensors by layer name or a PruneResult, got {type(masks).__name__}")
    for name, mask in masks.items():
        if name not in layers:
            raise ValueError(f"masks: there is no layer {name!r}; the network has {', '.join(layers)}")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"layer {name!r}: a mask is a bool tensor, True where a weight is kept; got {found}")
        weight = layers[name].weight.detach()
        if mask.shape != weight.shape:
            raise ValueError(
                f"layer {name!r}: a mask of shape {tuple(mask.shape)} does not fit its weight {tuple(weight.shape)}"
            )
        if alive := int(((weight != 0) & ~mask.to(weight.device)).sum()):
            warn(f"layer {name!r}: {alive} weights that its mask removes were not zero, and are now")
    return dict(masks)


def _places(model: nn.Module, layers: Mapping[str, Prunable], masks: Mapping[str, Tensor]) -> list[_Place]:
    """The parameters in whose memory the layers' weights lie: their own, tied ones, and those they are a part of."""
    held = list(_parameters(model))
    removed: dict[tuple[nn.Module, str], Tensor] = {}
    for name, layer in layers.items():
        weight = layer.weight.detach()
        for module, key, parameter in held:
            offset = weight.storage_offset() - parameter.storage_offset()
            if (
                parameter.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr()
                or parameter.dtype != weight.dtype
                or not 0 <= offset <= _span(parameter) - _span(weight)
            ):
                continue
            whole = removed.setdefault((module, key), torch.zeros(_span(parameter), dtype=torch.bool))
            whole.as_strided(weight.shape, weight.stride(), offset).copy_(~masks[name])
    return [
        _Place(module, key, removed[module, key].as_strided(parameter.shape, parameter.stride()))
        for module, key, parameter in held
        if (module, key) in removed
    ]


def _parameters(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in model.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.numel():
                yield module, key, parameter


def _span(tensor: Tensor) -> int:
    """Numbers in memory from a tensor's first to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
