"""Forward passes up to one layer after another: what sequential pruning and corrections see of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from lobs.base.network_inputs import Inputs, run
from lobs.calibration.batches import CalibrationBatches, calibration_batches
from lobs.calibration.inputs import network_input, probe_determinism
from lobs.calibration.lockstep import LockstepPasses, lockstep_possible
from lobs.layers.matrix import call_input
from lobs.layers.network import named_modules, tied_layers

M = TypeVar("M", bound=nn.Module)


class _LastCall(BaseException):
    """Leaves a forward pass; no `Exception`, so that a network's own ``except Exception`` does not stop it."""


def run_until(
    model: nn.Module, modules: Iterable[nn.Module], calls: int, inputs: Tensor | Inputs, see: Callable[..., None]
) -> None:
    """Run a forward pass up to the only call of some of its modules, or to its end where they are called more often.

    Args:
        model: in evaluation mode.
        modules: of the model: one, or those that share its weight.
        calls: how often a forward pass calls them together, by the first one; a recurrent module's states are as many
            as a batch has steps.
        inputs: of the network.
        see: is given a module's input and its output at every call.

    Raises:
        ValueError: this pass does not call them.
    """
    seen, modules = 0, list(modules)

    def hook(_: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        nonlocal seen
        seen += 1
        see(call_input(args, kwargs), output)
        if calls == 1:
            raise _LastCall

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        run(model, inputs)
    except _LastCall:
        return
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        name = next((own for own, module in named_modules(model) if module is modules[0]), "")
        raise ValueError(
            f"layer {name!r} is not called in a forward pass and was in the first one: networks that call their layers "
            f"depending on the data cannot be gone through layer by layer, leave it out with exclude=[{name!r}]"
        )


def first_input(model: nn.Module, batches: Iterable) -> Inputs:
    """The first batch's inputs, on the network's device.

    Returns:
        The inputs.

    Raises:
        ValueError: there is no batch.
    """
    first = batches.first() if isinstance(batches, CalibrationBatches) else next(iter(batches), None)
    if first is None:
        raise ValueError("batches is empty: there is no calibration batch")
    return network_input(first, model)


@torch.no_grad()
def count_calls(model: nn.Module, batches: Iterable, modules: Mapping[str, M]) -> dict[str, int]:
    """How often one forward pass calls each of some modules, found with the first batch.

    Args:
        model: in evaluation mode.
        batches: as for `lobs.collect_statistics`.
        modules: of the model, by name; those that share a weight with one of them count as that one.

    Returns:
        Counts by name in the order of the first call; without the modules that are never called.

    Raises:
        ValueError: there is no batch, or the network answers differently twice.
    """
    inputs = first_input(model, batches)
    probe_determinism(model, inputs)
    return _counted(model, inputs, _members(model, modules))


def _counted(model: nn.Module, inputs: Inputs, members: Mapping[str, Iterable[nn.Module]]) -> dict[str, int]:
    """How often one forward pass calls some modules, those of a name together."""
    calls: dict[str, int] = {}

    def hook_of(name: str) -> Callable:
        def hook(*_: object) -> None:
            calls[name] = calls.get(name, 0) + 1

        return hook

    handles = [module.register_forward_hook(hook_of(name)) for name, own in members.items() for module in own]
    try:
        run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _members(model: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, list[nn.Module]]:
    """For each module itself and those that share its weight."""
    tied = tied_layers(model)
    return {name: list(tied[name].values()) if name in tied else [module] for name, module in modules.items()}


class LayerwisePasses:
    """One network front to back: what its modules are given and give, while those before them may have been changed.

    A context manager. Where the network allows it (`lobs.calibration.lockstep`) all layers are reached in one forward
    pass, else every module is reached from the network's start.

    Args:
        model: in evaluation mode.
        modules: of the model, by name.
        batches: calibration inputs, the same on every reading.
        together: how many such objects are used at once and share the memory.
        memory: ceiling in bytes on what waiting passes hold; None: a share of what is available.

    Attributes:
        calls: how often one forward pass calls each module, in the order of the first call; without those never called.
        note: where every layer is reached from the start for want of memory alone.

    Raises:
        ValueError: there is no batch, or the network answers differently twice, or calls a module once for the first
            batch and more often for another.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        batches: Iterable,
        together: int = 1,
        memory: float | None = None,
    ) -> None:
        self.batches = calibration_batches(batches)
        self.calls = count_calls(model, self.batches, modules)
        self._model, self._members = model, _members(model, modules)
        self._passes: LockstepPasses | None = None
        self.note: str | None = None
        if lockstep_possible(model, modules, self.batches, together, memory):
            self._passes = LockstepPasses(model, modules, self.batches)
            return
        self._check_single_calls()
        if not self.batches.kept or lockstep_possible(model, modules, self.batches, together, float("inf")):
            self.note = (
                "the calibration inputs do not fit into memory layer by layer: every layer is reached from the "
                "network's start, which takes a pass per layer"
            )

    @torch.no_grad()
    def _check_single_calls(self) -> None:
        """A pass up to a module's only call would not see a later one."""
        single = {name: members for name, members in self._members.items() if self.calls.get(name) == 1}
        for batch in self.batches if single else ():
            for name, count in _counted(self._model, network_input(batch, self._model), single).items():
                if count > 1:
                    raise ValueError(
                        f"layer {name!r} is called {count} times in a forward pass and once in the first one: networks "
                        f"that call their layers depending on the data cannot be gone through layer by layer, leave it "
                        f"out with exclude=[{name!r}]"
                    )

    def __enter__(self) -> LayerwisePasses:
        return self

    def __exit__(self, *_: object) -> None:
        if self._passes is not None:
            self._passes.close()

    def visits(self, name: str) -> Iterator[list[tuple[Tensor, Tensor]]]:
        """What every batch brings to a module: the next one in the order of `calls`.

        Args:
            name: of the module.

        Yields:
            Input and output of every call, batch by batch.
        """
        for (calls,) in side_by_side(name, self):
            yield calls

    @torch.no_grad()
    def visit(self, name: str, index: int, batch: object) -> list[tuple[Tensor, Tensor]]:
        """What one batch brings to a module.

        Args:
            name: of the module.
            index: of the batch.
            batch: itself.

        Returns:
            Input and output of every call.
        """
        modules = self._members[name]
        if self._passes is not None:
            inputs = self._passes.input(index, name)
            return [(inputs, modules[0].forward(inputs))]
        seen: list[tuple[Tensor, Tensor]] = []
        run_until(self._model, modules, self.calls[name], network_input(batch, self._model), _keeper(seen))
        return seen


def side_by_side(name: str, *passes: LayerwisePasses) -> Iterator[list[list[tuple[Tensor, Tensor]]]]:
    """What every batch brings to a module in several networks, with one reading of the batches for all of them.

    Args:
        name: of the module.
        passes: through the networks, over the same batches.

    Yields:
        For each network, input and output of every call, batch by batch.
    """
    for index, batch in enumerate(passes[0].batches):
        yield [each.visit(name, index, batch) for each in passes]


def _keeper(seen: list[tuple[Tensor, Tensor]]) -> Callable[[Tensor, Tensor], None]:
    """Notes a call; copies, since what follows in the network may overwrite either in place."""
    return lambda inputs, output: seen.append((inputs.clone(), output.clone()))


def require_repeatable(batches: Iterable | None, what: str, memory: float | None = None) -> CalibrationBatches:
    """Refuse batches that are missing, or that a first pass would use up.

    Args:
        batches: any iterable.
        what: the argument that needs them, for the message.
        memory: see `CalibrationBatches`.

    Returns:
        The batches, the same on every reading.

    Raises:
        ValueError: they are missing or a one-shot iterator.
    """
    if batches is None:
        raise ValueError(f"{what} needs batches=, the calibration inputs, and got none")
    if isinstance(batches, Iterator):
        raise ValueError(
            f"{what} reads batches several times, and the {type(batches).__name__} given is used up after one pass: "
            f"give a list, a DataLoader or another iterable that starts anew"
        )
    return calibration_batches(batches, memory)
