"""How much the network's final loss minds an error in a layer's outputs: the Fisher information of pre-activations.

Let g be the gradient of an image's negative log-likelihood ``-log p(y)`` in a layer's pre-activations z
(``[positions, units]``; one position in a Linear layer on a vector), with the label y drawn from the network's own
softmax. To second order, whatever the true label is::

    KL(p(. | z) || p(. | z + dz)) = 1/2 dz^T F dz,    F = E_y[g g^T]

F is at the same time the generalised Gauss-Newton matrix of the cross entropy in z. For errors dz that are
uncorrelated between units and independent of g (assumptions, both), a sum over units is left::

    KL = 1/2 sum_i g_i E_i

where E_i is unit i's part of the layer error: the mean over images and positions of ``dz_i^2``. The weight g_i depends
on how the errors of a unit at different positions of one image belong together::

    together:  g_i = mean over images of (sum over positions of g)^2    they are all alike
    apart:     g_i = mean over images of sum over positions of g^2      they have nothing in common

In a Linear layer on a vector both are the same. A layer's weight s_l is the mean of its units' g_i: what is left where
the errors of all units are of the same size, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lobs.base.execution import shown
from lobs.base.network_inputs import Call, Output
from lobs.calibration.batches import CalibrationBatches, calibration_batches, called_batches
from lobs.calibration.inputs import answer, network_input
from lobs.calibration.outputs import class_logits, fitting_distance, output_tensors, spreads
from lobs.layers.checks import independent_copy
from lobs.layers.evaluation import evaluation_mode
from lobs.layers.matrix import unit_outputs
from lobs.layers.network import prunable_layers, tied_layers

# Of the most sensitive unit's: less is rounding.
BLIND = 1e-10


@dataclass(frozen=True)
class Sensitivity:
    """What an error in a layer's outputs costs the network, unit by unit.

    Attributes:
        together: float64 ``[out]``, for errors that are alike at all positions of an image.
        apart: likewise, for errors that have nothing in common.
        left_out: inputs that do not count, since their gradient is not finite.
    """

    together: Tensor
    apart: Tensor
    left_out: int = 0


def output_sensitivity(
    model: nn.Module,
    batches: Iterable,
    layers: Iterable[str] | None = None,
    *,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] | None = None,
    call: Call | None = None,
    output: Output | None = None,
) -> dict[str, Sensitivity]:
    """g_i of every unit of every layer, without labels (see the module's text for formulas and assumptions).

    Drawing one label y per image would do, but a network that is nearly certain then gives almost only zeros and
    rarely a large value. Here all labels are mixed with random signs e_y, one backward pass per batch as well::

        v = sum_y e_y sqrt(p_y) (p - onehot(y)),    E_e[v v^T] = E_y[(p - onehot(y)) (p - onehot(y))^T]

    so g = J^T v has the same expected square and far less noise.

    Args:
        model: the network; a copy is run. Where its outputs are no class logits (`fitting_distance`), the squared
            distance over their spread takes KL's place.
        batches: of the kinds that `lobs.collect_statistics` takes; read once, or twice for their outputs' spread.
        layers: names or patterns; None takes every one that is called.
        seed: of the signs.
        progress: wraps the iterable.
        call: runs the network on a batch where its kind needs that (`lobs.collect_statistics`).
        output: what of the outputs is compared, likewise.

    Returns:
        By layer, in the order of their first call. The calls of a layer that is called several times per image are
        positions of it. Where a call's rows are not those of the images one after the other (more or fewer rows than
        fit), nothing says which belong together, and ``together`` is ``apart``. As many rows in another order (a Linear
        that is given ``[time, batch, ...]``) cannot be told from them: ``together`` then sums over other positions.
        Inputs whose gradient is NaN or infinite at a layer do not count there (``left_out``).

    Raises:
        ValueError: there is no batch, a layer asked for is never called, no finite gradient reaches a layer, or the
            outputs hold nothing that could be compared.
    """
    model = independent_copy(model)  # a network may keep its activations, with their graph
    modules = prunable_layers(model, layers)
    members = tied_layers(model)
    outputs: list[tuple[str, Tensor]] = []

    def hook_of(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            if not output.numel():
                return output
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            outputs.append((name, output))
            return output.clone()  # so that an activation in place leaves what is remembered alone

        return hook

    handles = [m.register_forward_hook(hook_of(name)) for name in modules for m in members[name].values()]
    generator = torch.Generator().manual_seed(seed)
    batches = calibration_batches(called_batches(batches, model, call, output))
    sums: dict[str, _Sums] = {}
    images, weigh = 0, None
    try:
        with evaluation_mode(model), torch.enable_grad():
            for batch in shown(batches, progress):
                outputs.clear()
                inputs = network_input(batch, model)
                found = answer(model, inputs, "a batch, with gradients,")
                calls = list(outputs)  # a checkpoint calls its layers again, backwards
                if weigh is None:
                    weigh = _Directions(model, batches, found, generator)
                gradients = _gradients(weigh.of(found), calls)
                units: dict[str, list[Tensor]] = {}
                for (name, _), gradient in zip(calls, gradients, strict=True):
                    units.setdefault(name, []).append(unit_outputs(modules[name], gradient).double())
                for name, parts in units.items():
                    sums.setdefault(name, _Sums()).add(parts, len(inputs))
                images += len(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not images:
        raise ValueError("no calibration batch: batches is empty (an iterator that was already used up?)")
    never = [name for name in modules if name not in sums]
    if layers is not None and never:
        raise ValueError(f"layer {never[0]!r} is never called in the network's forward pass: leave it out")
    return {name: total.means(name) for name, total in sums.items()}


def sensitivity_note(sensitivities: Mapping[str, Sensitivity]) -> str | None:
    """The note where inputs did not count in the sensitivities of some layer, or none is sensitive; else None."""
    notes = []
    name, worst = max(sensitivities.items(), key=lambda pair: pair[1].left_out)
    if worst.left_out:
        notes.append(
            f"the gradients of {worst.left_out} inputs are NaN or infinite at layer {name!r} (the norm of a zero, "
            f"say): they do not count in its sensitivity"
        )
    most = {name: float(found.together.max()) for name, found in sensitivities.items()}
    blind = [name for name, value in most.items() if value <= BLIND * max(most.values())]
    if blind:
        notes.append(
            f"nothing that layer {', '.join(map(repr, blind[:3]))}{' and others' * (len(blind) > 3)} does changes what "
            f"is compared, so that it may lose all: where the outputs are no class logits, say so "
            f"(output=lambda y: y.unsqueeze(1)), and where they are, leave it out or give limits"
        )
    return "; ".join(notes) or None


class _Sums:
    """Running sums of one layer over images, ``[out]`` each.

    An image whose gradient is not finite (0 times infinity on the way: the norm of a zero, say) does not count.
    """

    def __init__(self) -> None:
        self.together: Tensor = torch.zeros(())
        self.apart: Tensor = torch.zeros(())
        self.images = self.left_out = 0

    def add(self, calls: list[Tensor], images: int) -> None:
        """The gradients ``[rows, out]`` of every call of the layer in one batch."""
        divided = all(len(part) % images == 0 for part in calls)
        by_image = [part.unflatten(0, (images if divided else 1, -1)) for part in calls]
        apart = sum((part.square().sum((0, 1)) for part in by_image), torch.zeros(()))
        if not bool(apart.isfinite().all()):
            finite = torch.stack([part.isfinite().flatten(1).all(1) for part in by_image]).all(0)
            by_image = [part[finite] for part in by_image]
            apart = sum((part.square().sum((0, 1)) for part in by_image), torch.zeros(()))
            left_out = images - (int(finite.sum()) if divided else images * bool(finite))
            self.left_out, images = self.left_out + left_out, images - left_out
        together = torch.stack([part.sum(1) for part in by_image]).sum(0).square().sum(0) if divided else apart
        self.apart, self.together = self.apart + apart.cpu(), self.together + together.cpu()
        self.images += images

    def means(self, name: str) -> Sensitivity:
        """The sums over the images that count."""
        if not self.images:
            raise ValueError(
                f"layer {name!r}: its gradient from the network's outputs is NaN or infinite for every input, so that "
                f"its sensitivity is unknown: {_remedy(name)}"
            )
        return Sensitivity(self.together / self.images, self.apart / self.images, self.left_out)


class _Directions:
    """Random directions v of the outputs with E[v v^T] the curvature of the distance in them.

    Args:
        model: in evaluation mode.
        batches: that it is run on.
        outputs: of the first one.
        generator: of the signs.
    """

    def __init__(
        self, model: nn.Module, batches: CalibrationBatches, outputs: object, generator: torch.Generator
    ) -> None:
        self.distance, self.generator = fitting_distance(outputs, batches.first()), generator
        self.scales = output_spreads(model, batches) if self.distance == "relative" else []

    def of(self, outputs: object) -> list[tuple[Tensor, Tensor]]:
        """Output tensors with their directions."""
        if self.distance == "kl":
            logits = class_logits(outputs)
            return [(logits, mixed_gradient(logits.detach(), self._signs(logits)))]
        # Of ||dy||^2 / scale the curvature is 2 / scale in every output.
        return [
            (part, self._signs(part).to(part) * (2 / scale) ** 0.5)
            for part, scale in zip(output_tensors(outputs), self.scales, strict=True)
            if scale
        ]

    def _signs(self, like: Tensor) -> Tensor:
        return torch.randint(0, 2, like.shape, generator=self.generator) * 2 - 1


@torch.no_grad()
def output_spreads(model: nn.Module, batches: CalibrationBatches) -> list[float]:
    """The `spreads` of a network's outputs over batches.

    Args:
        model: in evaluation mode.
        batches: of its inputs.

    Returns:
        One number per output tensor.
    """
    found = [
        [part.double() for part in output_tensors(answer(model, network_input(batch, model), "a batch"))]
        for batch in batches
    ]
    return spreads(found, sum(batches.input_counts()))


def _gradients(pairs: list[tuple[Tensor, Tensor]], outputs: list[tuple[str, Tensor]]) -> list[Tensor]:
    """J^T v for every call of a layer; no layer is without any."""
    cause = "" if any(part.requires_grad for part, _ in pairs) else "the outputs have no graph"
    gradients: list[Tensor | None] = [None] * len(outputs)
    if not cause:
        directions = [direction for part, direction in pairs if part.requires_grad]
        parts = [part for part, _ in pairs if part.requires_grad]
        try:
            gradients = list(torch.autograd.grad(parts, [o for _, o in outputs], directions, allow_unused=True))
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            cause = " ".join(str(error).split())[:150]
    reached = {name for (name, _), gradient in zip(outputs, gradients, strict=True) if gradient is not None}
    missing = [name for name, _ in outputs if name not in reached]
    if missing:
        raise ValueError(
            f"layer {missing[0]!r}: no gradient reaches it from the network's outputs (torch.no_grad, detach or a "
            f"reentrant checkpoint on the way{', ' * bool(cause)}{cause}), so that its sensitivity is unknown: "
            f"{_remedy(missing[0])}"
        )
    # A call whose result is not looked at (an argmax, say) beside others that are has no effect.
    return [torch.zeros_like(o) if g is None else g for (_, o), g in zip(outputs, gradients, strict=True)]


def mixed_gradient(logits: Tensor, signs: Tensor) -> Tensor:
    """``v = sum_y e_y sqrt(p_y) (p - onehot(y))``, a combination of all labels' gradients in the logits.

    Args:
        logits: ``[images, classes]``.
        signs: e, +1 or -1, in the same shape.

    Returns:
        v, in the shape and type of the logits.
    """
    probabilities = logits.double().softmax(dim=1)
    weights = signs.to(probabilities) * probabilities.sqrt()
    return (weights.sum(dim=1, keepdim=True) * probabilities - weights).to(logits)


def _remedy(name: str) -> str:
    return f"leave it out with exclude=[{name!r}], or take allocation='relative' or 'measured'"
