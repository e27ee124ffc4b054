"""Forward passes that wait before every layer: all layers front to back in about one forward pass.

Pruning in sequence and correcting biases both change a layer and then need what the next one is given. Running every
batch from the start up to each layer in turn costs as many passes as there are layers. Here each batch has a pass of
its own, a greenlet, which is held just before it calls a layer and goes on once that layer is done. The price is
memory: what every batch's pass still needs is alive at the same time.

`lockstep_possible` says whether this may be done: it may not where a layer is called more than once (its first call
would have to know weights that are decided after its last), where autocast, inference mode or gradients are
switched inside the network (the switch belongs to the whole thread), or where memory does not suffice. Then
`lobs.calibration.layerwise.LayerwisePasses` starts anew for every layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from lobs.base.memory import available_bytes
from lobs.calibration.batches import calibration_batches
from lobs.calibration.inputs import network_input
from lobs.layers.matrix import call_input
from lobs.layers.network import tied_layers

# A waiting pass keeps its layer's input and what skips the layer (a residual branch is at most as large, as a rule).
ALIVE = 2
# Share of the free memory that the waiting passes of all batches may take.
MEMORY_SHARE = 0.5


@torch.no_grad()
def lockstep_possible(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    batches: Iterable,
    networks: int = 1,
    memory: float | None = None,
) -> bool:
    """Whether passes through a network can wait before each of some modules.

    Args:
        model: in evaluation mode.
        modules: of the model, by name.
        batches: calibration inputs, which start anew each time.
        networks: how many networks of this kind are gone through at once.
        memory: bytes that the waiting passes may take; None: `MEMORY_SHARE` of what is free now.

    Returns:
        True where each module is called once or never, no mode of the thread (autocast, inference, gradients) is
        switched inside, and memory suffices.
    """
    batches = calibration_batches(batches)
    images = sum(batches.input_counts())
    tied = tied_layers(model)
    # Every batch waits in memory, and modules that share a weight are one layer that is called several times.
    if not batches.kept or any(len(tied.get(name, ())) > 1 for name in modules):
        return False
    sizes: list[int] = []
    called: set[nn.Module] = set()
    outside = _modes()
    fine = True

    def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
        nonlocal fine
        given = call_input(args, kwargs)
        fine = fine and given is not None and module not in called and _modes() == outside
        called.add(module)
        sizes.append(0 if given is None else given.numel() * given.element_size())

    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules.values()]
    first = network_input(batches.first(), model)
    try:
        first.clone().run(model)
    finally:
        for handle in handles:
            handle.remove()
    if not fine:
        return False
    own = sum(tensor.numel() * tensor.element_size() for tensor in first.tensors)
    needed = networks * (own + ALIVE * max(sizes, default=0)) * images / len(first)
    return needed <= (MEMORY_SHARE * available_bytes(first.device) if memory is None else memory)


class LockstepPasses:
    """One forward pass per batch, each held before the module it is about to call.

    A context manager: leaving it ends all passes.

    Args:
        model: in evaluation mode; `lockstep_possible`.
        modules: of the model, by name, where the passes are held.
        batches: of the network's inputs.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, nn.Module], batches: Iterable) -> None:
        self._names = {module: name for name, module in modules.items()}
        self._passes = [_Pass(model, batch) for batch in batches]
        self._handles = [module.register_forward_pre_hook(self._hold, with_kwargs=True) for module in modules.values()]

    def __enter__(self) -> LockstepPasses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all passes; nothing of them stays in memory."""
        for handle in self._handles:
            handle.remove()
        for each in self._passes:
            each.throw()  # GreenletExit
        self._passes = []

    def input(self, index: int, name: str) -> Tensor:
        """Let the pass of one batch go on to a module.

        Args:
            index: of the batch.
            name: of the module; has to be the next one that the network calls.

        Returns:
            What the module is about to be given.

        Raises:
            ValueError: the pass calls another module first, or none.
        """
        each = self._passes[index]
        with torch.no_grad():
            held = each.switch()
        if each.dead or held[0] != name:
            before = "ended" if each.dead else f"called layer {held[0]!r}"
            raise ValueError(
                f"a forward pass {before} where the first one called layer {name!r}: networks that call their "
                f"layers depending on the data cannot be gone through layer by layer"
            )
        return held[1]

    def _hold(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        current = getcurrent()
        if isinstance(current, _Pass) and current.parent is not None:
            current.parent.switch((self._names[module], call_input(args, kwargs)))


class _Pass(greenlet):
    """One batch on its way through a network."""

    def __init__(self, model: nn.Module, batch: object) -> None:
        super().__init__()
        self.model = model
        self.batch: object = batch

    def run(self) -> Any:
        batch, self.batch = self.batch, None
        return network_input(batch, self.model).run(self.model)


def _modes() -> tuple[bool, ...]:
    """What belongs to the whole thread: a pass that waits inside a block would leave it switched for the others."""
    autocast = torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")
    return *autocast, torch.is_inference_mode_enabled(), torch.is_grad_enabled()
