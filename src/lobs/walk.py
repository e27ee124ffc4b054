"""Walks through a network that sequential pruning and corrections make many times: forward passes up to one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from lobs.inputs import network_input, probe_determinism
from lobs.suspended import SuspendedPasses, suspendable

M = TypeVar("M", bound=nn.Module)


class _LastCall(BaseException):
    """Leaves a forward pass; no `Exception`, so that a network's own ``except Exception`` does not stop it."""


def run_until(model: nn.Module, module: nn.Module, calls: int, inputs: Tensor, see: Callable[..., None]) -> None:
    """Run a forward pass up to the last call of one of its modules.

    Args:
        model: in evaluation mode.
        module: one of its modules.
        calls: how often a forward pass calls it.
        inputs: of the network.
        see: is given the module's input and its output at every call.

    Raises:
        ValueError: this pass calls the module less often.
    """
    seen = 0

    def hook(_: nn.Module, args: tuple, output: Tensor) -> None:
        nonlocal seen
        seen += 1
        see(args[0], output)
        if seen == calls:
            raise _LastCall

    handle = module.register_forward_hook(hook)
    try:
        model(inputs)
    except _LastCall:
        return
    finally:
        handle.remove()
    raise ValueError(
        f"{module} was called {seen} times in a forward pass and {calls} times in the first one: networks that call "
        f"their layers depending on the data cannot be walked layer by layer"
    )


def first_input(model: nn.Module, batches: Iterable) -> Tensor:
    """The first batch's input, on the network's device.

    Returns:
        The input.

    Raises:
        ValueError: there is no batch.
    """
    first = next(iter(batches), None)
    if first is None:
        raise ValueError("batches is empty: there is no calibration batch")
    return network_input(first, model)


@torch.no_grad()
def count_calls(model: nn.Module, batches: Iterable, modules: Mapping[str, M]) -> dict[str, int]:
    """How often one forward pass calls each of some modules, found with the first batch.

    Args:
        model: in evaluation mode.
        batches: as for `lobs.collect_statistics`.
        modules: of the model, by name.

    Returns:
        Counts by name in the order of the first call; without the modules that are never called.

    Raises:
        ValueError: there is no batch, or the network answers differently twice.
    """
    inputs = first_input(model, batches)
    probe_determinism(model, inputs)
    calls: dict[str, int] = {}

    def hook_of(name: str) -> Callable:
        def hook(*_: object) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, module in modules.items()]
    try:
        model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


class Walk:
    """One network front to back: what its modules are given and give, while those before them may have been changed.

    A context manager. Where the network allows it (`lobs.suspended`) all of the walk is one forward pass, else every
    module is reached from the network's start.

    Args:
        model: in evaluation mode.
        modules: of the model, by name.
        batches: calibration inputs, which start anew each time.
        together: how many such walks are made at once and share the memory.

    Attributes:
        calls: how often one forward pass calls each module, in the order of the first call; without those never called.

    Raises:
        ValueError: there is no batch, or the network answers differently twice.
    """

    def __init__(
        self, model: nn.Module, modules: Mapping[str, nn.Module], batches: Iterable, together: int = 1
    ) -> None:
        self.calls = count_calls(model, batches, modules)
        self._model, self._modules, self._batches = model, modules, batches
        self._passes: SuspendedPasses | None = None
        if suspendable(model, modules, batches, together):
            self._passes = SuspendedPasses(model, modules, [network_input(batch, model) for batch in batches])

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *_: object) -> None:
        if self._passes is not None:
            self._passes.close()

    @torch.no_grad()
    def visits(self, name: str) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """What every batch brings to a module: the next one in the order of `calls`.

        Args:
            name: of the module.

        Yields:
            Input and output of every call, batch by batch.
        """
        module = self._modules[name]
        if self._passes is not None:
            for inputs in self._passes.inputs(name):
                yield [(inputs, module.forward(inputs))]
            return
        for batch in self._batches:
            seen: list[tuple[Tensor, Tensor]] = []
            run_until(self._model, module, self.calls[name], network_input(batch, self._model), _keeper(seen))
            yield seen


def _keeper(seen: list[tuple[Tensor, Tensor]]) -> Callable[[Tensor, Tensor], None]:
    """Notes a call; copies, since what follows in the network may overwrite either in place."""
    return lambda inputs, output: seen.append((inputs.clone(), output.clone()))


def require_repeatable(batches: Iterable | None, what: str) -> Iterable:
    """Refuse batches that are missing, or that a first pass would use up.

    Args:
        batches: any iterable.
        what: the argument that needs them, for the message.

    Returns:
        The batches.

    Raises:
        ValueError: they are missing or a one-shot iterator.
    """
    if batches is None:
        raise ValueError(f"{what} needs batches=, the calibration inputs, and got none")
    if iter(batches) is batches:
        raise ValueError(
            f"{what} reads batches several times, and the {type(batches).__name__} given is used up after one pass: "
            f"give a list, a DataLoader or another iterable that starts anew"
        )
    return batches
