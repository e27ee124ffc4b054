"""One pass of the calibration batches through a network: every layer is checked, and its samples are summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from lobs.base.execution import shown
from lobs.calibration.accumulator import InputSums
from lobs.calibration.inputs import answer, network_input, network_target, probe_determinism
from lobs.layers.checks import check_product
from lobs.layers.coverage import Calls, functional_uses
from lobs.layers.evaluation import evaluation_mode
from lobs.layers.matrix import call_input, matrix_shape, zero_counts
from lobs.layers.network import bias_columns, tied_layers
from lobs.layers.view import Prunable

if TYPE_CHECKING:
    from lobs.calibration.loss_hessian import LossCurvature


class CalibrationPass:
    """One pass over the batches, which fills the sums of a group of layers.

    Args:
        model: the network.
        group: names of the layers.
        keep_samples: of each.
        seed: of the samples.
        loss: whose curvature is collected, too.

    Attributes:
        sums: of the layers that were given samples, in the order of their first call.
        calls: of all layers of the network.
        curvature: of the loss, where it is asked for.
    """

    def __init__(self, model: nn.Module, group: Iterable[str], keep_samples: int, seed: int, loss: str | None) -> None:
        self.model, self.loss = model, loss
        self.members = tied_layers(model)
        columns = bias_columns(model)
        self.waiting = {name: InputSums(columns[name], keep_samples, seed) for name in group}
        self.sums: dict[str, InputSums] = {}
        self.curvature: LossCurvature | None = None
        self.calls = Calls()
        self._order: dict[str, bool] = {}
        self._checked: set[str] = set()
        self._total, self._seen = 0, dict.fromkeys(self.waiting, 0)

    def run(self, batches: Iterable, progress: Callable[[Iterable], Iterable] | None) -> None:
        """Go through all batches.

        Raises:
            ValueError: there is no batch.
        """
        model, rest = self.model, iter(batches)
        with evaluation_mode(model):
            first = next(rest, None)
            if first is None:
                raise ValueError("no calibration batch: batches is empty (an iterator that was already used up?)")
            inputs = network_input(first, model)
            functional = functional_uses(model, probe_determinism(model, inputs))
            if self.loss is not None:
                from lobs.calibration.loss_hessian import LossCurvature

                self.curvature = LossCurvature(model, self.loss, list(self.waiting))
            handles = [
                module.register_forward_hook(self._hook_of(name, own), with_kwargs=True)
                for name, members in self.members.items()
                for own, module in members.items()
            ]
            try:
                for batch in shown(_chain(first, rest), progress):
                    inputs = network_input(batch, model)
                    self._total += len(inputs)
                    answer(model, inputs, "a batch")
                    if self.curvature is not None:
                        self.curvature.add(inputs.alone, network_target(batch, inputs))
            finally:
                for handle in handles:
                    handle.remove()
        filled = [name for name, any_rows in self._order.items() if any_rows]
        self.calls = Calls(filled, functional, [name for name in self._order if name not in filled])

    def _hook_of(self, name: str, own: str) -> Callable:
        def hook(module: Prunable, args: tuple, kwargs: dict, output: Tensor) -> None:
            given = call_input(args, kwargs)
            rows = given is None or given.numel() > 0
            if rows and not self._order.get(name, False):
                self._order.pop(name, None)  # its place is that of its first call with samples
            self._order.setdefault(name, rows)
            if name not in self.waiting or not rows:
                return
            # The network may have switched its own precision or inference mode on, which is not for these sums.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(output.device.type, enabled=False):
                if own not in self._checked:
                    check_product(own, module, given, output)
                    self._checked.add(own)
                sums = self.sums.setdefault(name, self.waiting[name])
                before = sums.samples
                sums.add_call(module, cast("Tensor", given))
                positions = output.numel() // matrix_shape(module)[0]
                if sums.samples - before != positions:
                    raise ValueError(
                        f"layer {name!r} was given {sums.samples - before} samples and gave {positions} in one call "
                        f"(output_size=, or another argument beside its input): leave it out with exclude=[{name!r}]"
                    )
                sums.add_zeros(*zero_counts(module, output))
            sums.inputs += self._total - self._seen[name]
            self._seen[name] = self._total

        return hook


def _chain(first: object, rest: Iterator) -> Iterator:
    yield first
    yield from rest
