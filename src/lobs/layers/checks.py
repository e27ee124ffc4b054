"""What must hold for a layer before it is pruned and afterwards; what does not is refused, never repaired in silence.

* Its weight is a parameter that it computes with, not something that is computed from others (`check_plain`).
* Nobody else computes with that weight in another way (`check_owners`).
* It gives what its weight says: ``Z = W y`` for every sample y (`check_product`), before and after.
* The pruned network's weights have the zeros of the masks (`read_back`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from lobs.base.network_inputs import Inputs, run
from lobs.layers.consumers import Consumer
from lobs.layers.evaluation import evaluation_mode
from lobs.layers.matrix import call_input, groups_of, input_samples, unit_outputs, view_of, weight_matrix
from lobs.layers.network import memory_place, named_modules, prunable_layers, tied_layers
from lobs.layers.parts import split_parameters, without_calls_of_parts
from lobs.layers.view import Prunable, View

# How far ||W y - z||_F may be from zero relative to ||z||_F, by the coarsest dtype that is involved.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Rounding relative to ||W||_F ||y|| / sqrt(features), the size of a product of independent numbers, in units of the
# dtype's epsilon: what is left where products cancel.
ROUNDING = 8.0
# Samples of a call that are multiplied for the check.
CHECKED_SAMPLES = 2048
# Inputs of a chain's check.
CHECKED_INPUTS = 8
# Old ways of computing a weight: the buffer or parameter that they leave, and what makes the weight plain again.
DERIVED = {
    "{}_mask": "torch.nn.utils.prune.remove(module, {!r})",
    "{}_g": "torch.nn.utils.remove_weight_norm(module, {!r})",
    "{}_u": "torch.nn.utils.remove_spectral_norm(module, {!r})",
}


def check_changeable(model: nn.Module) -> None:
    """Refuse a network whose weights cannot be written to.

    Raises:
        ValueError: it was made in inference mode.
    """
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "model was made in torch.inference_mode, which forbids to change its weights: make or load it outside of "
            "that mode, or give copy.deepcopy(model) made outside"
        )


def check_plain(layers: Mapping[str, nn.Module]) -> None:
    """Refuse layers whose weight or bias is not a parameter of their own, or not of real numbers.

    Args:
        layers: by name.

    Raises:
        ValueError: one is computed from other tensors; the message names the call that makes it plain.
    """
    for name, module in layers.items():
        _check_view(name, cast("Prunable", module))
        _check_modes(name, cast("Prunable", module))
        for key in ("weight", "bias"):
            if getattr(module, key) is not None and key not in module._parameters:
                raise ValueError(
                    f"layer {name!r}: its {key} is computed from other tensors, so that zeros written to it do not "
                    f"last: {_remedy(module, key)} first, or leave it out with exclude=[{name!r}]"
                )
            parameter = module._parameters.get(key)
            if parameter is not None and not parameter.is_floating_point():
                raise ValueError(
                    f"layer {name!r}: its {key} is {parameter.dtype}, and real floating-point numbers are pruned: "
                    f"leave it out with exclude=[{name!r}]"
                )


def check_filled(layers: Mapping[str, Prunable]) -> None:
    """Refuse layers without inputs or outputs, and weights that are no numbers.

    Args:
        layers: by name.

    Raises:
        ValueError: a weight holds nothing, or NaN or infinite values.
    """
    for name, module in layers.items():
        if not module.weight.numel():
            raise ValueError(
                f"layer {name!r} has a weight of shape {tuple(module.weight.shape)}, in which there is nothing to "
                f"prune: leave it out with exclude=[{name!r}]"
            )
        # Inputs of the layers behind it would be blamed.
        if not module.weight.is_meta and not bool(torch.isfinite(module.weight.detach()).all()):
            raise ValueError(f"layer {name!r}: its weight holds NaN or infinite values")


def _check_view(name: str, module: Prunable) -> None:
    """Refuse a view that does not put a matrix back where it was taken from."""
    view, shape = view_of(module), module.weight.shape
    if type(view).matrix is View.matrix and type(view).shaped is View.shaped:
        return
    places = torch.arange(shape.numel()).reshape(shape)
    back = view.shaped(module, view.matrix(module, places))
    if back.shape != shape or not torch.equal(back, places):
        raise ValueError(
            f"layer {name!r}: {type(view).__name__} of {type(module).__name__} does not undo its matrix() in shaped(): "
            f"weights would be written to other places than they were read from"
        )


def _check_modes(name: str, module: Prunable) -> None:
    """Refuse a layer that changes its weight when it is switched between training and evaluation (a merged adapter)."""
    if type(module).train is nn.Module.train:
        return
    there = copy.deepcopy(module)
    there.train(not module.training)  # which may return anything
    back = copy.deepcopy(there)
    back.train(module.training)
    for other in (there, back):
        if not torch.equal(other.weight.detach(), module.weight.detach()):
            raise ValueError(
                f"layer {name!r}: train() or eval() of {type(module).__name__} changes its weight, so that zeros do "
                f"not last: put a plain layer with the merged weight in its place, or leave it out with "
                f"exclude=[{name!r}]"
            )


def _remedy(module: nn.Module, key: str) -> str:
    if parametrize.is_parametrized(module, key):
        return f"call torch.nn.utils.parametrize.remove_parametrizations(module, {key!r})"
    for pattern, call in DERIVED.items():
        if hasattr(module, pattern.format(key)):
            return f"call {call.format(key)}"
    return f"make it a parameter (module.{key} = torch.nn.Parameter(module.{key}.detach()))"


def check_owners(model: nn.Module, names: Iterable[str]) -> None:
    """Refuse layers whose weight belongs to another kind of module, too: that one's inputs are not looked at.

    Args:
        model: the network.
        names: of the layers to prune.

    Raises:
        ValueError: an embedding, say, or a convolution with other groups, has the same weight.
    """
    groups = tied_layers(model)
    wanted = {name: _memory(groups[name][name].weight) for name in names}
    for owner, module in named_modules(model):
        for key, parameter in module._parameters.items():
            if parameter is None or not parameter.numel() or key in split_parameters(module):
                continue
            first, end = _memory(parameter)
            for name, (start, stop) in wanted.items():
                if first >= stop or start >= end or (key == "weight" and owner in groups[name]):
                    continue
                raise ValueError(
                    f"layer {name!r} shares its weight with {key!r} of {owner or 'the network'!r} "
                    f"({type(module).__name__}), which computes with it in another way: leave it out with "
                    f"exclude=[{name!r}], or give it a weight of its own (torch.nn.Parameter(weight.clone()))"
                )


def _memory(weight: Tensor) -> tuple[int, int]:
    """First byte and end of a tensor; one that does not lie in one piece counts as its first element alone."""
    count = weight.numel() if weight.is_contiguous() else 1
    return weight.data_ptr(), weight.data_ptr() + count * weight.element_size()


@torch.no_grad()
def check_product(name: str, module: Prunable, inputs: Tensor | None, output: object) -> None:
    """Compare a layer's output with the product of its weight matrix and its samples.

    Holds where ``||W y + b - z||_F <= tolerance ||z||_F + rounding``; looked at are the first rows or images, at most
    `CHECKED_SAMPLES` samples of them, evenly spread.

    Args:
        name: of the layer.
        module: the layer, just called.
        inputs: of the call; None where it had no tensor.
        output: of the call.

    Raises:
        ValueError: they differ: the class computes something else, or a hook, a wrapper or a parametrization does.
    """
    what = f"layer {name!r} ({type(module).__name__})"
    remedy = f"leave it out with exclude=[{name!r}], or replace it by a plain layer"
    if inputs is None or not isinstance(output, Tensor):
        given = "no tensor" if inputs is None else f"an output of {type(output).__name__}"
        raise ValueError(f"{what} is called with or gives {given}, one tensor in and one out are expected: {remedy}")
    if not inputs.numel():
        return
    if not (inputs.is_floating_point() and module.weight.is_floating_point()):
        raise ValueError(
            f"{what} multiplies {inputs.dtype} by {module.weight.dtype}, real floating-point numbers are expected: "
            f"{remedy}"
        )
    try:
        rows, found = _first_samples(module, inputs, output)
        samples, positions = rows.shape[1], len(found)
        if samples == positions > CHECKED_SAMPLES:
            some = torch.linspace(0, samples - 1, CHECKED_SAMPLES, device=rows.device).long()
            rows, found = rows[:, some], found[some]
        weight = weight_matrix(module, bias=False).double().unflatten(0, (groups_of(module), -1))
        expected = (rows.double() @ weight.mT).movedim(0, 1).flatten(1)
    except (RuntimeError, IndexError, ValueError):
        raise ValueError(f"{what} is given {tuple(inputs.shape)}, which its class does not take: {remedy}") from None
    if expected.shape != found.shape:
        raise ValueError(
            f"{what} has {samples} samples and {positions} output positions: it does not compute what its "
            f"class stands for (its own forward, a hook or a wrapper), {remedy}"
        )
    if module.bias is not None:
        expected = expected + module.bias.detach().double()
    if not expected.isfinite().all():
        return  # inputs or weights that are not finite have a message of their own
    scale = float(found.double().norm())
    difference = float((expected - found.double()).norm())
    coarsest = max((inputs.dtype, output.dtype, module.weight.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    tolerance = TOLERANCE.get(coarsest, 0.2) * (5 if output.is_cuda else 1)  # TensorFloat-32 rounds more
    rounding = ROUNDING * torch.finfo(coarsest).eps * float(weight.norm()) * float(rows.double().norm())
    rounding /= rows.shape[-1] ** 0.5
    if not difference <= tolerance * scale + rounding:
        raise ValueError(
            f"{what} does not give its weight times its inputs plus its bias (relative difference "
            f"{difference / scale if scale else float('inf'):.2g}): its own forward, a hook or a wrapper changes it, "
            f"{remedy}"
        )


def _first_samples(module: Prunable, inputs: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """The first samples ``[groups, n, features]`` and the outputs ``[n, out]`` that belong to them."""
    given, outputs = view_of(module).part(inputs, output)
    parts = list(input_samples(module, given))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), unit_outputs(module, outputs)


@torch.no_grad()
def check_layers(model: nn.Module, inputs: Tensor | Inputs, names: Iterable[str] | None = None) -> dict[str, int]:
    """`check_product` for the layers of a network, in one pass.

    Args:
        model: the network.
        inputs: of the pass.
        names: of the layers; None: all.

    Returns:
        How often each layer was called with at least one row, in the order of their first call.
    """
    wanted = prunable_layers(model, names)
    calls: dict[str, int] = {}

    def hook_of(name: str, own: str) -> Callable:
        def hook(module: Prunable, args: tuple, kwargs: dict, output: object) -> None:
            given = call_input(args, kwargs)
            check_product(own, module, given, output)
            if given is not None and given.numel():
                calls[name] = calls.get(name, 0) + 1

        return hook

    tied = tied_layers(model)
    members = [(name, own, module) for name in wanted for own, module in tied[name].items()]
    handles = [m.register_forward_hook(hook_of(name, own), with_kwargs=True) for name, own, m in members]
    _run_once(model, inputs, handles)
    return calls


@torch.no_grad()
def check_chain(model: nn.Module, inputs: Inputs, consumers: Mapping[str, Consumer]) -> None:
    """Refuse layers that read something beside the units that are removed before them.

    Args:
        model: the network.
        inputs: of a pass.
        consumers: by layer, who reads its units.

    Raises:
        ValueError: with a layer's outputs all zero, what its reader is given still depends on the network's inputs.
    """
    inputs = inputs.first(CHECKED_INPUTS)
    other = inputs.clone()
    floating = [tensor for tensor in other.tensors if tensor.is_floating_point()]
    for tensor in floating:
        tensor.div_(2)
    # Whole numbers may be indices into other inputs: they change places where there is nothing else to change.
    for tensor in () if floating else other.tensors:
        tensor.copy_(tensor.flip(0) if tensor.dim() else tensor)
    for name, consumer in consumers.items():
        one, two = (_given_without(model, given.clone(), name, consumer.reader) for given in (inputs, other))
        if any(x.shape == y.shape and not x.equal(y) for x, y in zip(one, two, strict=False)):
            raise ValueError(
                f"layer {consumer.reader!r} does not simply follow layer {name!r}: it reads something beside its "
                f"units, and whole units can only be removed from a chain of layers"
            )


def _given_without(model: nn.Module, inputs: Inputs, name: str, reader: str) -> list[Tensor]:
    """What a layer is given, call by call, where another one's outputs are all zero."""
    found: list[Tensor | None] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, output: torch.zeros_like(output)),
        model.get_submodule(reader).register_forward_pre_hook(
            lambda module, args, kwargs: found.append(call_input(args, kwargs)), with_kwargs=True
        ),
    ]
    _run_once(model, inputs, handles)
    return [given.nan_to_num() for given in found if given is not None]


def _run_once(model: nn.Module, inputs: Tensor | Inputs, handles: Iterable[RemovableHandle]) -> None:
    """A forward pass in evaluation mode, after which its hooks are removed."""
    try:
        with evaluation_mode(model):
            run(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


def lost_any(dense: nn.Module, masks: Mapping[str, Tensor]) -> bool:
    """Whether any weight of a network that was not zero is removed by masks."""
    layers = prunable_layers(dense)
    return any(bool((layers[name].weight != 0)[~mask].any()) for name, mask in masks.items())


def read_back(pruned: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Compare the weights that a network computes with to the masks that are reported.

    Args:
        pruned: the network.
        masks: by layer, True where a weight is kept.

    Returns:
        Of each layer, how many weights are kept by the mask and zero all the same, where there are any.

    Raises:
        ValueError: a weight that the mask removes is not zero.
    """
    modules = prunable_layers(pruned)
    zeros = {}
    for name, mask in masks.items():
        nonzero = modules[name].weight.detach() != 0
        alive = int((nonzero & ~mask).sum())
        if alive:
            raise ValueError(
                f"layer {name!r}: {alive} weights that pruning removed are not zero in the pruned network: something "
                f"else writes to its weight, leave it out with exclude=[{name!r}]"
            )
        if kept := int((mask & ~nonzero).sum()):
            zeros[name] = kept
    return zeros


def independent_copy(model: nn.Module) -> nn.Module:
    """A copy of a network that shares no tensor with it.

    Args:
        model: the network.

    Returns:
        The copy.

    Raises:
        ValueError: it holds a tensor that cannot be copied, or something else that cannot.
    """
    try:
        copied = without_calls_of_parts(copy.deepcopy(model))
    except (RuntimeError, TypeError) as error:
        for name, module in model.named_modules():
            for key, value in vars(module).items():
                if isinstance(value, Tensor) and not value.is_leaf:
                    raise ValueError(
                        f"{type(model).__name__} cannot be copied: {key!r} of its module {name!r} is a tensor that "
                        f"autograd computed: detach it (module.{key} = module.{key}.detach()), or use in_place=True"
                    ) from None
        raise ValueError(
            f"{type(model).__name__} cannot be copied ({' '.join(str(error).split())}): give a network that "
            f"copy.deepcopy copies, or use in_place=True"
        ) from error
    # Parameters that share their memory and are two objects all the same are two in the copy.
    first: dict[tuple, nn.Parameter] = {}
    for own, other in zip(model.parameters(), copied.parameters(), strict=True):
        if own.numel():
            other.data = first.setdefault(memory_place(own), other).data
    return copied
