"""The diagonal of the training loss's Hessian, which OBD scores weights by (LeCun, Denker & Solla 1990)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lobs.base.distributed import summed
from lobs.layers.evaluation import evaluation_mode
from lobs.layers.matrix import view_of
from lobs.layers.network import prunable_layers, tied_layers

_NEEDED = "the loss's curvature needs a network that is an nn.Sequential of modules BackPACK knows"
LOSSES = {"cross_entropy": nn.CrossEntropyLoss, "mse": nn.MSELoss}


class LossCurvature:
    """Sums the Hessian's diagonal of each layer over batches: exact, by BackPACK.

    Args:
        model: a network of modules that BackPACK knows (Linear, Conv2d, activations, pooling, Flatten); it is copied.
        loss: a name in `LOSSES`; the mean over samples is meant.
        names: the layers wanted.

    Raises:
        ValueError: the loss is unknown, a layer shares its weight, a container has a forward of its own, or the
            package backpack-for-pytorch is missing.
    """

    def __init__(self, model: nn.Module, loss: str, names: Sequence[str]) -> None:
        if loss not in LOSSES:
            raise ValueError(f"unknown loss {loss!r}: accepted are {', '.join(LOSSES)}")
        try:
            from backpack import extend
        except ImportError as error:
            raise ValueError(f"loss={loss!r} needs the package backpack-for-pytorch: {error}") from None
        _refuse_what_is_not_seen(model, names)
        # With the hooks that are there now: those that collect statistics come later and must not see this pass.
        self._original: nn.Module | None = copy.deepcopy(model)
        self._model = extend(_plain_copy(model)).eval()
        self._model.requires_grad_(True)
        self._loss = extend(LOSSES[loss](reduction="sum"))
        self._layers: dict[str, Any] = dict(prunable_layers(self._model, names))
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Add one batch.

        Raises:
            ValueError: BackPACK cannot follow the network, hooks change what its modules give, or the targets do not
                fit its outputs.
        """
        from backpack import backpack
        from backpack.extensions import DiagHessian

        with torch.enable_grad(), backpack(DiagHessian()), warnings.catch_warnings():
            # BackPACK hooks the first layer too, whose inputs need no gradient.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            try:
                outputs = self._model(inputs)
                self._compare(inputs, outputs)
                self._check(outputs, targets)
                self._loss(outputs, targets).backward()
            except NotImplementedError as error:  # with this BackPACK refuses a module that it has no rule for
                raise ValueError(f"{_NEEDED}: {error}") from None
        for name, module in self._layers.items():
            diagonal = view_of(module).matrix(module, module.weight.diag_h).double()
            if module.bias is not None:
                diagonal = torch.cat([diagonal, module.bias.diag_h[:, None].double()], 1)
            self._sums[name] = self._sums[name] + diagonal if name in self._sums else diagonal
            for parameter in module.parameters():
                del parameter.diag_h
        self._model.zero_grad()
        self._count += len(inputs)

    def _compare(self, inputs: Tensor, outputs: Tensor) -> None:
        """Refuse, on the first batch, a network that computes something else than its modules one by one."""
        if self._original is None:
            return
        with torch.no_grad(), evaluation_mode(self._original):
            expected = self._original(inputs.clone())
        self._original = None
        if not (isinstance(expected, Tensor) and torch.allclose(expected, outputs, rtol=1e-3, atol=1e-5)):
            raise ValueError(
                "the loss's curvature needs a network without hooks that change what its modules give: BackPACK does "
                "not see them"
            )

    def _check(self, outputs: Tensor, targets: Tensor) -> None:
        if isinstance(self._loss, nn.MSELoss):
            if outputs.shape != targets.shape:
                raise ValueError(
                    f"loss='mse' compares outputs {tuple(outputs.shape)} with targets {tuple(targets.shape)}: give "
                    f"targets of the same shape"
                )
        elif not targets.is_floating_point() and len(targets):
            low, high = int(targets.min()), int(targets.max())
            if low < 0 or high >= outputs.shape[1]:
                raise ValueError(
                    f"loss='cross_entropy' is given labels from {low} to {high}, the network has {outputs.shape[1]} "
                    f"outputs: labels must lie between 0 and {outputs.shape[1] - 1}"
                )

    def combine(self) -> None:
        """Add up the sums of all processes."""
        self._sums = {name: summed(total) for name, total in self._sums.items()}
        self._count = int(summed(torch.tensor(self._count)))

    def result(self) -> dict[str, Tensor]:
        """The diagonal of the mean loss's Hessian, float64 ``[out, features (+ 1)]`` per layer."""
        return {name: total / self._count for name, total in self._sums.items()}


def _refuse_what_is_not_seen(model: nn.Module, names: Sequence[str]) -> None:
    """BackPACK goes from module to module: it knows no forward of a container's own and no weight used twice."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential) and type(module).forward is not nn.Sequential.forward:
            raise ValueError(f"{_NEEDED}: {name or type(module).__name__} has a forward of its own")
    tied = tied_layers(model)
    for name in names:
        others = [other for other in tied.get(name, {}) if other != name]
        if others:
            raise ValueError(
                f"layer {name!r} shares its weight with {others[0]!r}: the loss's curvature in a shared weight is not "
                f"collected, leave it out with exclude=[{name!r}] or take a method that does not need it"
            )


def _plain_copy(model: nn.Module) -> nn.Module:
    """A copy as BackPACK needs it: no module twice, none that overwrites its input, no hooks."""
    copied = copy.deepcopy(model)
    seen: set[nn.Module] = set()
    for parent in list(copied.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in seen:
                parent._modules[name] = child = copy.deepcopy(child)
            seen |= set() if child is None else {child}
    for module in copied.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return copied
