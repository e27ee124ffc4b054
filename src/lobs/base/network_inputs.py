"""What one batch gives a network: how it is called, and what of its outputs is looked at."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lobs.base.trees import copied, cut, divisible, is_object, leaves, parts_of

# A function of a network and a batch, which gives the outputs.
Call: TypeAlias = Callable[[nn.Module, Any], object]
# What of the outputs is looked at: a function of them, a key or an attribute, or an index.
Output: TypeAlias = Callable[[Any], object] | str | int


@dataclass(frozen=True)
class Inputs:
    """The inputs of one forward pass; ``len`` says how many.

    Attributes:
        args: positional ones; of a `call` the batch.
        kwargs: by name.
        count: how many inputs these are.
        call: runs the network in place of calling it.
        output: what of its outputs is looked at; None: all.
        whole: whether they belong together, so that none can be taken.
    """

    args: tuple
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    count: int = 1
    call: Call | None = None
    output: Output | None = None
    whole: bool = False

    def __len__(self) -> int:
        return self.count

    def __str__(self) -> str:
        named = (f"{name}={shown(value)}" for name, value in self.kwargs.items())
        return ", ".join([*map(shown, self.args), *named])

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in their order."""
        return [leaf for leaf in leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]

    @property
    def device(self) -> torch.device:
        """Of the first tensor; the CPU where there is none."""
        return next((tensor.device for tensor in self.tensors), torch.device("cpu"))

    @property
    def divisible(self) -> bool:
        """Whether some of the inputs can be taken: nobody knows of a `call`, nor where tensors have other lengths."""
        return self.call is None and not self.whole and divisible((self.args, dict(self.kwargs)), self.count)

    @property
    def alone(self) -> Tensor:
        """The tensor that is all of it.

        Raises:
            ValueError: there is more, or something else.
        """
        if self.call is not None or self.kwargs or len(self.args) != 1 or not isinstance(self.args[0], Tensor):
            raise ValueError(f"a loss's curvature needs one input tensor in every batch and no call=, got {self}")
        return self.args[0]

    def at(self, places: Tensor) -> Inputs:
        """Some of the inputs; all of them where they are not `divisible`."""
        if not self.divisible:
            return self
        args, kwargs = ((cut(part, self.count, places)) for part in (self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs, count=len(places))

    def first(self, count: int) -> Inputs:
        """The first so many inputs, as a copy; all of them where they are not `divisible`."""
        return self.at(torch.arange(min(count, self.count))).clone()

    def clone(self) -> Inputs:
        """A copy, which a network may change."""
        return replace(self, args=copied(self.args), kwargs=copied(dict(self.kwargs)))

    def run(self, model: nn.Module) -> object:
        """What a network answers.

        Args:
            model: it may change the inputs.

        Returns:
            What is looked at of its outputs.

        Raises:
            ValueError: `call` runs another network, or the outputs do not hold what is looked at.
        """
        found = model(*self.args, **self.kwargs) if self.call is None else self._called(self.call, model)
        return found if self.output is None else selected(found, self.output)

    def _called(self, call: Call, model: nn.Module) -> object:
        """The call's result, once it is known to be this network's: copies are run as well as the caller's own."""
        ran: list[bool] = []
        handles = [each.register_forward_pre_hook(lambda *_: ran.append(True)) for each in model.modules()]
        try:
            found = call(model, *self.args)
        finally:
            for handle in handles:
                handle.remove()
        if not ran:
            raise ValueError("call= ran no module of the network that it was given: it must run its first argument")
        return found


def joined(parts: Sequence[Inputs]) -> list[Inputs]:
    """Several batches' inputs as one, where they are nothing but tensors of the same kinds; else as they are."""
    kinds = set()
    for part in parts:
        values = [*part.args, *part.kwargs.values()]
        if not part.divisible or not all(isinstance(value, Tensor) and value.dim() for value in values):
            return list(parts)
        kinds.add((len(part.args), tuple(part.kwargs), tuple((value.shape[1:], value.dtype) for value in values)))
    if len(kinds) != 1:
        return list(parts)
    args = tuple(torch.cat(values) for values in zip(*(part.args for part in parts), strict=True))
    kwargs = {name: torch.cat([part.kwargs[name] for part in parts]) for name in parts[0].kwargs}
    return [replace(parts[0], args=args, kwargs=kwargs, count=sum(map(len, parts)))]


def run(model: nn.Module, inputs: Tensor | Inputs) -> object:
    """What a network answers to inputs, or to a single tensor."""
    return inputs.run(model) if isinstance(inputs, Inputs) else model(inputs)


def selected(outputs: Any, output: Output) -> object:
    """What is looked at of a network's outputs.

    Args:
        outputs: of the network.
        output: a function of them, a key of a mapping or an attribute's name, or an index.

    Returns:
        The part.

    Raises:
        ValueError: the outputs hold no such part.
    """
    if callable(output):
        return output(outputs)
    if not isinstance(outputs, Tensor):
        if isinstance(output, str) and not isinstance(outputs, Mapping) and hasattr(outputs, output):
            return getattr(outputs, output)
        try:
            return outputs[output]
        except (KeyError, IndexError, TypeError):
            pass
    raise ValueError(f"output={output!r} is no part of the network's outputs, which are {_holding(outputs)}")


def forward_signature(model: nn.Module) -> inspect.Signature | None:
    """The arguments of a network's forward; None where they are not known."""
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError, AttributeError):
        return None


def takes_one(model: nn.Module) -> bool:
    """Whether a network can be called with one argument; where that is not known, it can."""
    return not misfit(model, Inputs((None,)))


def misfit(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a network's forward takes other arguments than these."""
    signature = forward_signature(model)
    if inputs.call is not None or signature is None:
        return False
    try:
        signature.bind(*inputs.args, **inputs.kwargs)
    except TypeError:
        return True
    return False


def by_position(model: nn.Module, example: Tensor | Sequence | Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one call, in the order in which forward takes them by position.

    Args:
        model: the network.
        example: its only argument, several by position, or by name.

    Returns:
        Values by the parameters' names, defaults among them; by number where forward's arguments are not known.

    Raises:
        TypeError: the example is of another kind, or an argument can be given by name alone.
        ValueError: the network takes other arguments.
    """
    if not isinstance(example, (Tensor, tuple, list, Mapping)):
        raise TypeError(
            f"an example input is a tensor, or the arguments of one call in a tuple or by name in a dict, got "
            f"{type(example).__name__}"
        )
    named = dict(example) if isinstance(example, Mapping) else {}
    args = () if named else (example,) if isinstance(example, Tensor) else tuple(example)
    signature = forward_signature(model)
    variable = inspect.Parameter.VAR_POSITIONAL
    if signature is None or any(each.kind is variable for each in signature.parameters.values()):
        if named:
            raise TypeError(f"{type(model).__name__}.forward takes any number of arguments: give them by position")
        return {str(number): value for number, value in enumerate(args)}
    try:
        bound = signature.bind(*args, **named)
    except TypeError as error:
        raise ValueError(
            f"{type(model).__name__} does not accept the example input: {error} (a tuple is the arguments of one call, "
            f"without a target)"
        ) from None
    given = list(bound.arguments)
    bound.apply_defaults()
    kinds = {name: signature.parameters[name].kind for name in bound.arguments}
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    alone = [name for name in given if kinds[name] in by_name]
    if alone:
        raise TypeError(
            f"{type(model).__name__}.forward takes {alone[0]} by name alone: wrap the network in a module that "
            f"takes it by position"
        )
    return {name: value for name, value in bound.arguments.items() if kinds[name] not in by_name}


def shown(value: object) -> str:
    """A short description of an input, for messages."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    parts = None if is_object(value) else parts_of(value)
    if parts is None:
        return type(value).__name__
    if not parts:
        return f"empty {type(value).__name__}"
    keys = [f"{key}=" for key in value] if isinstance(value, Mapping) else [""] * len(parts)
    texts = [f"{key}{shown(part)}" for key, part in zip(keys[:3], parts[:3], strict=True)]
    return f"{type(value).__name__} of {', '.join(texts)}" + ", ..." * (len(parts) > 3)


def _holding(outputs: object) -> str:
    kind = type(outputs).__name__
    if isinstance(outputs, Tensor):
        return f"one tensor {tuple(outputs.shape)}"
    if isinstance(outputs, Mapping):
        return f"a {kind} of {', '.join(map(repr, outputs))}"
    if isinstance(outputs, (tuple, list)):
        return f"a {kind} of {len(outputs)}: {', '.join(type(part).__name__ for part in outputs[:5])}"
    return (
        f"a {kind} with {', '.join(name for name in getattr(outputs, '__dict__', {}) if name[0] != '_') or 'nothing'}"
    )
