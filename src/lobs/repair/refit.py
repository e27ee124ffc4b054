"""A refit of a pruned network from calibration inputs alone: no labels, and the masks stay as they are.

The kept weights and the biases of the pruned layers, and the scales and shifts of batch norms, are moved to bring the
network's outputs nearer to the dense one's: for class logits by ``KL(softmax(dense) || softmax(pruned))``, the mean
over inputs in nats, else by each output tensor's squared distance over its own spread. Minibatches by Adam, the rate
falling to zero along a cosine; everything is in evaluation mode, so that batch norms keep their running statistics.

A sixth of the inputs is held out. They are measured some twenty times, and the network that is kept is the one that
came nearest on them: few inputs do not end in overfitting, and what does not help is taken back. Where they are farther
than at the start, the steps were too long for this network: from the nearest one it goes on with a third of the rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import inf, isfinite

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lobs.base.arguments import check_count, check_module, check_number
from lobs.base.execution import shown
from lobs.base.memory import available_bytes
from lobs.base.modes import outside_modes, same_buffers
from lobs.base.network_inputs import Call, Inputs, Output, joined
from lobs.calibration.batches import FEWEST, MEMORY_SHARE, CalibrationBatches, called_batches, whole_where_dependent
from lobs.calibration.inputs import answer, network_input
from lobs.calibration.layerwise import first_input, require_repeatable
from lobs.calibration.output_fisher import output_spreads
from lobs.calibration.outputs import UNCOMPARABLE, class_logits, fitting_distance, output_tensors, per_input
from lobs.layers.checks import check_changeable
from lobs.layers.evaluation import evaluation_mode
from lobs.layers.matrix import weight_matrix
from lobs.layers.network import bias_columns, memory_place, prunable_layers

# Chosen on held-out training images of LeNet-300-100 at 1.5% of the weights.
STEPS = 600
LEARNING_RATE = 3e-3
# Of a minibatch: a sixteenth of the inputs, within these bounds.
FEWEST_INPUTS, MOST_INPUTS = 16, 512
MIXED = 16  # batches whose inputs are mixed
MEASUREMENTS = 20
LEAST_GAIN = 1e-3  # of the distance at the start
SHORTER = 3.0  # the rate falls by this factor


@dataclass(frozen=True)
class Refit:
    """What a refit did.

    Attributes:
        distance: of the outputs that was made smaller, ``kl`` or ``relative``.
        before: the distance on the held-out inputs before it.
        after: and after it, never larger.
        steps: minibatches after which the network that was kept had been reached; 0: nothing helped.
        held_out: inputs held out.
        seconds: spent.
        skipped: minibatches that changed nothing, since their gradient was NaN or infinite.
        shortened: how often the outputs were farther than at the start, so that it went on from the nearest network
            with a third of the rate.
    """

    distance: str
    before: float
    after: float
    steps: int
    held_out: int
    seconds: float
    skipped: int = 0
    shortened: int = 0

    def __str__(self) -> str:
        change = f"distance of the outputs ({self.distance}) {self.before:.3g} -> {self.after:.3g}"
        kept = f"after {self.steps} minibatches" if self.steps else "nothing helped, taken back"
        skipped = f"; {self.skipped} minibatches without a finite gradient changed nothing" * bool(self.skipped)
        shortened = f"; steps too long, {self.shortened} times a third of the rate" * bool(self.shortened)
        return f"refitted: {change} on {self.held_out} held-out inputs, {kept}{shortened}{skipped}"


@outside_modes
def refit(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Iterable,
    *,
    held_out: Iterable | None = None,
    masks: Mapping[str, Tensor] | None = None,
    steps: int = STEPS,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] | None = None,
    call: Call | None = None,
    output: Output | None = None,
) -> Refit:
    """Move a pruned network's kept weights, in place, so that its outputs are nearer to the dense network's.

    Args:
        dense: the trained network; not changed.
        pruned: the same network with pruned weights.
        batches: of calibration inputs, of the kinds that `lobs.collect_statistics` takes; read several times.
        held_out: more of them, best of all inputs that pruning has not seen either; None: some of ``batches``.
        masks: by layer, True where a weight is kept; None: where it is not zero. Other layers stay as they are.
        steps: minibatches of a sixteenth of the inputs each, at most `MOST_INPUTS`.
        learning_rate: at the start.
        seed: of the order of the inputs.
        progress: wraps the iterable of steps.
        call: runs the network on a batch where its kind needs that (`lobs.collect_statistics`).
        output: what of the outputs is compared, likewise.

    Returns:
        The distance before and after, and where the way was left.

    Raises:
        ValueError: batches that are missing, a one-shot iterator or too few, a number out of range, a network
            whose outputs no gradient leaves or whose weights are of 16 bits or shared with the dense network, or
            that has nothing to be moved.
        TypeError: the networks are no modules, a number is none, or the masks are no tensors by layer.
    """
    start = time.perf_counter()
    check_module(dense, "dense")
    check_module(pruned, "pruned")
    check_count("steps", steps, 1)
    check_count("seed", seed, 0)
    check_number("learning_rate", learning_rate, "Adam's step at the start")
    if learning_rate is None or not 0 < learning_rate < inf:
        raise ValueError(f"learning_rate must be above 0 and finite, got {learning_rate}")
    learned = whole_where_dependent(require_repeatable(called_batches(batches, dense, call, output), "a refit"), dense)
    held_out = called_batches(held_out, dense, call, output)
    parts = learned.divided() if held_out is None else (learned, require_repeatable(held_out, "a refit"))
    if parts is None:
        raise ValueError(f"a refit holds a sixth of the inputs out: give at least {FEWEST} inputs")
    learned, measured = parts
    if not sum(measured.input_counts()):
        raise ValueError("held_out is empty: a refit stops where the outputs on held-out inputs are nearest")
    check_changeable(pruned)
    moved = _Moved(pruned, masks)
    fixed = {memory_place(parameter) for parameter in dense.parameters()}
    if any(memory_place(parameter) in fixed for parameter in moved.parameters):
        raise ValueError("the two networks share weights, which a refit moves: give it copy.deepcopy(pruned)")
    optimizer = torch.optim.Adam(moved.parameters, learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with evaluation_mode(dense), evaluation_mode(pruned), same_buffers(dense), same_buffers(pruned), moved:
        distance = _Distance(dense, measured)
        before = lowest = distance.mean(pruned, measured)
        # Less is rounding.
        least = LEAST_GAIN * before if isfinite(before) else 0.0
        best = skipped = shortened = 0
        inputs = _minibatches(learned, pruned, _size(pruned, learned), seed)
        for step in shown(range(1, steps + 1), progress):
            optimizer.zero_grad()
            _differentiate(partial(distance.of, pruned, next(inputs)))
            if not moved.mask_gradients():
                skipped += 1
                optimizer.zero_grad()  # then the step leaves everything as it is
            optimizer.step()
            schedule.step()
            if step * MEASUREMENTS // steps != (step - 1) * MEASUREMENTS // steps:
                reached = distance.mean(pruned, measured)
                if reached < lowest - least:
                    lowest, best = reached, step
                    moved.keep()
                elif not reached <= before:  # steps too long for this network
                    moved.back()
                    optimizer.state.clear()
                    optimizer.param_groups[0]["lr"] /= SHORTER  # the cosine goes on from there
                    shortened += 1
    unseen, seconds = sum(measured.input_counts()), time.perf_counter() - start
    return Refit(distance.name, before, lowest, best, unseen, seconds, skipped, shortened)


def _differentiate(distances: Callable[[], Tensor]) -> None:
    """Leave the gradient of a mean distance in the weights; a ValueError where the network has none."""
    try:
        with torch.enable_grad():
            loss = distances().mean()
        if loss.requires_grad:
            loss.backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # of autograd: a step in place that it needs undone, a function without derivative
        cause = " ".join(str(error).split())[:200]
        raise ValueError(f"the network cannot be differentiated, as a refit has to: {cause}") from error
    if not loss.requires_grad:
        raise ValueError("no gradient reaches the network's weights from its outputs (torch.no_grad, detach)")


def _moved(pruned: nn.Module, masks: Mapping[str, Tensor] | None) -> list[tuple[nn.Parameter, Tensor]]:
    """What may move, each parameter once, with where it may: not the removed weights, nor units that are gone."""
    layers = prunable_layers(pruned)
    masks = {name: layer.weight != 0 for name, layer in layers.items()} if masks is None else masks
    if not isinstance(masks, Mapping) or not all(isinstance(mask, Tensor) for mask in masks.values()):
        raise TypeError("masks must map layer names to bool tensors")
    own_bias = bias_columns(pruned)
    found: list[tuple[nn.Parameter, Tensor]] = []
    for name, mask in masks.items():
        layer = layers.get(name)
        if layer is None or mask.shape != layer.weight.shape or mask.dtype != torch.bool:
            shape = "no such layer" if layer is None else tuple(layer.weight.shape)
            raise ValueError(f"masks of layer {name!r}: {mask.dtype} {tuple(mask.shape)} for {shape}, bool is expected")
        weight, bias = layer.weight, layer.bias
        found.append((weight, mask & (weight != 0)))
        if bias is not None and own_bias[name]:
            gone = (bias == 0) & (weight_matrix(layer, False) == 0).all(1)
            found.append((bias, ~gone))
    norms = nn.ModuleList(module for module in pruned.modules() if isinstance(module, _BatchNorm))
    found += [(parameter, torch.ones_like(parameter, dtype=torch.bool)) for parameter in norms.parameters()]
    if not found:
        raise ValueError("a refit moves pruned layers and batch norms, and masks name none of them")
    small = next((p for p, _ in found if p.dtype.itemsize < 4), None)
    if small is not None:
        raise ValueError(f"a refit moves weights by little steps, which {small.dtype} does not hold: give float32")
    return found


class _Moved:
    """The parameters that move, as a context manager: in the end they have the values that were kept last.

    Flags and gradients of the whole network are then what they were before, an interruption included.

    Args:
        network: the pruned one.
        masks: as for `refit`.
    """

    def __init__(self, network: nn.Module, masks: Mapping[str, Tensor] | None) -> None:
        self._places = _moved(network, masks)
        self.parameters = [parameter for parameter, _ in self._places]
        # Parts of a module's weight are parameters of their own, which the network does not list.
        listed = [*network.parameters(), *self.parameters]
        self._before = {parameter: (parameter.requires_grad, parameter.grad) for parameter in listed}
        self.keep()

    def __enter__(self) -> None:
        for parameter in self._before:
            parameter.requires_grad_(any(parameter is moved for moved in self.parameters))
            parameter.grad = None

    def __exit__(self, *_: object) -> None:
        self.back()
        for parameter, (wanted, gradient) in self._before.items():
            parameter.requires_grad_(wanted)
            parameter.grad = gradient

    def keep(self) -> None:
        """The values as they are now are the ones to be left behind."""
        self._kept = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def back(self) -> None:
        """The values that were kept last."""
        for parameter, value in zip(self.parameters, self._kept, strict=True):
            parameter.copy_(value)

    def mask_gradients(self) -> bool:
        """Where nothing may move there is no gradient, so that Adam's averages stay at zero there.

        Returns:
            Whether all gradients are finite.
        """
        found = [(parameter.grad, mask) for parameter, mask in self._places if parameter.grad is not None]
        for gradient, mask in found:
            gradient.masked_fill_(~mask, 0.0)
        return all(bool(gradient.isfinite().all()) for gradient, _ in found)


class _Distance:
    """How far a network's outputs are from the dense one's, input by input, with a gradient.

    Args:
        dense: in evaluation mode.
        batches: of inputs; over them the spread of outputs that are no class logits is taken.
    """

    def __init__(self, dense: nn.Module, batches: CalibrationBatches) -> None:
        self._dense = dense
        with torch.no_grad():
            self.name = fitting_distance(answer(dense, first_input(dense, batches), "a batch"), batches.first())
        self._scales = output_spreads(dense, batches) if self.name == "relative" else []

    def of(self, network: nn.Module, inputs: Inputs) -> Tensor:
        """The distances of a minibatch ``[inputs]``."""
        with torch.no_grad():
            wanted = answer(self._dense, inputs.clone(), "a batch")
        found = answer(network, inputs, "a minibatch, with gradients,")
        if self.name == "kl":
            one, other = (class_logits(outputs).double().log_softmax(dim=1) for outputs in (wanted, found))
            _check_shapes([one], [other])
            return torch.where(one.exp() > 0, one.exp() * (one - other), 0.0).sum(1)
        parts = [output_tensors(outputs) for outputs in (wanted, found)]
        _check_shapes(*parts)
        pairs = zip(*parts, self._scales, strict=True)
        terms = [
            per_input(torch.where(one.isfinite(), other - one, 0.0).square(), len(inputs)) / scale
            for one, other, scale in pairs
            if scale
        ]
        return torch.stack(terms).sum(0)

    @torch.no_grad()
    def mean(self, network: nn.Module, batches: CalibrationBatches) -> float:
        """The mean distance over batches."""
        parts = [self.of(network, network_input(batch, network)).double() for batch in batches]
        return float(torch.cat(parts).nan_to_num(nan=inf, posinf=inf).mean().clamp_min(0.0))


def _check_shapes(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    shapes = [[tuple(part.shape) for part in outputs] for outputs in (wanted, found)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the outputs have shapes {shapes[0]}, the pruned network's {shapes[1]}: {UNCOMPARABLE}")


def _size(network: nn.Module, batches: CalibrationBatches) -> int:
    """How many inputs a minibatch holds at most: no more than what a backward pass needs leaves room for."""
    wanted = max(FEWEST_INPUTS, min(MOST_INPUTS, sum(batches.input_counts()) // 16))
    inputs, taken = first_input(network, batches), 0

    def counted(tensor: Tensor) -> Tensor:
        nonlocal taken
        taken += tensor.numel() * tensor.element_size()
        return tensor

    sample = inputs.first(2)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(counted, lambda tensor: tensor):
        sample.run(network)
    room = MEMORY_SHARE * available_bytes(inputs.device)
    return max(1, min(wanted, int(room * len(sample) / max(1, taken))))


def _minibatches(batches: CalibrationBatches, model: nn.Module, most: int, seed: int) -> Iterator[Inputs]:
    """Without end: inputs at random, at most so many of them at once; batches that are not kept come in their order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        source: Iterable = batches
        if batches.kept:
            kept = list(batches)
            source = [kept[place] for place in torch.randperm(len(kept), generator=generator).tolist()]
        for group in batched(source, MIXED):
            for inputs in joined([network_input(batch, model) for batch in group]):
                if not inputs.divisible:
                    yield inputs
                    continue
                order = torch.randperm(len(inputs), generator=generator)
                for chosen in order.chunk(-(-len(inputs) // most)):
                    yield inputs.at(chosen)


def batched(items: Iterable, size: int) -> Iterator[list]:
    """Lists of so many items (`itertools.batched` of Python 3.12)."""
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group
