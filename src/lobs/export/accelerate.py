"""A pruned network made faster on the machine at hand, by measuring: zeros alone make nothing faster.

Dead units leave first (`lobs.compact`). Then every pruned layer is run, within a forward pass and with what it is given
there, by each kernel that can compute it (`lobs.export.kernels`), in turn, so that what else the machine does slows all
of them down alike. The fastest takes the layer's place where its median is below `MARGIN` of the dense one's. At last
the whole networks race, and the given one's outputs are compared: what is no faster, or differs, is taken back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor, nn

from lobs.base.arguments import check_module
from lobs.base.network_inputs import Call, Inputs, Output, by_position, takes_one
from lobs.base.trees import leaves
from lobs.calibration.calling import Calling, called
from lobs.compaction.compact import compact
from lobs.export.kernels import SparseLinear, alternatives
from lobs.layers.checks import independent_copy
from lobs.layers.matrix import call_input
from lobs.layers.network import tied_layers
from lobs.layers.parts import Part
from lobs.layers.view import Prunable

DENSE = "dense"
# A kernel takes a layer only where its median is below so much of the dense one's: less is noise.
MARGIN = 0.9
# Relative difference of the outputs that rounding explains: in float32, and in units of another type's epsilon.
TOLERANCE, ROUNDING = 1e-4, 16.0
WARM_UPS = 1
FEWEST_ROUNDS, MOST_ROUNDS = 5, 100
# Rounds end after so many seconds per layer or network.
SECONDS = 0.5


@dataclass(frozen=True)
class AcceleratedLayer:
    """How a pruned layer computes.

    Attributes:
        name: in the compacted network.
        density: share of its weights that are not zero, after compaction.
        kernel: ``dense``, ``csr``, ``csr on pixels``, ``csr on patches``, ``dense without unread inputs`` or ``2:4``.
        milliseconds_before: median of the dense layer in one pass of the network, compacted; None: not measured.
        milliseconds_after: and of the kernel.
        note: why it stays dense, where that was not measured.
    """

    name: str
    density: float
    kernel: str = DENSE
    milliseconds_before: float | None = None
    milliseconds_after: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Accelerated:
    """What `accelerate` made.

    Attributes:
        model: the faster network, for inference: in evaluation mode and without gradients.
        layers: its pruned layers, in the order of definition.
        milliseconds_before: median of the given network on the inputs.
        milliseconds_after: and of this one.
        notes: what was done, and what was not or was taken back, and why.
    """

    model: nn.Module
    layers: list[AcceleratedLayer]
    milliseconds_before: float
    milliseconds_after: float
    notes: list[str]

    def table(self) -> str:
        """A line per pruned layer and one for the whole network, with the notes below."""
        heads = ("layer", "density", "kernel", "ms before", "ms after", "")
        rows = [
            (layer.name, f"{layer.density:.2%}", layer.kernel, *map(_shown, _times(layer)), layer.note)
            for layer in self.layers
        ]
        rows.append(("whole network", "", "", *map(_shown, (self.milliseconds_before, self.milliseconds_after)), ""))
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (heads, *rows)]
        return "\n".join([*lines, *self.notes])

    def __str__(self) -> str:
        return self.table()


def accelerate(
    model: nn.Module, inputs: object, *, call: Call | None = None, output: Output | None = None
) -> Accelerated:
    """Make a pruned network faster on this machine, for inputs like the ones given.

    Args:
        model: pruned; not changed. It is measured as it is in evaluation mode, in its type, on its device and with
            ``torch.get_num_threads()``.
        inputs: one batch, of the kinds that `collect_statistics` takes. Its size matters: measure with the one that
            will be used. Flags and other arguments that are no tensors are taken to be the same in every call.
        call: runs the network on a batch, as in `lobs.prune`.
        output: what is compared of the outputs, likewise.

    Returns:
        The faster network, and what became of each pruned layer. It is an ordinary module (deepcopy, pickle, `.to`)
        whose replaced layers have buffers for parameters: ``crow_indices``, ``col_indices``, ``values`` and ``bias`` in
        the state_dict, so that it is stored whole (`torch.save`) or its state loaded into a copy of itself.

    Raises:
        TypeError: the inputs are of another kind.
        ValueError: there are no inputs, or the network cannot be copied, is compiled or wrapped for several devices.
        OutOfMemoryError: for want of memory, as torch says it.
    """
    check_module(model)
    given = called(inputs, Calling(call, output, takes_one(model))).inputs()
    if not len(given):
        raise ValueError("there are no inputs to measure with: give one batch of the size that will be used")
    start = independent_copy(model).eval().requires_grad_(False)
    notes: list[str] = []
    with torch.no_grad():
        given = given.clone()
        if not any(_density(module) < 1 for module in _layers(start).values()):
            spent = race({DENSE: lambda: given.run(start)})[DENSE]
            return Accelerated(start, [], spent, spent, ["no layer has a zero weight: prune the network first"])
        smaller = _compacted(start, given, notes)
        before = len(notes)
        try:
            swapped, layers = _swapped(smaller, given, notes)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # a view that joins axes refuses transposed outputs
            del notes[before:]
            notes.append(f"outputs of sparse rows are copied, as the network refuses them transposed: {error}")
            swapped, layers = _swapped(smaller, given, notes, contiguous=True)
        networks = {"given": start, "compacted": smaller}
        if swapped is not None:
            networks["accelerated"] = swapped
        return _fastest(networks, layers, given, notes)


def race(runs: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Time functions in turn, each run once before it is timed: what the others left in the caches is not its matter.

    Args:
        runs: by name. Once it is clear that one is slower than the first, it is left out of further rounds.

    Returns:
        Medians in milliseconds.
    """
    for _ in range(WARM_UPS):
        for run in runs.values():
            run()
    first, active = next(iter(runs)), dict(runs)
    spent: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + SECONDS
    for count in range(1, MOST_ROUNDS + 1):
        for name, run in active.items():
            spent[name].append(_milliseconds(run))
        if count < FEWEST_ROUNDS:
            continue
        usual = median(spent[first])
        active = {name: run for name, run in active.items() if name == first or min(spent[name]) < usual}
        if time.perf_counter() > end or (len(active) == 1 and len(runs) > 1):
            break
    return {name: median(times) for name, times in spent.items()}


def _milliseconds(run: Callable[[], object]) -> float:
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - start)


def _layers(model: nn.Module) -> dict[str, Prunable]:
    return {own: module for members in tied_layers(model).values() for own, module in members.items()}


def _density(module: Prunable) -> float:
    weight = module.weight.detach()
    return float((weight != 0).double().mean()) if weight.numel() else 1.0


def _compacted(start: nn.Module, given: Inputs, notes: list[str]) -> nn.Module:
    """The network without its dead units, or as it is with a note."""
    if given.call is not None:
        notes.append("not compacted: torch.fx cannot follow a call=")
        return start
    try:
        result = compact(start, given.kwargs or given.args)
    except (TypeError, ValueError) as error:
        notes.append(f"not compacted: {error}")
        return start
    if result.parameters_left == result.parameters:
        notes.append("nothing to compact: no unit is dead")
        return start
    arguments = by_position(start, given.kwargs or given.args)
    fixed = [f"{name}={value!r}" for name, value in arguments.items() if isinstance(value, (bool, int, float, str))]
    only = f", for calls with {', '.join(fixed)} alone" if fixed else ""
    notes.append(f"compacted: {result.parameters_left:,} of {result.parameters:,} parameters are left{only}")
    return result.model.eval().requires_grad_(False)


def _fixed(network: nn.Module, module: Prunable) -> str:
    """Why a layer stays dense, unmeasured; empty where it need not."""
    if isinstance(module, Part):
        return "a part of a module that computes with several matrices at once"
    if "weight" not in module._parameters:
        return "its weight is computed from other tensors"
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has hooks, which another module would not call"
    for parent in network.modules():
        if isinstance(parent, nn.TransformerEncoderLayer) and module in parent.children():
            return "torch's fast path of a TransformerEncoderLayer computes with its weight"
    return ""


@dataclass
class _Lane:
    """A layer that races within the forward pass, and its medians summed over its calls."""

    name: str
    module: Prunable
    others: dict[str, nn.Module]
    notes: list[str]
    times: dict[str, float] = field(default_factory=dict)

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Tensor | None:
        """The hook: measures, and hands on what the fastest gives, laid out as the next layer will be given it."""
        given = call_input(args, kwargs)
        if given is None or not given.numel():
            return None
        runs: dict[str, Callable[[], Tensor]] = {DENSE: lambda: self.module.forward(given)}
        for kernel, other in list(self.others.items()):
            try:
                other.forward(given)
            except RuntimeError as error:
                self.notes.append(f"layer {self.name!r}: no {kernel}: {' '.join(str(error).split())[:200]}")
                del self.others[kernel]
            else:
                runs[kernel] = lambda other=other: other.forward(given)  # type: ignore[misc]
        found = race(runs)
        self.times = {kernel: self.times.get(kernel, 0.0) + found[kernel] for kernel in found}
        return None if self.kernel == DENSE else runs[self.kernel]()

    @property
    def kernel(self) -> str:
        """The chosen one."""
        best = min(self.times, key=self.times.__getitem__, default=DENSE)
        return best if self.times and self.times[best] < MARGIN * self.times[DENSE] else DENSE


def _swapped(
    smaller: nn.Module, given: Inputs, notes: list[str], contiguous: bool = False
) -> tuple[nn.Module | None, list[AcceleratedLayer]]:
    """A copy of the network with faster layers, None where none is faster; and all pruned layers."""
    network = independent_copy(smaller)
    pruned = {name: module for name, module in _layers(network).items() if _density(module) < 1}
    reasons = {name: _fixed(network, module) for name, module in pruned.items()}
    lanes = {}
    for name, module in pruned.items():
        others = {} if reasons[name] else alternatives(module)
        for other in others.values():
            if isinstance(other, SparseLinear):
                other.contiguous = contiguous
        if others:
            lanes[name] = _Lane(name, module, others, notes)
        elif not reasons[name]:
            reasons[name] = f"no other kernel for a {type(module).__name__}"
    handles = [lane.module.register_forward_hook(lane, with_kwargs=True) for lane in lanes.values()]
    try:
        given.clone().run(network)
    finally:
        for handle in handles:
            handle.remove()
    rows, new = [], {}
    for name, module in pruned.items():
        row = AcceleratedLayer(name, _density(module), note=reasons[name])
        lane = lanes.get(name)
        if lane and lane.times:
            kernel = lane.kernel
            row = replace(
                row, kernel=kernel, milliseconds_before=lane.times[DENSE], milliseconds_after=lane.times[kernel]
            )
            if kernel != DENSE:
                new[cast("nn.Module", module)] = lane.others[kernel]
        elif lane:
            row = replace(row, note="not called as a module of its own with these inputs")
        rows.append(row)
    return (_replaced(network, new) if new else None), rows


def _replaced(network: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """The network with other modules in the place of some, wherever they stand."""
    for parent in list(network.modules()):
        for key, child in parent._modules.items():
            if child is not None and child in new:
                parent._modules[key] = new[child]
    return new.get(network, network)


def _fastest(
    networks: dict[str, nn.Module], layers: list[AcceleratedLayer], given: Inputs, notes: list[str]
) -> Accelerated:
    """The fastest of the whole networks ``given``, ``compacted`` and, where there is one, ``accelerated``."""
    start, smaller = networks["given"], networks["compacted"]
    if "accelerated" not in networks:
        notes.append("no other kernel is faster")
    elif difference := _difference(start, networks["accelerated"], given):
        notes.append(f"the faster layers were taken back: {difference}")
        del networks["accelerated"]
    runs = {name: lambda model=model: given.run(model) for name, model in networks.items()}
    times = race(runs)
    before, compacted, accelerated = (times.get(name, 0.0) for name in ("given", "compacted", "accelerated"))
    chosen = "compacted"
    if "accelerated" in networks and accelerated < min(before, compacted):
        chosen = "accelerated"
    elif "accelerated" in networks:
        notes.append(
            f"the faster layers were taken back: the whole network took {_shown(accelerated)} ms with them and "
            f"{_shown(compacted)} ms without"
        )
    if chosen == "compacted" and smaller is not start and MARGIN * compacted > before:
        notes.append(f"the compacted network took {_shown(compacted)} ms, more than the given one, which is kept")
        chosen = "given"
    if chosen != "accelerated":
        layers = [replace(row, kernel=DENSE, milliseconds_after=row.milliseconds_before) for row in layers]
    after = before if networks[chosen] is start else times[chosen]
    return Accelerated(networks[chosen], layers, before, after, notes)


def _difference(start: nn.Module, swapped: nn.Module, given: Inputs) -> str:
    """What is wrong with the network's outputs; empty: nothing."""
    expected = list(_floats(given.clone().run(start)))
    try:
        found = list(_floats(given.clone().run(swapped)))
    except Exception as error:
        return f"the network fails with them: {' '.join(str(error).split())[:200]}"
    for one, other in zip(expected, found, strict=True):
        if one.shape != other.shape:
            return f"an output's shape {tuple(one.shape)} would become {tuple(other.shape)}"
        distance, size = float((one.double() - other.double()).norm()), float(one.double().norm())
        if not distance <= max(TOLERANCE, ROUNDING * torch.finfo(one.dtype).eps) * size:
            return f"an output would change by {distance / size if size else float('inf'):.2g} of its size"
    return ""


def _floats(outputs: object) -> Iterator[Tensor]:
    return (leaf for leaf in leaves(outputs) if isinstance(leaf, Tensor) and leaf.is_floating_point())


def _times(layer: AcceleratedLayer) -> tuple[float | None, float | None]:
    return layer.milliseconds_before, layer.milliseconds_after


def _shown(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.3g}"
